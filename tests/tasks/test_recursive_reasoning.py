"""The task of pretrain.py: slots, micro-batches, exploration, evaluation and saved rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from engine.checkpoint.state_tree import gather_tree, join_tree, split_tree
from engine.config import load_synced_config
from engine.task import Interrupted, Runtime, UsageError
from tasks.recursive_reasoning.args import PretrainConfig
from tasks.recursive_reasoning.build import build
from tasks.recursive_reasoning.epochs import EpochPlan
from tests.conftest import ROOT


def make(data: Path, *overrides: str, stop: bool = False, **runtime: Any):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "config"), version_base=None):
        composed = compose(
            "cfg_pretrain_sudoku_4x4",
            ["+debug=tiny", f"data_paths=[{data / 'debug-sudoku-4x4'}]", "global_batch_size=8", *overrides],
        )
    config = load_synced_config(composed, schema=PretrainConfig, entry="pretrain")
    torch.manual_seed(config.seed)
    values = {"accumulation": config.accumulation, "rank": 0, "world_size": 1, **runtime}
    machine = Runtime(
        device=torch.device("cpu"),
        dtype=torch.float32,
        attention="auto",
        seed=0,
        stop_requested=lambda: stop,
        **values,
    )
    return build(config, machine)


def step(task, number: int) -> list:
    carries = []
    for micro_batch in task.micro_batches(number):
        task.loss(micro_batch)
        carries.append(task._carries[micro_batch[0]])
    return carries


def test_a_slot_keeps_its_puzzle_until_it_halts(tiny_data: Path) -> None:
    task = make(tiny_data, "arch.halt_max_steps=3").task
    boards = [step(task, number)[0].data["inputs"].clone() for number in range(1, 6)]
    assert boards[0].dtype == torch.int32  # sent as int8
    fresh = [torch.from_numpy(task.sampler.batch(1, index)["inputs"]) for index in range(5)]
    assert torch.equal(boards[0], fresh[0])
    assert torch.equal(boards[1], fresh[0])
    assert torch.equal(boards[2], fresh[0])
    assert torch.equal(boards[3], fresh[3])  # fresh examples 2 and 3 were offered and dropped


def test_histogram_of_halting_steps_and_what_becomes_of_offers(tiny_data: Path) -> None:
    options = ("arch.halt_max_steps=3", "arch.eval_halting=latched", "accumulation=2")
    plain, task = (make(tiny_data, *options, *more).task for more in ((), ("halting_metrics=true",)))
    for one in (plain, task):
        # slot k of a piece wants to halt at once where k is even; the others go on to the third step
        one.model._wants_halt = lambda q_halt, q_continue: torch.arange(len(q_halt)) % 2 == 0
    before = torch.ones(8, dtype=torch.bool)
    for number in range(1, 7):
        made = [[one.loss(batch)[2] for batch in one.micro_batches(number)] for one in (plain, task)]
        assert [set(metrics) - set(known) for known, metrics in zip(*made, strict=True)] == 2 * [
            {"halted_step_01", "halted_step_02", "halted_step_03", "fresh", "discarded"}
        ]
        for known, metrics in zip(*made, strict=True):
            assert all(torch.equal(value[0], metrics[name][0]) for name, value in known.items())
        sums = {
            name: [sum(float(metrics[name][k]) for metrics in made[1]) for k in (0, 1)]
            for name in ("halted_step_01", "halted_step_02", "halted_step_03", "steps", "fresh", "discarded")
        }
        taken = torch.cat([carry.steps[carry.halted] for carry in task._carries])
        for k in (1, 2, 3):
            assert sums[f"halted_step_{k:02d}"] == [int((taken == k).sum()), len(taken)]
        assert sum(k * sums[f"halted_step_{k:02d}"][0] for k in (1, 2, 3)) == sums["steps"][0]  # their mean is `steps`
        assert sums["fresh"] == [int(before.sum()), 8]
        assert sums["discarded"] == [8 - int(before.sum()), 8]
        before = torch.cat([carry.halted for carry in task._carries])
    own, with_bars = plain.evaluate(final=True), task.evaluate(final=True)
    assert own.items() <= with_bars.items()
    shares = {name: with_bars[name] for name in with_bars.keys() - own.keys()}
    assert set(shares) == {f"eval/halted_step_0{k}" for k in (1, 2, 3)}
    assert sum(shares.values()) == pytest.approx(1)
    assert sum(int(name[-1]) * share for name, share in shares.items()) == pytest.approx(with_bars["eval/steps"])


def test_exploration_keeps_willing_slots_thinking(tiny_data: Path) -> None:
    halted = {}
    for probability in (0, 1):
        task = make(tiny_data, f"arch.halt_exploration_prob={probability}", "arch.halt_max_steps=8").task
        with torch.no_grad():
            task.model.inner.q_head.bias.fill_(5.0)  # every slot wants to halt at once
        halted[probability] = step(task, 1)[0].halted
    assert halted[0].all()
    assert not halted[1].any()


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_micro_batches_are_the_rows_of_the_global_batch(tiny_data: Path, accumulation: int) -> None:
    whole = next(iter(make(tiny_data).task.micro_batches(3)))[1]
    pieces = [batch for _, batch in make(tiny_data, f"accumulation={accumulation}").task.micro_batches(3)]
    assert len(pieces) == accumulation
    for name, rows in whole.items():
        assert torch.equal(torch.cat([piece[name] for piece in pieces]), rows)


def test_ranks_see_their_rows_and_their_exploration(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = next(iter(make(tiny_data).task.micro_batches(2)))[1]
    parts = []
    for number in range(2):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", str(number))
        parts.append(next(iter(make(tiny_data, rank=number, world_size=2).task.micro_batches(2)))[1])
    for name, rows in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), rows)


def test_saved_rows_fit_any_accumulation(tiny_data: Path) -> None:
    task = make(tiny_data, "accumulation=4").task
    for number in (1, 2):
        step(task, number)
    tensors, tree = split_tree(gather_tree(task.state_dict(), lambda rows: rows))
    other = make(tiny_data, "accumulation=2").task
    other.load_state_dict(join_tree(tree, tensors))
    ours, theirs = (torch.cat([carry.latents["z_H"] for carry in t._carries]) for t in (task, other))
    assert torch.equal(ours, theirs)
    assert [len(carry.steps) for carry in other._carries] == [4, 4]


def test_a_slot_that_is_not_finite_starts_again(tiny_data: Path) -> None:
    task = make(tiny_data, "arch.halt_max_steps=8").task
    step(task, 1)
    task._carries[0].latents["z_L"][3, 0, 0] = float("nan")
    task.after_step()
    assert task._carries[0].halted.tolist() == [row == 3 for row in range(8)]
    assert torch.isfinite(step(task, 2)[0].latents["z_L"]).all()


def test_evaluation_is_deterministic_and_leaves_training_alone(tiny_data: Path) -> None:
    plan = make(tiny_data, "eval_max_examples=5", "final_eval_max_examples=null", "eval_batch_size=4")
    task = plan.task
    step(task, 1)
    before = task._carries[0].latents["z_H"].clone()
    first = task.evaluate(final=True)
    assert first == task.evaluate(final=True)
    assert first != task.evaluate(final=False)
    assert torch.equal(before, task._carries[0].latents["z_H"])
    assert set(first) >= {"eval/accuracy", "eval/exact_accuracy", "eval/lm_loss", "eval/q_halt_accuracy"}


def test_padding_rows_count_in_no_mean(tiny_data: Path) -> None:
    whole = make(tiny_data, "final_eval_max_examples=null", "eval_batch_size=16").task.evaluate(final=True)
    padded = make(tiny_data, "final_eval_max_examples=null", "eval_batch_size=11").task.evaluate(final=True)
    assert padded == pytest.approx(whole, abs=1e-5)


def test_a_test_split_without_examples_is_refused_before_training(tiny_data: Path) -> None:
    from tasks.recursive_reasoning import build as building

    def none(folders, split, **kwargs):
        splits = load(folders, split, **kwargs)
        arrays = {name: getattr(splits[0], name)[:0] for name in ("inputs", "labels", "puzzle_identifiers")}
        offsets = {name: getattr(splits[0], name)[:1] for name in ("puzzle_indices", "group_indices")}
        return [replace(splits[0], **arrays, **offsets)] if split == "test" else splits

    load = building.load_splits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "load_splits", none)
        with pytest.raises(UsageError, match=r"debug-sudoku-4x4: no examples in the test split.*data_paths_test"):
            make(tiny_data)
        assert make(tiny_data, "final_eval=false").task.final_sampler.num_examples == 0


def test_figures_of_one_name_are_reported(tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tiny_data, f"{PER_STEP[:-1]}, {{name: steps@PerStepAccuracy, confidence: 0.5}}]").task.evaluate(final=True)
    assert "two evaluators have a figure eval/exact_accuracy_" in capsys.readouterr().out


PER_STEP = "evaluators=[{name: steps@PerStepAccuracy}]"


@pytest.mark.parametrize("evaluators", ["evaluators=[]", PER_STEP])
def test_latched_evaluation_reports_its_steps_and_keeps_answers(tiny_data: Path, evaluators: str) -> None:
    results = {}
    for bias in (5.0, -5.0):
        overrides = ("arch.eval_halting=latched", "arch.halt_max_steps=4", "eval_batch_size=11", evaluators)
        task = make(tiny_data, *overrides).task
        with torch.no_grad():
            task.model.inner.q_head.bias.fill_(bias)
        results[bias] = task.evaluate(final=True)
        fixed = make(tiny_data, "arch.halt_max_steps=4", "eval_batch_size=11", evaluators).task
        fixed.model.load_state_dict(task.model.state_dict())
        usual = fixed.evaluate(final=True)
        assert "eval/steps" not in usual
        if bias < 0:  # no row ever wants to halt: the two are one
            assert {**usual, "eval/steps": 4.0} == results[bias]
    assert results[5.0]["eval/steps"] == 1.0
    if evaluators == PER_STEP:
        accuracy = [results[5.0][f"eval/accuracy/step_{n:02d}"] for n in range(1, 5)]
        assert accuracy == [results[5.0]["eval/accuracy"]] * 4


def test_statistics_of_the_embedding_rows_of_a_batch(tiny_data: Path) -> None:
    task = make(tiny_data, "arch.puzzle_emb_ndim=32", "arch.puzzle_emb_len=1", "accumulation=2").task
    table = task.model.puzzle_emb
    seen = []
    for number in (1, 2):
        for micro_batch in task.micro_batches(number):
            *_, metrics = task.loss(micro_batch)
            ids = task._carries[micro_batch[0]].data["puzzle_identifiers"].tolist()
            norms = [sum(v * v for v in table.weights[i].tolist()) ** 0.5 for i in ids]
            assert [float(v) for v in metrics["emb_norm"]] == pytest.approx([sum(norms), 4])
            assert [float(v) for v in metrics["emb_untrained"]] == [norms.count(0.0), 4]
            seen.append(norms)
        table.weights[0] = torch.arange(32) / 10  # as an optimizer would
    assert seen[0] != seen[2]
    *_, metrics = (bare := make(tiny_data).task).loss(next(iter(bare.micro_batches(1))))
    assert not any(name.startswith("emb_") for name in metrics)


def test_evaluation_stops_when_asked(tiny_data: Path) -> None:
    task = make(tiny_data, stop=True).task
    with pytest.raises(Interrupted):
        task.evaluate(final=True)


def test_frozen_weights_train_the_embedding_only(tiny_data: Path) -> None:
    task = make(tiny_data, "freeze_weights=true", "arch.puzzle_emb_ndim=32", "arch.puzzle_emb_len=1").task
    assert [group.name for group in task.param_groups()] == ["puzzle_emb"]
    with pytest.raises(UsageError, match="puzzle_emb_ndim"):
        make(tiny_data, "freeze_weights=true")


def test_muon_takes_the_matrices_of_the_blocks_cut_into_their_parts(tiny_data: Path) -> None:
    plan = make(tiny_data, "+optimizer=muon", "+optimizer.rest.lr=1e-4", "arch.mlp_t=false", "arch.registers=2")
    matrices, rest = plan.task.param_groups()
    assert (matrices.name, matrices.optimizer, matrices.lr) == ("trunk_matrices", "muon", 2e-3)
    assert (rest.name, rest.optimizer, rest.lr) == ("trunk", "adamw", 1e-4)
    model, block = plan.task.model, "inner.L_level.layers.0"
    assert set(matrices.dense) == {name for name, _ in model.named_parameters() if name.startswith(block)}
    heads, width, inner = model.config.num_heads, model.config.head_width, model.blocks()[0].mlp.inner
    assert matrices.fused_rows == {
        f"{block}.self_attn.qkv_proj.weight": (width,) * 3 * heads,
        f"{block}.mlp.gate_up_proj.weight": (inner, inner),
    }
    assert "inner.registers" in rest.dense
    assert model.inner.prefix_len == 2
    assert step(plan.task, 1)[0].latents["z_H"].shape[1] == 16 + 2


def test_total_steps_ends_the_schedule_with_the_run(tiny_data: Path) -> None:
    plan = make(tiny_data, "epochs=2", "total_steps=7", "lr_min_ratio=0", "lr_warmup_steps=0")
    assert plan.total_steps == 7
    assert plan.schedule(7) == 0
    assert make(tiny_data, "epochs=2", "total_steps=17").total_steps == 16


def test_a_depth_curriculum_follows_the_step_and_evaluations_are_at_full_depth(tiny_data: Path) -> None:
    stages = "arch.cycles_schedule=[[0,1,1],[0.25,2,1],[0.5,2,2]]"
    deep = ("arch.L_cycles=2", "arch.H_cycles=2", "epochs=2", "total_steps=8")
    plan = make(tiny_data, stages, *deep)
    inner, updates = plan.task.model.inner, []
    for number in (1, 2, 3, 4, 5, 8, 2):  # the stage is read from the step: a resume inside one needs no state
        step(plan.task, number)
        updates.append((len(inner.plan), inner.window))
    assert updates == [(2, 2), (2, 2), (3, 3), (3, 3), (6, 3), (6, 3), (2, 2)]
    plan.task.evaluate(final=True)
    assert len(inner.plan) == 6
    whole = make(tiny_data, *deep)
    assert whole.task.evaluate(final=True) == make(tiny_data, stages, *deep).task.evaluate(final=True)


def test_fresh_rows_come_with_the_keys_of_their_place_in_the_global_batch(tiny_data: Path) -> None:
    noisy = ("arch.latent_init=random", "arch.update_noise=0.1", "arch.puzzle_emb_ndim=0")
    whole = [batch["keys"] for _, batch in make(tiny_data, *noisy).task.micro_batches(3)]
    cut = [batch["keys"] for _, batch in make(tiny_data, *noisy, "accumulation=2").task.micro_batches(3)]
    assert torch.equal(torch.cat(cut), whole[0])
    assert len(whole[0].unique()) == 8
    plan, rest = make(tiny_data, *noisy), make(tiny_data, *noisy)
    step(plan.task, 1)
    tensors, tree = split_tree(gather_tree(plan.task.state_dict(), lambda rows: rows))
    rest.task.load_state_dict(join_tree(tree, tensors))
    ours, stored = (made.task._carries[0].latents for made in (plan, rest))
    assert set(ours) == {"z_H", "z_L", "noise_key"}
    assert all(torch.equal(ours[name], stored[name]) for name in ours)


def test_late_states_and_chains_are_drawn_by_the_step_alone(tiny_data: Path) -> None:
    drawn = ("arch.late_states=0.5", "arch.late_steps=[1,3]", "arch.chains=2", "arch.halt_max_steps=3")
    whole, rest = make(tiny_data, *drawn).task, make(tiny_data, *drawn).task
    taken = [whole._late_steps(number) for number in range(1, 41)]
    assert {0, 1, 3} == set(taken)
    assert 10 < taken.count(0) < 30
    late = 1 + next(number for number in range(2, 40) if taken[number])
    step(whole, late - 1)
    tensors, tree = split_tree(gather_tree(whole.state_dict(), lambda rows: rows))
    rest.load_state_dict(join_tree(tree, tensors))
    for number in (late, late + 1):
        ours, theirs = step(whole, number)[0], step(rest, number)[0]
        assert all(torch.equal(ours.latents[name], theirs.latents[name]) for name in ours.latents)
        assert torch.equal(ours.data["inputs"], theirs.data["inputs"])


def test_online_augmentation_offers_copies_that_are_right_and_no_test_board(tiny_data: Path) -> None:
    task = make(tiny_data, "online_augmentation=true", "accumulation=2").task
    stored, tests = task.sampler.batch(1, 0), task.final_sampler.splits[0].labels
    offered = task._offered(1, 0, 8)
    halves = [task._offered(1, low, low + 4) for low in (0, 4)]
    assert all((np.concatenate([half[name] for half in halves]) == offered[name]).all() for name in offered)
    assert (offered["labels"] != stored["labels"]).any(axis=1).sum() >= 6
    assert ((offered["inputs"] == offered["labels"]) | (offered["inputs"] == 1)).all()
    assert (np.sort(offered["labels"].reshape(-1, 4, 4), axis=2) == np.arange(2, 6)).all()
    assert (task._offered(2, 0, 8)["labels"] != offered["labels"]).any()
    answers = {row.tobytes() for row in np.asarray(tests).astype(np.int8)}
    assert task._copies.forbidden == answers
    many = np.concatenate([task._offered(number, 0, 8)["labels"] for number in range(1, 9)])
    assert not answers & {row.tobytes() for row in many}
    task._copies.forbidden = {row.tobytes() for row in offered["labels"]}
    assert (task._offered(1, 0, 8)["labels"] == stored["labels"]).all()


def test_a_grid_that_does_not_fit_the_positions_names_the_key(tiny_data: Path) -> None:
    # tiny boards are square: cut the shape where the data say how long an example is
    from tasks.recursive_reasoning import build as building

    def shorter(folders, split, **kwargs):
        splits = load(folders, split, **kwargs)
        object.__setattr__(splits[0].metadata, "seq_len", 12)
        return splits

    load = building.load_splits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "load_splits", shorter)
        with pytest.raises(UsageError, match=r"arch\.pos_encodings=rope_2d needs a square grid, the data have 12"):
            make(tiny_data, "arch.mlp_t=false", "arch.pos_encodings=rope_2d")


@pytest.mark.parametrize(("world", "accumulation"), [(3, 1), (1, 3), (2, 3)])
def test_a_batch_that_does_not_divide_names_the_key(tiny_data: Path, world: int, accumulation: int) -> None:
    with pytest.raises(UsageError, match="global_batch_size=8"):
        make(tiny_data, f"accumulation={accumulation}", world_size=world)


def test_epochs_are_counted_in_real_batches(tiny_data: Path) -> None:
    plan = make(tiny_data, "epochs=6", "eval_interval=2", "min_eval_interval=1", "select_on=test")
    assert plan.total_steps == 6 * 64 // 8
    assert set(plan.eval_steps) == {32, 48}
    assert [plan.task.plan.locate(number) for number in (1, 16, 17, 48)] == [(1, 0), (1, 15), (2, 0), (3, 15)]


@pytest.mark.parametrize(
    ("changes", "alike"),
    [
        ((), True),
        (("eval_max_examples=2",), False),
        (("eval_max_examples=2", "final_eval_max_examples=2"), True),
        (("eval_max_examples=100000",), True),  # more than there are
    ],
)
def test_whether_the_final_evaluation_covers_what_the_others_do(tiny_data: Path, changes: tuple, alike: bool) -> None:
    plan = make(tiny_data, "eval_max_examples=null", "final_eval_max_examples=null", *changes)
    assert plan.final_like_others is alike


class Iterations:
    """A sampler, as far as `EpochPlan` asks it: seven batches in each iteration, or as many as its number."""

    epochs_per_iter = 1

    def __init__(self, *, equal: bool) -> None:
        self.equal_iterations = equal

    def batches_in(self, iteration: int) -> int:
        return 7 if self.equal_iterations else iteration


def test_evaluation_steps_are_a_formula() -> None:
    plan = EpochPlan(Iterations(equal=True), 10**15)
    assert plan.total_steps == 7 * 10**15
    assert plan.locate(7 * 10**14 + 1) == (10**14 + 1, 0)
    steps = plan.evaluation_steps(3)
    assert (21 in steps, 28 in steps, 29 in steps) == (False, True, False)
    assert EpochPlan(Iterations(equal=False), 3).evaluation_steps(0) == {1, 3, 6}
    with pytest.raises(UsageError, match="eval_interval=1 cuts the run into 1000000000 parts"):
        EpochPlan(Iterations(equal=False), 10**9)


@pytest.mark.parametrize(
    ("epochs", "interval", "offered"),
    [(10, 4, 5), (10**12, 7, 8), (2**62, 3, 2), (9_999_999_967, 5, 1), (50_000, 7000, 6250)],
)
def test_the_divisor_offered_is_found_at_once(epochs: int, interval: int, offered: int) -> None:
    with pytest.raises(ValueError, match=f"eval_interval={offered}$"):
        PretrainConfig(arch={}, data_paths=["x"], epochs=epochs, eval_interval=interval)
