# Two commands do all the set-up themselves: `make demo` and `make test`. Everything lands in .venv and in git-ignored folders.
PYTHON ?= python3
VENV   ?= .venv
DEVICE ?= cpu
EXTRAS ?= dev
PY     := $(VENV)/bin/python
# setup is done when this file is newer than what it installs from
STAMP  := $(VENV)/.loopforge-installed-$(EXTRAS)

.PHONY: help setup demo test test-all check check-style check-types check-rules check-paths check-keys format clean

.DEFAULT_GOAL := help
help:  ## the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*##' '{printf "  make %-10s%s\n", $$1, $$2}'

setup: $(STAMP)  ## .venv with everything the tests need (EXTRAS=dev,animal adds the libraries of train_animal.py)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Loopforge needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)  ## learn 4x4 Sudoku and draw the model thinking (make demo DEVICE=cuda on a GPU box)
	$(PY) pretrain.py --config-name=cfg_pretrain_sudoku_4x4_fast device=$(DEVICE) project_name=demo run_name=sudoku_4x4
	$(PY) scripts/evaluate.py checkpoints/demo/sudoku_4x4 --device $(DEVICE)
	$(PY) scripts/visualize.py checkpoints/demo/sudoku_4x4 --device $(DEVICE) --out demo/thinking.png

# every worker rewrites the assertions of all test files, unless it may keep what one has written
test: $(STAMP)  ## the fast tests, on all cores
	PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -n auto --dist worksteal -m "not slow and not gpu"

test-all: $(STAMP)  ## with the slow ones (what .ci/run does)
	$(PY) -m pytest -m "not gpu"

# `make -j2 check` runs its parts on two cores
check: check-style check-types check-rules check-paths check-keys  ## format, lint, types, import rule, engine vocabulary, path verification, dead keys

check-style: $(STAMP)
	$(VENV)/bin/ruff format --check --diff .
	$(VENV)/bin/ruff check .

check-types: $(STAMP)
	$(VENV)/bin/mypy

check-rules: $(STAMP)
	$(PY) -m pytest tests/test_house_rules.py

check-paths: $(STAMP)
	$(PY) scripts/verify_path.py --all --summary --markdown docs/training-path-verification.md --check

check-keys: $(STAMP)
	$(PY) scripts/dead_keys.py

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache
