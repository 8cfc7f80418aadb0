"""DYN716: keys on the command line that do something, and those that do nothing."""

from __future__ import annotations

import dataclasses

import pytest

import models.recursive_reasoning.model as model_file
from models.recursive_reasoning.trm import TRM, TRMConfig
from tests.conftest import ROOT
from tests.verification.probing import ATTENTION, MLP, around, composed, fails, findings_of, probe

ALIVE = """
    arch.H_cycles=2 arch.L_cycles=3 arch.L_layers=3 arch.hidden_size=256 arch.num_heads=4 arch.expansion=2
    arch.mlp_t=false arch.pos_encodings=rope arch.rope_theta=100.0 arch.rms_norm_eps=1e-6 arch.puzzle_emb_ndim=256
    arch.puzzle_emb_len=4 arch.halt_max_steps=8 arch.halt_exploration_prob=0.11 arch.no_ACT_continue=true
    arch.forward_dtype=bfloat16 arch.loss.loss_type=softmax_cross_entropy arch.loss.precision=float64
""".split()


@pytest.mark.slow
def test_every_key_of_the_architecture_is_alive() -> None:
    findings = findings_of("DYN716", *ALIVE)
    assert {f.level for f in findings} <= {"PASS", "INFO"}
    text = " ".join(f.message for f in findings)
    assert all(override.partition("=")[0] in text for override in ALIVE)


@pytest.mark.parametrize(
    "override",
    ["arch.num_heads=4", "arch.rope_theta=100.0", "arch.puzzle_emb_len=4"],
)
def test_a_dead_override(override: str) -> None:
    given = (override, "arch.puzzle_emb_ndim=0")
    message = fails("DYN716", *given, recipe=MLP)
    assert message.startswith(f"{override} is dead")
    assert "puzzle_emb_ndim" not in message


def test_a_field_that_the_model_passes_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """The constructor takes the key and uses a constant."""
    around(
        monkeypatch,
        model_file.ACTModel,
        "__init__",
        lambda init, self, inner, **settings: init(self, inner, **{**settings, "halt_exploration_prob": 0.1}),
    )
    assert "arch.halt_exploration_prob=0.7 is dead" in fails("DYN716", "arch.halt_exploration_prob=0.7")


def test_a_field_that_nothing_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(kw_only=True)
    class Wider(TRMConfig):
        latent_dim: int = 32
        """What no code looks at."""

    monkeypatch.setattr(TRM, "Config", Wider)
    findings = findings_of("DYN716", "+arch.latent_dim=16")
    assert {(f.level, f.message.split(":")[0].split(" is ")[0]) for f in findings} == {
        ("FAIL", "arch.latent_dim=16"),
        ("WARN", "nothing reads arch.latent_dim"),
    }


def test_a_width_that_rounds_to_the_same_only_when_small() -> None:
    """64 * 2 and 64 * 4 hidden numbers both round up to 256; of 512 they do not."""
    assert [f.level for f in findings_of("DYN716", "arch.expansion=2")] == ["PASS"]


def test_a_value_that_does_what_the_default_does() -> None:
    """With mlp_t there are no rotations to switch off; a learned table would do something."""
    (info,) = [f for f in findings_of("DYN716", "arch.pos_encodings=none", recipe=MLP) if f.level == "INFO"]
    assert "computes the same as its default rope" in info.message


@pytest.mark.parametrize(
    ("override", "dead"),
    [
        ("puzzle_emb_lr=0.5", True),
        ("ema_rate=0.9", True),
        ("lr=0.5", False),
        ("lr_min_ratio=0.3", False),
        ("beta1=0.8", False),
        ("weight_decay=0.3", False),
        ("grad_clip=0.5", False),
        ("run_name=x", False),
        ("epochs=2", False),
        ("offline=error", False),
    ],
)
def test_a_run_key_without_effect_is_a_warning(override: str, dead: bool) -> None:
    """The recipe has a puzzle embedding no more, and keeps no average."""
    off = ("arch.puzzle_emb_ndim=0", "arch.puzzle_emb_len=0", "ema=false")
    config = composed(ATTENTION, *off, override)
    levels = [f.level for f in probe(config, entry="pretrain", root=ROOT, only={"DYN716"}, overrides=[override])]
    assert ("WARN" in levels) is dead


def test_a_key_that_the_file_of_the_optimizer_takes_is_no_false_alarm() -> None:
    override = "beta1=0.5"
    config = composed("cfg_pretrain_sudoku_4x4_fast", override)
    assert config["optimizer"]["rest"]["options"]["betas"][0] == 0.5
    levels = [f.level for f in probe(config, entry="pretrain", root=ROOT, only={"DYN716"}, overrides=[override])]
    assert "WARN" not in levels
