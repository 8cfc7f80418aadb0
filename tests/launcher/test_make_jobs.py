"""A grid becomes a job file whose run names are unique and whose commands mean what the grid says."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.jobs import read
from scripts.make_jobs import main

GRID = """
base: torchrun --standalone --nproc-per-node=2 pretrain.py --config-name=cfg_pretrain_sudoku_4x4 project_name=sweep
name: depth
intent: {mode: embedding, act: dynamic, purpose: a new one}
comment: |
  Does depth help?
  And width?
factors:
  arch.L_cycles: [1, 2, 4]
  lr: [1e-3, 2.0e-3]
  size:
    small: {arch.hidden_size: 32, arch.num_heads: 4}
    large: {arch.hidden_size: 64, arch.num_heads: 8}
exclude:
  - {arch.L_cycles: 4, size: large}
seeds: [0, 7]
"""


def make(tmp_path: Path, text: str, *more: str) -> int:
    (tmp_path / "grid.yaml").write_text(text)
    return main([str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "jobs-g.txt"), *more])


def test_every_combination_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make(tmp_path, GRID) == 0
    jobs = read(tmp_path / "jobs-g.txt").jobs
    assert len(jobs) == (3 * 2 * 2 - 2) * 2 == len({job.id for job in jobs})
    assert "20 jobs" in capsys.readouterr().out
    assert jobs[0].run_name == "depth-L_cycles1-lr0.001-small-seed0"
    assert jobs[0].argv[-6:-1] == ("arch.L_cycles=1", "lr=0.001", "arch.hidden_size=32", "arch.num_heads=4", "seed=0")
    assert jobs[0].intent == {"mode": "embedding", "act": "dynamic", "purpose": "a new one"}
    assert all(job.error is None and job.state == "todo" for job in jobs)
    assert not any({"arch.L_cycles=4", "arch.hidden_size=64"} <= set(job.argv) for job in jobs)


def test_values_of_every_kind_come_back_from_hydra(tmp_path: Path) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    values = [None, True, 3, 0.5, 1e-4, "a b", "x,y", "#1 & 'so'", [1, 2], ["p/q", "r s"]]
    text = "base: python a.py\nfactors:\n  key:\n" + "".join(f"    - {_yaml(value)}\n" for value in values)
    assert make(tmp_path, text) == 0
    jobs = read(tmp_path / "jobs-g.txt").jobs
    parser = OverridesParser.create()
    overrides = [parser.parse_override(job.argv[-2]) for job in jobs]
    assert [override.value() for override in overrides] == values
    names = [parser.parse_override(job.argv[-1]).value() for job in jobs]
    assert names == [job.run_name for job in jobs]
    assert not any(set(str(name)) & set(" ,#&'/[]") for name in names)


def _yaml(value: object) -> str:
    import json

    return json.dumps(value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("seeds: [0, 7]", "seeds: [0, 0]"), "two jobs would be called"),
        (("lr: [1e-3, 2.0e-3]", "lr: ['a b', a_b]"), "two jobs would be called"),
        (("seeds: [0, 7]", "sedes: 2"), "did you mean 'seeds'"),
        (("seeds: [0, 7]", "seeds: x"), "seeds:"),
        (("arch.L_cycles: 4, size", "arch.L_cycels: 4, size"), "did you mean 'arch.L_cycles'"),
        (("size: large}", "size: largest}"), "size is never largest"),
        (("lr: [1e-3, 2.0e-3]", "lr: 3"), "expected a list of values"),
        (("lr: [1e-3, 2.0e-3]", "project_name: [a, b]"), "project_name is set twice"),
        (("lr: [1e-3, 2.0e-3]", "arch.num_heads: [2]"), "arch.num_heads is set twice"),
        (("project_name=sweep", "run_name=r"), "run_name=r is made from the factors"),
        (("project_name=sweep", "note='x"), "no closing quotation"),
        (("project_name=sweep", "; ls"), "';' is for a shell"),
        (("base:", "bas:"), "base: COMMAND"),
        (("factors:", "factors: ["), "grid"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_grid_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], words: str
) -> None:
    assert change[0] in GRID
    assert make(tmp_path, GRID.replace(*change)) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "jobs-g.txt").exists()


def test_a_file_is_neither_overwritten_nor_given_a_name_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(tmp_path, GRID) == 0
    before = (tmp_path / "jobs-g.txt").read_text()
    assert make(tmp_path, GRID) == 2
    assert make(tmp_path, GRID, "--append") == 2
    assert "has a job" in capsys.readouterr().err
    assert (tmp_path / "jobs-g.txt").read_text() == before
    assert make(tmp_path, GRID.replace("name: depth", "name: again"), "--append") == 0
    assert len({job.id for job in read(tmp_path / "jobs-g.txt").jobs}) == 40


def test_jobs_are_appended_to_a_job_file_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "grid.yaml").write_text(GRID)
    (tmp_path / "poem.txt").write_text("not a job\n")
    for out in (tmp_path / "poem.txt", tmp_path, Path("/dev/full")):  # a device has no end
        assert main([str(tmp_path / "grid.yaml"), "--out", str(out), "--append"]) == 2
        assert str(out) in capsys.readouterr().err
    assert (tmp_path / "poem.txt").read_text() == "not a job\n"
    assert main([str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "poem.txt/jobs.txt")]) == 2
    assert f"{tmp_path}/poem.txt/jobs.txt cannot be written" in capsys.readouterr().err
    assert main([str(tmp_path / "grid.yaml"), "--append"]) == 2
    assert "name it with --out FILE" in capsys.readouterr().err


def test_words_stay_words_and_two_kinds_of_equal_values_differ(tmp_path: Path) -> None:
    grid = "base: python a.py\nfactors:\n  compile: [off, block]\n  flag: [true, 1]\nexclude:\n  - {flag: 1}\n"
    assert make(tmp_path, grid) == 0
    argvs = [job.argv for job in read(tmp_path / "jobs-g.txt").jobs]
    assert [argv[2:4] for argv in argvs] == [("compile=off", "flag=true"), ("compile=block", "flag=true")]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("base: python a.py\nfactors: {seed: [1, 2]}\nseeds: 3\n", "factors.seed and seeds both name the seeds"),
        ("base: python a.py --lr=3\nfactors: {lr: [1, 2]}\n", "lr is set twice"),
        ("base: python a.py --lr 3\nfactors: {lr: [1, 2]}\n", "lr is set twice"),
        ("base: python a.py\nfactors: {lr: [1], lr: [2]}\n", "duplicate key"),
        ("base: python a.py\nintent: mode\nseeds: 2\n", "intent: expected {mode: embedding, act: dynamic, ...}"),
        ("base: python train_animal.py\nseeds: 2\n", "one folder for their runs: write output_dir=FOLDER/${run_name}"),
        ("base: python train.py --out_dir a\nseeds: 2\n", "for their runs: write out_dir=FOLDER/${run_name}"),
    ],
)
def test_no_factor_is_dropped(tmp_path: Path, grid: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert make(tmp_path, grid) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "jobs-g.txt").exists()


@pytest.mark.parametrize("seeds", [100_000_000, 10**30])
def test_a_number_of_seeds_beyond_all_jobs_is_refused_before_it_takes_memory(seeds: int) -> None:
    from engine.errors import UsageError
    from launcher.grid import combinations

    with pytest.raises(UsageError, match=f"seeds: {seeds} are more than"):
        next(combinations({"base": "x", "seeds": seeds}))
