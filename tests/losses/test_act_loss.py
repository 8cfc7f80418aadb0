"""Loss head against golden numbers, written-out formulas and the traps of the float32 form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from losses import ACTLossConfig, ACTLossHead, softmax_cross_entropy, stablemax_cross_entropy
from losses.stablemax import log_s
from models.recursive_reasoning.act import ACTCarry, ACTOutput

TAGS = [
    "trm_stablemax_f32_notarget",
    "trm_stablemax_f32_target",
    "trm_stablemax_bf16_notarget",
    "hrm_stablemax_f32_target",
    "hrm_softmax_f32_target",
    "hrm_softmax_bf16_notarget",
]


def outputs_of(z, dtype, target):
    leaf = {k: torch.from_numpy(z[f"in_{k}"]) for k in ("logits", "q_halt", "q_continue", "target_q_continue")}
    for key in ("logits", "q_halt", "q_continue"):
        leaf[key] = (leaf[key].to(dtype) if key == "logits" else leaf[key]).requires_grad_()
    steps, halted = torch.from_numpy(z["in_steps"]), torch.from_numpy(z["in_halted"])
    carry = ACTCarry({}, steps, halted, {"labels": torch.from_numpy(z["in_labels"])})
    target = leaf["target_q_continue"] if target else None
    return leaf, ACTOutput(carry, leaf["logits"], leaf["q_halt"], leaf["q_continue"], target)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_golden(golden, tag, precision):
    z = np.load(golden(f"act_loss_head/{tag}.npz"))
    kind = "stablemax_cross_entropy" if "stablemax" in tag else "softmax_cross_entropy"
    dtype = torch.bfloat16 if "bf16" in tag else torch.float32
    leaf, output = outputs_of(z, dtype, not tag.endswith("notarget"))
    head = ACTLossHead(ACTLossConfig(loss_type=kind, precision=precision))
    result = head(output)
    result.total.backward()
    exact = precision == "float64"
    np.testing.assert_allclose(result.total.item(), z["loss"], rtol=1e-6 if exact else 2e-6)
    # bf16 gradients are rounded to 8 bits, in which a last-bit difference is 0.4 %
    tolerance = {"rtol": 1e-2 if dtype == torch.bfloat16 else 1e-5, "atol": 1e-7 if exact else 1e-6}
    np.testing.assert_allclose(leaf["logits"].grad.float(), z["grad_logits"], **tolerance)
    np.testing.assert_allclose(leaf["q_halt"].grad, z["grad_q_halt"], rtol=1e-5, atol=1e-7)
    if z["grad_q_continue"].size:
        np.testing.assert_allclose(leaf["q_continue"].grad, z["grad_q_continue"], rtol=1e-5, atol=1e-7)
    else:
        assert leaf["q_continue"].grad is None
    for key in z.files:
        name = key.removeprefix("metric_")
        if key.startswith("metric_") and name != "count":
            total, count = result.metrics[name]
            np.testing.assert_allclose(total.item(), z[key], rtol=2e-6)
            assert count.item() == (6 if name.endswith("loss") else z["metric_count"])
    if "preds" in z:
        np.testing.assert_array_equal(result.preds, z["preds"])
    assert result.weight == 6.0


def test_log_stablemax_golden(golden):
    z = np.load(golden("act_loss_head/stablemax_s.npz"))
    x = torch.from_numpy(z["x"])
    np.testing.assert_allclose(log_s(x).exp(), z["s"], rtol=1e-12)
    np.testing.assert_allclose(log_s(x) - log_s(x).logsumexp(-1), z["log_stablemax"], rtol=1e-12)


def test_written_out_values():
    logits = torch.tensor([1.0, -2.0, 0.5, 3.0]).expand(4, 4)
    labels = torch.arange(4)
    stable = [1.3652409519, 3.1570004212, 1.6529230244, 0.6720937714]
    soft = [2.2022536, 5.2022533, 2.7022536, 0.2022535]
    for dtype in (torch.float32, torch.float64):
        np.testing.assert_allclose(stablemax_cross_entropy(logits, labels, dtype=dtype), stable, rtol=1e-6)
        np.testing.assert_allclose(softmax_cross_entropy(logits, labels, dtype=dtype), soft, rtol=1e-6)
    row = logits[0].clone().requires_grad_()
    stablemax_cross_entropy(row, torch.tensor(1)).backward()
    np.testing.assert_allclose(row.grad, [0.1276595745, -0.3191489362, 0.1276595745, 0.1276595745], rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_right_at_the_traps(dtype):
    """At 1 an unclamped form gives NaN, at 0 a sign-times-log form gives 0; s'(x)/s(x) is 1/2 and 1 there."""
    x = torch.tensor([1.0, 0.0, -1.0, 1e4, -1e4], dtype=dtype, requires_grad=True)
    log_s(x).sum().backward()
    np.testing.assert_allclose(x.grad, [0.5, 1.0, 0.5, 1 / 10001, 1 / 10001], rtol=1e-6)


def test_ignored_positions_and_live_metrics():
    torch.manual_seed(0)
    labels = torch.tensor([[1, 2, -100], [-100, -100, -100], [0, -100, 1]], dtype=torch.int32)
    logits = torch.full((3, 3, 4), -1.0)
    logits[0, 0, 1] = logits[0, 1, 2] = logits[2, 0, 0] = logits[2, 2, 3] = 5.0  # row 0 right, row 2 half right
    carry = ACTCarry({}, torch.tensor([2, 3, 4]), torch.tensor([True, True, False]), {"labels": labels})
    metrics = ACTLossHead(ACTLossConfig())(ACTOutput(carry, logits, torch.zeros(3), torch.zeros(3))).metrics
    numbers = {name: (float(total), float(count)) for name, (total, count) in metrics.items()}
    assert numbers["accuracy"] == (1.0, 1.0)
    assert numbers["accuracy_live"] == (1.5, 2.0)
    assert numbers["exact_accuracy_live"] == (1.0, 2.0)
    assert numbers["steps"] == (2.0, 1.0)
    assert numbers["steps_live"] == (6.0, 2.0)
    assert numbers["q_halt_accuracy"] == (1.0, 1.0)
    assert numbers["loss"][1] == 3.0
    assert "q_continue_loss" not in numbers
    diverged = ACTOutput(carry, logits, torch.full((3,), torch.nan), torch.zeros(3))
    assert float(ACTLossHead(ACTLossConfig())(diverged).metrics["q_halt_accuracy"][0]) == 0.0


def test_config_refuses_unknown_choices():
    with pytest.raises(ValueError, match=r"arch\.loss\.loss_type=softmx"):
        ACTLossConfig(loss_type="softmx")


def test_label_smoothing_is_that_of_torch_and_q_weight_scales_the_halting_losses():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 6, 5), torch.randint(0, 5, (4, 6))
    labels[0, 0] = -100
    own = softmax_cross_entropy(logits, labels, smoothing=0.2)
    theirs = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=0.2
    )
    torch.testing.assert_close(own.flatten(), theirs)
    smooth, plain = (stablemax_cross_entropy(logits, labels, smoothing=s) for s in (0.2, 0.0))
    assert (smooth != plain).sum() == 23  # all but the ignored one
    zeros = torch.zeros(4)
    carry = ACTCarry({}, zeros.int(), zeros.bool(), {"labels": labels})
    results = [ACTLossHead(ACTLossConfig(q_weight=w))(ACTOutput(carry, logits, zeros, zeros)) for w in (0.0, 0.5, 2.0)]
    totals = [result.total.item() for result in results]
    assert totals[2] - totals[0] == pytest.approx(4 * (totals[1] - totals[0]), rel=1e-5)
