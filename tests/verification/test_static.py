"""What ships verifies; each kind of fault has its code; what cannot be judged says SKIP. A few seconds."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from verification.codes import CODES
from verification.docs import documented, what_is_missing
from verification.rule import RULES, NotApplicable, Rule, finding, rule, run_rules
from verification.static import verify_all, verify_command, verify_docs

GOOD = "python pretrain.py --config-name=cfg_pretrain_sudoku_4x4 device=cpu"
KEPT = ("config", "models", "losses", "tasks", "dataset", "evaluators", "engine", "jobs")


def judged(line: str, **more):
    """Judged by the rules, and by the probes where asked for."""
    return verify_command(shlex.split(line), root=more.pop("root", ROOT), **{"probes": False, **more})


def test_a_class_of_another_package_and_a_wrong_number_of_processes_fail() -> None:
    """The first ended the review of a whole job file; torchrun refuses the second when the job has waited its turn."""
    assert "ARC310" in judged(f"{GOOD} arch.name=losses@ACTLossHead").codes("WARN")
    for count in ("x", "0", ""):
        report = judged(f"torchrun --nproc-per-node={count} train.py --config-name=cfg_train_cpu")
        assert f"--nproc-per-node={count}: expected a number of at least 1, or gpu" in report.of("FAIL")[0].message
    assert not judged("torchrun --nproc-per-node=gpu pretrain.py").of("FAIL")


@pytest.mark.slow
def test_everything_that_ships_verifies() -> None:
    """Without a warning, by the rules. `make check` has the probes, too, and compares the page."""
    reports = verify_all(ROOT, local_data=False, probes=False)
    problems = [f"{r.job}: {f.code} {f.message}" for r in reports for f in r.of("FAIL", "WARN")]
    assert not problems
    assert len(reports) > 15
    intents = {r.job: r.intent for r in reports if r.chain}
    # The guide's four questions; text models have no ACT and no encoder to ask for.
    silent = [
        job
        for job, intent in intents.items()
        if not {"mode", "purpose"} | ({"act", "encoder"} if intent.get("mode") in ("embedding", "encoder") else set())
        <= intent.keys()
    ]
    assert not silent, "a job or recipe that does not answer its family's questions"


def test_a_plan_is_judged_more_strictly_than_a_smoke_run() -> None:
    assert "CFG250" in judged("python train.py max_iters=60", kind="job").codes("FAIL")
    assert judged("python pretrain.py max_steps=10").codes("FAIL") == set()
    assert judged("python pretrain.py max_steps=10", kind="job", intent={"mode": "embedding"}).codes("FAIL") == {
        "CFG250"
    }


def test_a_model_of_another_family_is_one_line() -> None:
    (found,) = (one for one in judged("python pretrain.py arch=gpt", probes=True).findings if one.code == "SCR112")
    assert "FAMILY='language_models' and DATA_MODE='tokens', pretrain.py works with" in found.message


def test_a_preset_of_another_script_is_told_as_at_a_launch() -> None:
    (found,) = judged("python pretrain.py +debug=tiny_text").of("FAIL")
    assert (found.code, found.message[:53]) == ("JOB030", "debug=tiny_text is not for pretrain.py, which has no ")


def test_a_command_without_an_intent_is_asked_the_guides_questions() -> None:
    (question,) = [f for f in judged(GOOD).findings if f.code == "JOB034"]
    assert (question.level, question.message.count("?")) == ("INFO", 4)


# --- other trees ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repo")
    for name in KEPT:
        shutil.copytree(ROOT / name, root / name)
    shutil.copy(ROOT / "pretrain.py", root / "pretrain.py")
    return root


# --- data, job files, honesty -----------------------------------------------------------------------------------------


def data_set(folder: Path, **changes) -> None:
    for split, seed in (("train", 1), ("test", 2)):
        (folder / split).mkdir(parents=True)
        rows = np.random.default_rng(seed).integers(1, 6, (8, 16)).astype(np.uint8)
        for kind in ("inputs", "labels"):
            np.save(folder / split / f"all__{kind}.npy", rows)
        np.save(folder / split / "all__puzzle_identifiers.npy", np.zeros(8, np.int32))
        for kind in ("puzzle", "group"):
            np.save(folder / split / f"all__{kind}_indices.npy", np.arange(9, dtype=np.int32))
        meta = {
            "seq_len": 16,
            "vocab_size": 6,
            "pad_id": 0,
            "ignore_label_id": 0,
            "blank_identifier_id": 0,
            "num_puzzle_identifiers": 1,
            "total_groups": 8,
            "mean_puzzle_examples": 1,
            "data_mode": "embedding",
            **changes,
        }
        (folder / split / "dataset.json").write_text(json.dumps(meta))


def test_data_modes_and_contents(copy: Path) -> None:
    line = f"{GOOD} data_paths=[data/{{}}] global_batch_size=4 lr_warmup_steps=0"
    data_set(copy / "data/good")
    data_set(copy / "data/demos-encoder", data_mode="encoder")
    data_set(copy / "data/small", vocab_size=3)
    good = judged(line.format("good"), root=copy, with_data=True)
    assert not good.of("FAIL", "WARN")
    assert good.codes("PASS") >= {"DAT510", "DAT520", "DAT521", "DAT523"}
    report = judged(line.format("demos-encoder"), root=copy)
    assert "DAT510" in report.codes("FAIL")
    assert "DAT511" in report.codes("WARN")
    assert "SUM600" in report.codes("FAIL")
    assert "DAT523" in judged(line.format("small"), root=copy, with_data=True).codes("FAIL")
    problems = {
        "good/train": "train is one split of a data set: name the set, ",
        "good,data/good/": "names .*data/good twice: each set belongs there once",
        "bare": "data/bare/train/dataset.json: the key 'total_groups' is missing",
        "none": "data/none/train/dataset.json cannot be read",
        "nan": "data/nan/train/dataset.json: mean_puzzle_examples is nan",
        "negative": "data/negative/train/dataset.json: total_groups is -1",
    }
    data_set(copy / "data/nan", mean_puzzle_examples=float("nan"))
    data_set(copy / "data/negative", total_groups=-1)
    (copy / "data/bare/train").mkdir(parents=True)
    (copy / "data/bare/train/dataset.json").write_text("{}")
    (copy / "data/none").mkdir()
    for name, text in problems.items():
        (found,) = judged(line.format(name), root=copy).of("FAIL")[:1]
        assert re.search(text, found.message), found
    shutil.copy(copy / "data/good/train/all__inputs.npy", copy / "data/good/test/all__inputs.npy")
    assert "DAT520" in judged(line.format("good"), root=copy, with_data=True).codes("FAIL")


def test_what_cannot_be_judged_is_skipped() -> None:
    report = judged("python pretrain.py --config-name=cfg_pretrain_sudoku_extreme_mlp")
    skipped = {f.code: f.message for f in report.of("SKIP")}
    assert {"DAT520", "CFG252", "CFG253", "CKP610"} <= skipped.keys()
    assert all(skipped.values())
    blind = judged("python pretrain.py arch.L_cyles=3", probes=True)
    assert not blind.codes("PASS") & {"MOD421", "MOD440", "CFG250", "ARC330", "SUM600", "DAT510"}
    assert blind.level("5") == "SKIP"


def test_every_rule_judges_its_codes() -> None:
    codes = judged(GOOD, probes=True).codes()
    own = importlib.import_module("tasks.recursive_reasoning.verify").VERIFICATION.rules
    assert {code for one in (*RULES, *own) for code in one.codes} <= codes
    assert codes <= set(CODES)


def test_a_rule_that_breaks_is_no_pass() -> None:
    @rule("DOC810")
    def broken(subject):
        raise KeyError("oops")
        yield

    @rule("VER900")
    def without(subject):
        raise NotApplicable("nothing here")
        yield

    try:
        findings = run_rules(judged(GOOD).subject)
    finally:
        del RULES[-2:]
    assert [f.level for f in findings if f.code == "DOC810"] == ["SKIP"]
    assert [f.level for f in findings if f.code == "VER900"] == ["WARN"]


def test_a_family_brings_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def depth(subject):
        yield finding("CFG253", "FAIL", f"L_cycles={subject.arch['L_cycles']}")

    module = importlib.import_module("tasks.recursive_reasoning.verify")
    own = replace(
        module.VERIFICATION,
        rules=(Rule(("CFG253",), depth),),
        intents={"manager": lambda subject: "none"},
    )
    monkeypatch.setattr(module, "VERIFICATION", own)
    report = judged(GOOD, intent={"manager": "big"})
    assert {(f.code, f.level): f.message for f in report.of("FAIL", "WARN")} == {
        ("CFG253", "FAIL"): "L_cycles=1",
        ("JOB034", "FAIL"): "intended manager=big, resolved manager=none",
    }


def test_documentation_is_checked(copy: Path) -> None:
    faults: list[tuple[str, Callable[[str], bool]]] = [
        ("python pretrain.py lrr=3", lambda text: "JOB030" in text),
        ("python nope.py", lambda text: "no nope.py" in text),
        ("make dmo", lambda text: "target" in text),
        ("python -m dataset.nope", lambda text: "no module" in text),
    ]
    (copy / "README.md").write_text("```bash\n" + "\n".join(line for line, _ in faults) + f"\n{GOOD}\n```\n")
    page = next(r for r in verify_docs(copy) if r.job == "README.md")
    assert [f.line for f in page.of("FAIL")] == [2, 3, 4, 5]
    assert all(good(f.message) for f, (_, good) in zip(page.of("FAIL"), faults, strict=True))
    assert len(page.of("PASS")) == 1


def test_a_command_behind_any_assignment_is_read(tmp_path: Path) -> None:
    commands = ['A="b c" python gone.py', "S3=x e2='a\tb' python gone.py", "python gone.py"]
    (tmp_path / "README.md").write_text("\n".join(["```bash", *commands, 'A="b c" ls', "```", ""]))
    found = list(documented(tmp_path))
    assert [one.line for one in found] == [2, 3, 4]
    assert [what_is_missing(tmp_path, one) for one in found] == ["there is no gone.py"] * 3
