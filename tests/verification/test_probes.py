"""The probes: no false alarm on any recipe, and each fault that they look for, planted, is seen under its code."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import engine.optim.builtin
import models.recursive_reasoning.act as act
import tasks.recursive_reasoning.build as building
import tasks.recursive_reasoning.task as tasks
from models.recursive_reasoning.act import ACTModel
from models.recursive_reasoning.inner import RecursiveInner
from models.sparse_embedding import SparseEmbedding
from tests.conftest import ROOT
from tests.verification.probing import ATTENTION, HRM, MLP, OBSERVED, SLOW, around, composed, fails, look, probe

RECIPES = sorted(p.stem for p in (ROOT / "config").glob("cfg_*.yaml") if "base/pretrain\n" in p.read_text("utf-8"))


# --- no false alarms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [one if one in (HRM, MLP) else SLOW(one) for one in RECIPES])
def test_recipes_pass(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a trace in the process: its random numbers go on as they were, and nothing is printed."""
    torch.manual_seed(7)
    before = torch.get_rng_state()
    with torch.no_grad():
        found = probe(composed(recipe), entry="pretrain", root=ROOT)
    assert [(f.code, f.level) for f in found] == [(code, "PASS") for code in OBSERVED], found
    assert torch.equal(torch.get_rng_state(), before)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "overrides",
    [
        ("freeze_weights=true", "arch.halt_max_steps=1"),
        ("arch.no_ACT_continue=false", "arch.pos_encodings=learned", "grad_clip=0.5", "ema=true"),
        SLOW(("arch.halt_exploration_prob=0", "arch.hidden_size=48", "arch.num_heads=6")),
        SLOW(("arch.halt_exploration_prob=1", "accumulation=4", "evaluators=[{name: steps@PerStepAccuracy}]")),
        SLOW(("arch.puzzle_emb_ndim=0", "arch.puzzle_emb_len=0")),
        SLOW(("arch=hrm", "arch.H_layers=2")),
        *(SLOW((f"arch={path.stem}",)) for path in sorted((ROOT / "config/arch").glob("tr*.yaml"))),
    ],
    ids=" ".join,
)
def test_good_settings_pass(overrides: tuple[str, ...]) -> None:
    found = probe(composed(ATTENTION, *overrides), entry="pretrain", root=ROOT)
    assert [(f.code, f.level) for f in found] == [(code, "PASS") for code in OBSERVED], found


# --- DYN700 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("arch.num_heads=7", "does not divide arch.hidden_size=512"),  # would divide in no tiny instance either
        ("+arch.latent_dim=7", "unknown key"),
        ("arch.name=recursive_reasoning.trm@TRMX", "no class TRMX"),
        ("+learning_rate=1", "unknown key"),
    ],
)
def test_what_cannot_be_built_is_told_first(override: str, said: str) -> None:
    found = probe(composed(ATTENTION, override), entry="pretrain", root=ROOT, overrides=[override])
    assert [(f.code, f.level) for f in found] == [("DYN700", "FAIL")]
    assert said in found[0].message


def test_a_library_that_is_missing_is_no_fault_of_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Any) -> None:
        import no_such_library  # noqa: F401

    monkeypatch.setattr("verification.probes.session._built", missing)
    assert [(f.code, f.level) for f in look("DYN700")] == [("DYN700", "SKIP")]


def test_a_crash_in_the_forward_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RecursiveInner, "logits", lambda self, latents: self.lm_heads(latents))
    assert "lm_heads" in fails("DYN700")


def test_a_crash_in_evaluation_only_is_seen_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ACTModel, "_eval_output", lambda self, *args: 1 / 0)
    (finding,) = look("DYN709")
    assert (finding.level, finding.line > 0) == ("FAIL", True)
    assert "ZeroDivisionError" in finding.message


# --- DYN703 -----------------------------------------------------------------------------------------------------------


def test_a_parameter_without_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_head(original: Any, *args: Any, **kwargs: Any) -> Any:
        groups = original(*args, **kwargs)
        del groups[-1].params["inner.lm_head.weight"]
        return groups

    around(monkeypatch, building, "param_groups", without_head)
    assert "inner.lm_head.weight in no optimizer group" in fails("DYN703")


def test_a_parameter_in_two_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(original: Any, *args: Any, **kwargs: Any) -> Any:
        groups = original(*args, **kwargs)
        head = {"inner.q_head.bias": groups[-1].params["inner.q_head.bias"]}
        return [*groups, dataclasses.replace(groups[-1], name="heads", params=head)]

    around(monkeypatch, building, "param_groups", twice)
    assert "inner.q_head.bias in more than one optimizer group" in fails("DYN703")


def test_an_optimizer_that_trains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.optim.builtin.AdamATan2, "step", lambda self, lr_scale=1.0, ok=None: None)
    assert "did not change in 3 optimizer steps" in fails("DYN703")


def test_a_detached_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    around(monkeypatch, RecursiveInner, "embed", lambda original, self, data: original(self, data).detach())
    assert "inner.embed_tokens.embedding_weight got no gradient" in fails("DYN703", recipe=HRM)
    assert "no gradient reaches what step 1 embeds" in fails("DYN702", recipe=HRM)  # there it is part of a dict


def test_a_learning_rate_of_zero_is_a_warning() -> None:
    assert [f.level for f in look("DYN703", "lr=0")] == ["WARN"]


# --- DYN705 -----------------------------------------------------------------------------------------------------------


def test_a_task_that_drops_the_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(original: Any, self: Any, micro_batch: Any) -> Any:
        self._carries = [None] * len(self._carries)
        return original(self, micro_batch)

    around(monkeypatch, tasks.RecursiveReasoningTask, "loss", forgetful)
    assert "got no carry" in fails("DYN705")


def rows(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any, Any, Any, Any, Any], Any]) -> None:
    """`_open_rows` with its result passed through `change(self, batch, carry, latents, steps, data)`."""

    def opened(original: Any, self: Any, batch: Any, carry: Any) -> Any:
        result = original(self, batch, carry)
        return result if carry is None else change(self, batch, carry, result)

    around(monkeypatch, ACTModel, "_open_rows", opened)


def offered(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "exploration"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda self, batch, carry, r: (self.inner.initial(len(carry.halted)), *r[1:]), "these were reset"),
        (lambda self, batch, carry, r: (r[0], torch.zeros_like(carry.steps), r[2]), "of continuing rows did not go up"),
        (lambda self, batch, carry, r: (*r[:2], offered(batch)), "continuing rows lost their own inputs"),
        (lambda self, batch, carry, r: (*r[:2], carry.data), "halted rows did not take the inputs"),
    ],
    ids=["latents reset", "steps reset", "examples of the batch", "examples kept"],
)
def test_a_carry_treated_wrongly(monkeypatch: pytest.MonkeyPatch, change: Any, said: str) -> None:
    rows(monkeypatch, change)
    assert said in fails("DYN705")


def test_a_carry_that_keeps_its_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def attached(original: Any, self: Any, batch: Any, carry: Any) -> Any:
        output = original(self, batch, carry)
        graph = 0 * output.logits.sum()
        output.carry.latents = {name: latent + graph for name, latent in output.carry.latents.items()}
        return output

    around(monkeypatch, ACTModel, "_forward_train_original", attached)
    assert "hold a graph" in fails("DYN705")


# --- DYN706 -----------------------------------------------------------------------------------------------------------


def test_labels_that_are_never_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows(monkeypatch, lambda self, batch, carry, r: (*r[:2], {**r[2], "labels": carry.data["labels"]}))
    assert "start afresh changed nothing" in fails("DYN706")


# --- DYN707 -----------------------------------------------------------------------------------------------------------


def halting(monkeypatch: pytest.MonkeyPatch, rule: Callable[..., Any]) -> None:
    around(monkeypatch, ACTModel, "_halting", rule)


def changed(self: Any, name: str, value: Any, call: Callable[[], Any]) -> Any:
    old = getattr(self, name)
    setattr(self, name, value)
    try:
        return call()
    finally:
        setattr(self, name, old)


@pytest.mark.parametrize("recipe", [ATTENTION, HRM])
def test_exploration_ignored(monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    def never(rule: Any, self: Any, *args: Any) -> Any:
        return changed(self, "halt_exploration_prob", 0.0, lambda: rule(self, *args))

    halting(monkeypatch, never)
    assert "with exploration 1: rows halted first at step 1, expected 2 to 4" in fails("DYN707", recipe=recipe)


def test_another_probability_than_the_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    def squared(rule: Any, self: Any, *args: Any) -> Any:
        return changed(self, "halt_exploration_prob", self.halt_exploration_prob**2, lambda: rule(self, *args))

    halting(monkeypatch, squared)
    assert "halt_exploration_prob=0.1 is not the probability" in fails("DYN707")


@pytest.mark.parametrize("shift", [-1, 1])
def test_halting_a_step_off(monkeypatch: pytest.MonkeyPatch, shift: int) -> None:
    def rule_off(rule: Any, self: Any, *args: Any) -> Any:
        return changed(self, "halt_max_steps", self.halt_max_steps + shift, lambda: rule(self, *args))

    halting(monkeypatch, rule_off)
    assert f"rows halted first at step {4 + shift}, expected halt_max_steps=4" in fails("DYN707")


def test_a_halting_head_that_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    halting(monkeypatch, lambda rule, self, steps, *_: steps >= self.halt_max_steps)
    assert "q +10 without exploration: rows halted first at step 4, expected 1" in fails("DYN707")


def test_an_evaluation_that_says_more_steps_than_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(original: Any, self: Any, batch: Any) -> Any:
        output = changed(self, "halt_max_steps", self.halt_max_steps - 1, lambda: original(self, batch))
        output.carry.steps += 1
        return output

    around(monkeypatch, ACTModel, "_forward_eval", short)
    assert "takes another number of steps" in fails("DYN707")


def test_an_evaluation_that_halts_early(monkeypatch: pytest.MonkeyPatch) -> None:
    def early(original: Any, self: Any, batch: Any) -> Any:
        output = original(self, batch)
        willing = bool((output.q_halt_logits > 0).all())
        return changed(self, "halt_max_steps", 1, lambda: original(self, batch)) if willing else output

    around(monkeypatch, ACTModel, "_forward_eval", early)
    assert "evaluation with q +10 reports 1 steps" in fails("DYN707")


# --- DYN709, DYN712 ---------------------------------------------------------------------------------------------------


def test_an_evaluation_that_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(original: Any, self: Any, *args: Any) -> Any:
        output = original(self, *args)
        return dataclasses.replace(output, logits=output.logits + 1e-3 * torch.randn_like(output.logits))

    around(monkeypatch, ACTModel, "_eval_output", noisy)
    assert "logits of the same batch differs" in fails("DYN709")


def test_an_evaluation_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    def moving(original: Any, self: Any, *args: Any) -> Any:
        with torch.no_grad():
            self.inner.lm_head.weight.add_(1e-3)
        return original(self, *args)

    around(monkeypatch, ACTModel, "_eval_output", moving)
    assert "an evaluation changed inner.lm_head.weight" in fails("DYN709")


@pytest.mark.parametrize(("mode", "said"), [(True, "training step 1"), (False, "evaluation")])
def test_labels_in_the_input(monkeypatch: pytest.MonkeyPatch, mode: bool, said: str) -> None:
    def told(original: Any, self: Any, data: Any) -> Any:
        x = original(self, data)
        hint = data["labels"].clamp(min=0).sum(-1)[:, None, None]
        return x + 0.01 * hint if self.training is mode else x

    around(monkeypatch, RecursiveInner, "embed", told)
    message = fails("DYN712")
    assert said in message
    assert "logits" in message


# --- DYN718 -----------------------------------------------------------------------------------------------------------


def test_embedding_rows_of_other_puzzles(monkeypatch: pytest.MonkeyPatch) -> None:
    def decaying(original: Any, self: Any, lr_scale: float = 1.0, ok: Any = None) -> None:
        original(self, lr_scale, ok)
        self.table.weights.mul_(0.99)

    around(monkeypatch, engine.optim.builtin.SparseSignSGD, "step", decaying)
    assert "of puzzles that it did not work on" in fails("DYN718")


def test_embedding_rows_by_another_number(monkeypatch: pytest.MonkeyPatch) -> None:
    around(monkeypatch, SparseEmbedding, "forward", lambda original, self, ids: original(self, ids // 2))
    assert "of its own puzzles unchanged" in fails("DYN718")


def test_a_table_without_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    around(monkeypatch, building, "param_groups", lambda original, *args, **kwargs: original(*args, **kwargs)[1:])
    assert "stands in no optimizer group" in fails("DYN718")


def test_the_forward_of_the_other_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    def online(self: Any, batch: Any, carry: Any) -> Any:
        return ACTModel._forward_train_original(self, batch, carry)

    monkeypatch.setattr(act.ACTModel, "_forward_train_online", online, raising=False)
    monkeypatch.setattr(
        act.ACTModel,
        "forward",
        lambda self, batch, carry=None: (
            self._forward_train_online(batch, carry) if self.training else self._forward_eval(batch)
        ),
    )
    assert "training ran _forward_train_online, but the class declares ACT_MODE='dynamic'" in fails("DYN718")


def test_a_rank_of_a_launcher_probes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert [f.level for f in look("DYN703")] == ["PASS"]


def test_a_class_outside_of_our_packages_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "models_of_mine.py").write_text(f"open({str(ran)!r}, 'w')\nclass Payload: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = look("MOD420", "arch.name=models_of_mine@Payload")
    assert [f.level for f in found] == ["SKIP"]
    assert not ran.exists()
