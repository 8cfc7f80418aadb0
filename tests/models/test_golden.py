"""Whole models against the published code's numbers: steps with carries, gradients, ten updates,
evaluation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.optim import build_optimizer
from losses import ACTLossConfig, ACTLossHead
from models.recursive_reasoning.act import PuzzleShape
from models.recursive_reasoning.hrm import HRM, HRMConfig
from models.recursive_reasoning.trm import TRM, TRMConfig

CASES = {"trm_att_rope": (TRM, TRMConfig), "hrm_rope": (HRM, HRMConfig)}
SHAPE_KEYS = ("seq_len", "vocab_size", "num_puzzle_identifiers")
STEP = {"rtol": 1e-4, "atol": 1e-4}
GRAD = {"rtol": 1e-3, "atol": 1e-5}


class Case:
    def __init__(self, golden, name, **changes):
        model_class, config_class = CASES[name]
        folder = golden(name)
        self.config = json.loads((folder / "meta.json").read_text())["config"]
        shape = PuzzleShape(**{key: self.config.pop(key) for key in SHAPE_KEYS})
        self.config.pop("batch_size")
        self.model = model_class(config_class(**{**self.config, **changes}), shape)
        self.weights = load_file(folder / "weights.safetensors")
        self.model.load_state_dict(self.weights)
        self.head = ACTLossHead(ACTLossConfig(precision="float64"))
        self.outputs = np.load(folder / "outputs.npz")
        self.trajectory = np.load(folder / "trajectory.npz")
        self.grads = load_file(folder / "grads.safetensors")
        raw = np.load(folder / "batches.npz")
        fields = ("inputs", "labels", "puzzle_identifiers")
        self.batches = [{f: torch.from_numpy(raw[f"b{i}_{f}"]) for f in fields} for i in range(6)]

    def gradients(self):
        ids, rows = self.model.puzzle_emb.take_pending()
        gradients = {name: p.grad for name, p in self.model.named_parameters()}
        return ids, {**gradients, "inner.puzzle_emb.local_weights": rows}


@pytest.fixture(params=sorted(CASES))
def case(request, golden):
    return Case(golden, request.param)


def close(ours, theirs, **tolerance):
    np.testing.assert_allclose(ours.detach().to(torch.float64).numpy(), np.asarray(theirs, np.float64), **tolerance)


def test_state_dict_has_the_published_names_and_shapes(case):
    assert {k: v.shape for k, v in case.model.state_dict().items()} == {k: v.shape for k, v in case.weights.items()}


def test_inner_model_alone(case):
    inner, out = case.model.eval().inner, case.outputs
    x = inner.embed(case.batches[0])
    close(x, out["inner_input_embeddings"], **STEP)
    latents, _ = inner.recur({name: torch.from_numpy(out[f"inner_{name}_in"]) for name in ("z_H", "z_L")}, x)
    for name in ("z_H", "z_L"):
        close(latents[name], out[f"inner_{name}_out"], **STEP)
    q_halt, q_continue = inner.q_values(latents)
    for ours, name in ((inner.logits(latents), "logits"), (q_halt, "q_halt"), (q_continue, "q_continue")):
        close(ours, out[f"inner_{name}"], **STEP)


def test_six_training_steps_with_carry_resets(case):
    out, carry = case.outputs, None
    model = case.model.train()
    for i in range(6):
        output = model(case.batches[i], carry)
        carry, result = output.carry, case.head(output)
        model.zero_grad(set_to_none=True)
        result.total.backward()
        ids, grads = case.gradients()
        names = ["logits", "q_halt_logits", "q_continue_logits"]
        names += ["target_q_continue"] if isinstance(model, HRM) else []
        assert (output.target_q_continue is not None) == isinstance(model, HRM)
        for name in names:
            close(getattr(output, name), out[f"train{i}_{name}"], **STEP)
        close(result.total, out[f"train{i}_loss"], rtol=1e-5)
        np.testing.assert_array_equal(carry.steps, out[f"train{i}_carry_steps"])
        np.testing.assert_array_equal(carry.halted, out[f"train{i}_carry_halted"])
        np.testing.assert_array_equal(ids, carry.data["puzzle_identifiers"])
        if i == 5:  # the recorder kept one buffer for all calls: only the last call's identifiers are its own
            np.testing.assert_array_equal(ids, out[f"train{i}_puzzle_local_ids"])
        for name, value in carry.data.items():
            np.testing.assert_array_equal(value, out[f"train{i}_carry_data_{name}"])
        if i in (0, 2, 5):
            for name in ("z_H", "z_L"):
                close(carry.latents[name], out[f"train{i}_carry_{name}"], **STEP)
        if f"train{i}_preds" in out:
            np.testing.assert_array_equal(result.preds, out[f"train{i}_preds"])
        for name in ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps"):
            total, count = result.metrics[name]
            assert count.item() == out[f"train{i}_metric_count"]
            close(total, out[f"train{i}_metric_{name}"], rtol=1e-6)
        for name in ("lm_loss", "q_halt_loss", "q_continue_loss"):
            assert (name in result.metrics) == (f"train{i}_metric_{name}" in out)
            if name in result.metrics:
                close(result.metrics[name][0], out[f"train{i}_metric_{name}"], rtol=1e-4)
        for name, grad in grads.items():
            close(grad.norm(), out[f"train{i}_gradnorm::{name}"], rtol=1e-3, atol=1e-6)
            if i == 0:
                close(grad, case.grads[f"train0::{name}"].numpy(), **GRAD)


def test_every_step_of_an_evaluation(case):
    out = case.outputs
    outputs = list(case.model.eval().think(case.batches[0]))
    assert len(outputs) == out["eval_steps"]
    for i, output in enumerate(outputs):
        for name in ("logits", "q_halt_logits", "q_continue_logits"):
            close(getattr(output, name), out[f"eval{i}_{name}"], **STEP)
        close(case.head(output).total, out[f"eval{i}_loss"], rtol=1e-5)
        assert output.target_q_continue is None
    whole = case.model(case.batches[0])
    assert torch.equal(whole.logits, outputs[-1].logits)
    assert whole.carry.halted.all()
    assert (whole.carry.steps == out["eval_steps"]).all()


def test_ten_updates(case):
    model, want, carry = case.model.train(), case.trajectory, None
    params = dict(model.named_parameters())
    sparse = build_optimizer("sparse_sign_sgd", model.puzzle_emb, 1e-2, {"weight_decay": 0.1})
    dense = build_optimizer("adam_atan2", params, 1e-3, {"beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1})
    for i in range(10):
        output = model(case.batches[i % 6], carry)
        carry, result = output.carry, case.head(output)
        close(result.total, want["loss"][i], rtol=2e-3)
        (result.total / 4).backward()
        sparse.step()
        dense.step()
        model.zero_grad(set_to_none=True)
        np.testing.assert_array_equal(carry.steps, want[f"steps{i}"])
        np.testing.assert_array_equal(carry.halted, want[f"halted{i}"])
    state = model.state_dict()
    for key in want.files:
        kind, _, name = key.partition("::")
        if kind == "norm":
            close(state[name].norm(), want[key], rtol=1e-3)
        elif kind == "final":
            off = np.abs(state[name].numpy() - want[key]) > 2e-4
            assert off.mean() < 0.01, name


def test_bfloat16_is_near(golden):
    """By the loss and by mean differences: in bfloat16 the reference moves single logits by 0.1 from its own float32."""
    for name in CASES:
        case = Case(golden, name, forward_dtype="bfloat16")
        first = next(case.model.eval().think(case.batches[0]))
        assert first.logits.dtype == torch.bfloat16
        assert first.q_halt_logits.dtype == torch.float32
        close(case.head(first).total, case.outputs["bf16_eval0_loss"], rtol=0.02)
        gap = (first.logits.float() - torch.from_numpy(case.outputs["bf16_eval0_logits"])).abs()
        assert gap.mean() < 0.05
        gap = (first.q_halt_logits - torch.from_numpy(case.outputs["bf16_eval0_q_halt_logits"])).abs()
        assert gap.mean() < 0.1
