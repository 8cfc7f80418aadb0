"""The probes: no false alarm on any recipe, and what the tables of planted faults (test_deep_mutations) cannot plant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import engine.optim.builtin
from models.recursive_reasoning.act import ACTModel
from tests.conftest import ROOT
from tests.verification.probing import ATTENTION, HRM, OBSERVED, SLOW, around, composed, fails, findings_of, probe

RECIPES = sorted(p.stem for p in (ROOT / "config").glob("cfg_*.yaml") if "base/pretrain\n" in p.read_text("utf-8"))


# --- no false alarms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [one if one == HRM else SLOW(one) for one in RECIPES])
def test_recipes_pass(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a trace in the process: its random numbers continue as before, and nothing is printed."""
    torch.manual_seed(7)
    before = torch.get_rng_state()
    with torch.no_grad():
        findings = probe(composed(recipe), entry="pretrain", root=ROOT)
    assert [(f.code, f.level) for f in findings] == [(code, "PASS") for code in OBSERVED], findings
    assert torch.equal(torch.get_rng_state(), before)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "overrides",
    [
        ("freeze_weights=true", "arch.halt_max_steps=1"),
        SLOW(("arch.no_ACT_continue=false", "arch.pos_encodings=learned", "grad_clip=0.5", "ema=true")),
        SLOW(("arch.halt_exploration_prob=0", "arch.hidden_size=48", "arch.num_heads=6")),
        SLOW(("arch.halt_exploration_prob=1", "accumulation=4", "evaluators=[{name: steps@PerStepAccuracy}]")),
        SLOW(("arch.puzzle_emb_ndim=0", "arch.puzzle_emb_len=0")),
        SLOW(("arch=hrm", "arch.H_layers=2")),
        *(SLOW((f"arch={path.stem}",)) for path in sorted((ROOT / "config/arch").glob("tr*.yaml"))),
    ],
    ids=" ".join,
)
def test_good_settings_pass(overrides: tuple[str, ...]) -> None:
    findings = probe(composed(ATTENTION, *overrides), entry="pretrain", root=ROOT)
    assert [(f.code, f.level) for f in findings] == [(code, "PASS") for code in OBSERVED], findings


# --- DYN700 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("arch.num_heads=7", "does not divide arch.hidden_size=512"),  # would divide in no tiny instance either
        ("+arch.latent_dim=7", "unknown key"),
        ("arch.name=recursive_reasoning.trm@TRMX", "no class TRMX"),
        ("+learning_rate=1", "unknown key"),
    ],
)
def test_what_cannot_be_built_is_told_first(override: str, message: str) -> None:
    findings = probe(composed(ATTENTION, override), entry="pretrain", root=ROOT, overrides=[override])
    assert [(f.code, f.level) for f in findings] == [("DYN700", "FAIL")]
    assert message in findings[0].message


def test_a_library_that_is_missing_is_no_fault_of_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Any) -> None:
        import no_such_library  # noqa: F401

    monkeypatch.setattr("verification.probes.session._built", missing)
    assert [(f.code, f.level) for f in findings_of("DYN700")] == [("DYN700", "SKIP")]


def test_a_crash_in_evaluation_only_is_seen_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ACTModel, "_eval_output", lambda self, *args: 1 / 0)
    (finding,) = findings_of("DYN709")
    assert (finding.level, finding.line > 0) == ("FAIL", True)
    assert "ZeroDivisionError" in finding.message


# --- what no copy of the repository can plant -------------------------------------------------------------------------


def test_an_optimizer_that_trains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.optim.builtin.AdamATan2, "step", lambda self, lr_scale=1.0, ok=None: None)
    assert "did not change in 3 optimizer steps" in fails("DYN703")


def test_embedding_rows_of_other_puzzles(monkeypatch: pytest.MonkeyPatch) -> None:
    def decaying(original: Any, self: Any, lr_scale: float = 1.0, ok: Any = None) -> None:
        original(self, lr_scale, ok)
        self.table.weights.mul_(0.99)

    around(monkeypatch, engine.optim.builtin.SparseSignSGD, "step", decaying)
    assert "of puzzles that it did not work on" in fails("DYN718")


@pytest.mark.parametrize("code", ["DYN703", "DYN718"])
def test_a_learning_rate_of_zero_is_a_warning(code: str) -> None:
    assert [f.level for f in findings_of(code, "lr=0", "puzzle_emb_lr=0")] == ["WARN"]


def test_a_rank_of_a_launcher_probes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert [f.level for f in findings_of("DYN703")] == ["PASS"]


def test_a_class_outside_of_our_packages_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "models_of_mine.py").write_text(f"open({str(ran)!r}, 'w')\nclass Payload: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    findings = findings_of("MOD420", "arch.name=models_of_mine@Payload")
    assert [f.level for f in findings] == ["SKIP"]
    assert not ran.exists()
