"""The task of pretrain_etrm.py: slots with streams of their own, frozen groups, diagnostics, decoders, saved positions."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from dataset.arc.pattern import PatternPlan, build_patterns
from engine.checkpoint.state_tree import join_tree, split_tree
from engine.config import load_synced_config
from engine.task import Runtime, UsageError
from scripts.fewshot_report import main, parse
from tasks.etrm.args import ETRMConfig
from tasks.etrm.build import build
from tasks.etrm.diagnostics import context_metrics
from tasks.etrm.encoder_report import names_of, set_ups_of
from tasks.etrm.family import FAMILY
from tasks.etrm.task import SlotPlan
from tests.conftest import ROOT

TINY = (
    "arch.hidden_size=32",
    "arch.num_heads=2",
    "arch.expansion=1.0",
    "arch.halt_max_steps=3",
    "arch.context_len=2",
    "global_batch_size=8",
    "eval_batch_size=8",
    "lr_warmup_steps=0",
    "device=cpu",
)
ONLINE = ("arch=etrm_online", "arch.num_act_steps=2", "~arch.halt_max_steps")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """16 training and 8 test tasks on 4x4 grids, three demonstrations each."""
    folder = tmp_path_factory.mktemp("etrm") / "patterns"
    build_patterns(folder, PatternPlan(side=4, pattern=2, num_train=16, num_test=8, demonstrations=3))
    return folder


def config_of(data: Path, *overrides: str) -> ETRMConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "config"), version_base=None):
        words = [f"data_paths=[{data}]", *TINY, *overrides]
        composed = compose("cfg_pretrain_etrm_overfit", words)
    return load_synced_config(composed, schema=ETRMConfig, entry="pretrain_etrm")


def make(data: Path, *overrides: str, **runtime: Any):
    config = config_of(data, *overrides)
    torch.manual_seed(config.seed)
    values = {"accumulation": config.accumulation, "rank": 0, "world_size": 1, **runtime}
    machine = Runtime(device=torch.device("cpu"), dtype=torch.float32, attention="auto", seed=0, **values)
    return build(config, machine)


def step(task, number: int, *, backward: bool = False) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    task.module.zero_grad(set_to_none=True)
    for micro_batch in task.micro_batches(number):
        loss, _, reported = task.loss(micro_batch)
        if backward:
            loss.backward()
        for name, (total, count) in reported.items():
            old = metrics.get(name, (0.0, 0.0))
            metrics[name] = (old[0] + float(total), old[1] + float(count))
    task.after_step()
    return {name: total / count if count else None for name, (total, count) in metrics.items()}


def test_the_arch_file_is_the_guides_and_another_encoder_brings_its_own(data):
    arch = config_of(data).arch
    assert arch["encoder_type"] == "standard"
    assert arch["halt_exploration_prob"] == 0.5
    names = {
        (): "standard, 2 layers, aggregation mean (as in the table)",
        (
            "arch.encoder_type=hybrid_standard",
        ): "hybrid_standard, 4 layers, aggregation set_transformer (as in the table)",
        ("arch.encoder_type=lpn_standard", "arch.encoder_num_layers=3"): (
            "lpn_standard, 3 layers, aggregation mean (the table has layers 6)"
        ),
    }
    for words, text in names.items():
        assert make(data, *words).task.model.encoder.describe() == text
    arch = {"name": "recursive_reasoning.trm@TRM", "loss": {"name": "losses@ACTLossHead"}}
    with pytest.raises(UsageError, match="DATA_MODE='embedding', this script works with DATA_MODE='encoder'"):
        FAMILY.read_arch(SimpleNamespace(arch=arch))


def test_a_halted_slot_takes_its_next_example_and_nothing_is_thrown_away(data):
    task = make(data, "arch.halt_exploration_prob=0").task
    seen: dict[int, list[torch.Tensor]] = {slot: [] for slot in range(8)}
    for number in range(1, 10):
        if number == 4:  # from now on every other slot halts at once
            task.model._wants_halt = lambda q_halt, q_continue: torch.arange(len(q_halt)) % 2 == 0
        fresh = task._fresh()
        step(task, number)
        for slot in fresh.nonzero().flatten().tolist():
            seen[slot].append(task._carries[0].data["inputs"][slot].clone())
    assert task._taken.tolist() == [len(taken) for taken in seen.values()]
    assert len(set(task._taken.tolist())) > 1  # slots were not in lock-step
    for slot, taken in seen.items():
        for place, inputs in enumerate(taken):
            one = task.sampler.take(torch.tensor([slot]).numpy(), torch.tensor([place]).numpy())
            assert torch.equal(torch.from_numpy(one["inputs"][0]), inputs)


def test_a_fixed_model_takes_an_example_in_every_slot_at_every_step(data):
    task = make(data, *ONLINE).task
    metrics = [step(task, number) for number in range(1, 4)]
    assert task._taken.tolist() == [3] * 8
    assert task._carries == [None]
    assert [line["fresh"] for line in metrics] == [1.0] * 3
    assert metrics[0]["steps"] == 2


def test_the_histogram_of_halting_steps_is_that_of_the_slots(data):
    task = make(data, "arch.halt_exploration_prob=0", "arch.halt_max_steps=2", "halting_metrics=true").task
    line = [step(task, number) for number in (1, 2)][1]
    assert (line["halted_step_01"], line["halted_step_02"], line["steps"]) == (0.0, 1.0, 2.0)
    assert line["fresh"] == 0.0
    assert "discarded" not in line  # a slot that goes on is offered nothing


@pytest.mark.parametrize("mode", [(), ONLINE], ids=["dynamic", "online"])
def test_diagnostics_are_always_on(data, mode):
    task = make(data, *mode, "diagnostics_interval=2", "arch.encoder_type=hybrid_variational").task
    first, second, third = (step(task, number, backward=True) for number in range(1, 4))
    always = ("var_ratio", "mean_cos", "token_cos", "context_rms", "active_units", "fresh", "kl", "sigma")
    assert all(line[name] is not None for line in (first, second, third) for name in always)
    due = ("eff_rank", "context_use", "context_use_exact")
    assert all(second[name] is not None for name in due)
    assert all(line[name] is None for line in (first, third) for name in due)
    assert (first["grad_coverage"], second["grad_coverage"]) == (None, 1.0)
    assert first["context_rms"] == pytest.approx(1.0, abs=1e-3)
    assert first["sigma"] == 1.0  # a fresh posterior has the prior's
    assert second["context_use"] != 0


def test_diagnostics_by_hand():
    g = torch.Generator().manual_seed(0)
    context = torch.randn(6, 2, 4, generator=g)
    groups = torch.tensor([0, 0, 1, 1, 2, 2])
    expected = {
        name: float(total / count) for name, (total, count) in context_metrics(context, groups, None, due=True).items()
    }
    flat = context.flatten(1)
    centred = flat - flat.mean(0)
    assert expected["var_ratio"] == pytest.approx(float(flat.var(0, correction=0).mean() / flat.square().mean()))
    cosines = torch.nn.functional.cosine_similarity(flat[:, None], flat[None], dim=-1)
    assert expected["mean_cos"] == pytest.approx(float(cosines[~torch.eye(6, dtype=bool)].mean()), abs=1e-5)
    tokens = torch.nn.functional.cosine_similarity(context[:, 0], context[:, 1], dim=-1)
    assert expected["token_cos"] == pytest.approx(float(tokens.mean()), abs=1e-5)
    share = torch.linalg.svdvals(centred)
    share = share / share.sum()
    assert expected["eff_rank"] == pytest.approx(float(torch.exp(-(share * share.log()).sum())), rel=1e-3)
    centres = flat.view(3, 2, -1).mean(1)
    within = ((flat.view(3, 2, -1) - centres[:, None]) ** 2).sum() / 3
    between = ((centres - flat.mean(0)) ** 2).mean(0).sum()
    assert expected["fisher"] == pytest.approx(float(between / within), rel=1e-4)
    same = context_metrics(context[:1].expand(6, -1, -1), groups, None, due=True)
    assert float(same["mean_cos"][0]) == pytest.approx(1.0, abs=1e-5)
    assert float(same["var_ratio"][0]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("key", "still"), [("freeze_encoder_steps", "encoder"), ("freeze_decoder_steps", "trunk")])
def test_frozen_groups_do_not_move_and_thaw(data, key, still):
    from engine.loop.trainer import Trainer
    from verification.probes.instance import NoStop

    plan = make(
        data, f"{key}=2", "max_steps=4", "weight_decay=1.0", "grad_clip=1.0", "eval_interval=null", "final_eval=false"
    )
    task = plan.task
    values = {name: [p.detach().clone() for p in params] for name, params in task.model.param_groups().items()}
    moved: list[dict[str, bool]] = []

    class Watch:
        def start(self, trainer): ...

        def after_step(self, trainer):
            groups = task.model.param_groups()
            moved.append(
                {
                    name: any(not torch.equal(a, b) for a, b in zip(values[name], params, strict=True))
                    for name, params in groups.items()
                }
            )
            own = torch.stack(
                [p.grad.norm() for n, ps in groups.items() if n != still for p in ps if p.grad is not None]
            )
            if trainer.step == 1:  # the clipped norm is that of what is trained
                assert float(own.norm()) == pytest.approx(min(1.0, float(trainer._last_norm)), rel=1e-3)
            values.update({name: [p.detach().clone() for p in params] for name, params in groups.items()})

        def after_eval(self, trainer, results): ...

        def end(self, trainer): ...

    config = config_of(data, f"{key}=2", "max_steps=4", "weight_decay=1.0", "grad_clip=1.0", "final_eval=false")
    nothing: Any = lambda *_: None  # noqa: E731
    Trainer(plan, config, task.runtime, save=nothing, write=nothing, stop=NoStop(), hooks=[Watch()]).fit()
    other = "trunk" if still == "encoder" else "encoder"
    assert [line[other] for line in moved] == [True] * 4
    assert [line[still] for line in moved] == [False, False, True, True]


def test_freezing_everything_is_refused(data):
    with pytest.raises(UsageError, match="nothing is trained for 2 steps"):
        config_of(data, "freeze_encoder_steps=2", "freeze_decoder_steps=5")


def test_training_does_not_search_a_context_that_changes_at_every_step(data):
    with pytest.raises(UsageError, match="train_search_steps=2 searches a context that stays"):
        config_of(data, "train_search_steps=2", "arch.encoder_type=recurrent")


def test_the_encoder_has_a_rate_of_its_own(data):
    groups = {group.name: group for group in make(data, "encoder_lr_scale=0.25", "lr=0.004").task.param_groups()}
    assert (groups["encoder"].lr, groups["trunk"].lr) == (0.001, 0.004)
    names = [name for group in groups.values() for name in group.dense]
    assert len(names) == len(set(names)) == len(list(make(data).task.model.parameters()))


def test_training_on_the_first_groups_alone(data):
    task = make(data, "max_train_groups=3", "eval_interval=20").task
    drawn = task.sampler.take(torch.arange(8).repeat(9).numpy(), torch.arange(9).repeat_interleave(8).numpy())
    assert len(set(drawn["group_ids"].tolist())) == 3
    assert task.validation_sampler is not None
    held = {int(g) for _, rows, valid in task.validation_sampler for g in rows["group_ids"][:valid]}
    assert not held & set(drawn["group_ids"].tolist())


def test_groups_held_back_are_not_asked_for_arc_scores(data, capsys):
    """test_puzzles.json has the test tasks alone: their evaluators would do all their work for no vote."""
    names = ("arc@ARC", "arc_controls@ARCControls", "arc_search@ARCLatentSearch", "steps@PerStepAccuracy")
    listed = ",".join(f"{{name: {name}}}" for name in names)
    task = make(data, f"evaluators=[{listed}]", "eval_interval=20", "validation_groups=2").task
    capsys.readouterr()
    for _ in range(2):
        values = task.evaluate(final=False)
        assert "val/exact_accuracy/step_01" in values
        assert not [name for name in values if "ARC" in name]
    note = "note: ARC, ARCControls, ARCLatentSearch: of the test split alone, at the end (select_on=test: each time)\n"
    assert capsys.readouterr().out == note
    values = task.evaluate(final=True)
    assert values["eval/ARC_i_clean/tasks"] == 8
    assert {name.split("/")[0] for name in values if "ARC" in name} == {"eval"}


def test_the_length_of_a_run():
    config = ETRMConfig(arch={}, data_paths=["x"], global_batch_size=8, epochs=10, eval_interval=5)
    plan = SlotPlan(20, config)
    assert plan.total_steps == 25
    assert sorted(plan.evaluation_steps(0)) == [12, 25]
    assert sorted(plan.evaluation_steps(1)) == [25]
    assert SlotPlan(1, config).total_steps == 1


def test_saved_slots_and_positions_go_on_bit_for_bit(data):
    words = ("arch.encoder_type=recurrent", "accumulation=2")
    whole, half = (make(data, *words).task for _ in range(2))
    with torch.no_grad():
        for task in (whole, half):
            task.model.inner.q_head.bias.fill_(0.0)
            task.model.inner.q_head.weight[0].normal_(generator=torch.Generator().manual_seed(0))
    lines = [step(whole, number, backward=True) for number in range(1, 8)]
    for number in range(1, 4):
        step(half, number, backward=True)
    tensors, tree = split_tree(half.state_dict())
    saved = join_tree(tree, tensors)
    again = make(data, *words).task
    again.model.load_state_dict(half.model.state_dict())
    again.load_state_dict(saved)
    assert [step(again, number, backward=True) for number in range(4, 8)] == lines[3:]
    with pytest.raises(ValueError, match="taken holds numbers below 0"):
        again.load_state_dict({**saved, "taken": torch.tensor([-1] * 8)})
    with pytest.raises(UsageError, match="the checkpoint holds 4 slots, which a resume keeps"):
        again.load_state_dict({"taken": torch.zeros(4, dtype=torch.int64)})
    saved["carry"]["data"]["demo_inputs"] = saved["carry"]["data"]["demo_inputs"] + 100
    with pytest.raises(ValueError, match=r"carry\.data\.demo_inputs holds numbers beyond"):
        again.load_state_dict(saved)


@pytest.mark.parametrize("mode", [(), ONLINE], ids=["dynamic", "online"])
def test_evaluation_asks_every_test_once(data, mode):
    plan = make(data, *mode)
    results = plan.task.evaluate(final=True)
    assert set(results) >= {"eval/loss", "eval/accuracy", "eval/exact_accuracy"}
    assert plan.task.final_sampler.num_examples == 8
    assert results == plan.task.evaluate(final=True)


def test_the_report_compares_encoders(data, tmp_path, monkeypatch, capsys):
    kinds = {"a_0": "standard", "a_1": "standard", "b": "lpn_variational"}
    for name in kinds:
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "status.json").write_text("{}")
        lines = [
            {"step": 10, "train/exact_accuracy": 0.5, "train/context_use": 0.25, "time/step_ms": 100},
            {"step": 20, "train/exact_accuracy": 0.92, "train/context_use": None, "time/step_ms": 300},
            {"step": 30, "train/exact_accuracy": 0.9 if name == "a_1" else 0.96},
        ]
        (tmp_path / "runs" / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for other in ("killed", "pretrain"):
        (tmp_path / "runs" / other).mkdir()
        (tmp_path / "runs" / other / "status.json").write_text("{}")
    (tmp_path / "runs/pretrain/config.resolved.yaml").write_text("script: pretrain.py")
    (tmp_path / "runs/c").mkdir()
    (tmp_path / "runs/c/status.json").write_text("{}")
    (tmp_path / "runs/c/metrics.jsonl").write_text('{"step": 3, "train/exact_accuracy": null}')

    def opened(folder: Path, device: str) -> SimpleNamespace:
        words = (f"arch.encoder_type={kinds[folder.name]}", "arch.pairing=cells")
        return SimpleNamespace(plan=make(data, *words))

    monkeypatch.setattr("tasks.etrm.encoder_report.open_checkpoint", opened)
    main(parse([str(tmp_path / "runs"), "--encoders", "--out", str(tmp_path / "report")]))
    out = capsys.readouterr().out
    assert (tmp_path / "report/encoders.md").read_text() in out
    assert f"left out    {tmp_path / 'runs/c'} has no train/exact_accuracy" in out
    assert f"left out    {tmp_path / 'runs/pretrain'} is a run of pretrain.py" in out
    tables = ("learned", "set_ups", "sizes")
    learned, set_ups, sizes = (list(csv.DictReader((tmp_path / f"report/{name}.csv").open())) for name in tables)
    expected = {"exact": 0.96, "loss, other - own": 0.25, "steps to 0.9": 20, "steps": 30, "seconds": 6}
    assert {key: float(learned[0][key]) for key in expected} == expected
    assert learned[0]["eff_rank"] == ""
    expected = {"seeds": 2, "least exact": 0.9, "exact": 0.93, "steps to 0.9": 20}
    assert {key: float(set_ups[0][key]) for key in expected} == pytest.approx(expected)
    assert [(row["set-up"], row["seeds"]) for row in set_ups] == [("a", "2"), ("b", "1")]
    assert [row["layers"] for row in sizes] == ["2", "6"]
    assert [row["pair [L, D]"] for row in sizes] == ["[20, 32]", "[21, 32]"]
    assert [row["latent [Z]"] for row in sizes] == ["", "[32]"]
    assert {row["context [T, D]"] for row in sizes} == {"[2, 32]"}
    names = {tmp_path / "x/a_0": "x/a_0", tmp_path / "y/a_0": "y/a_0", tmp_path / "y/a_1": "y/a_1"}
    assert names_of([*names], tmp_path) == names
    assert [*set_ups_of(names)] == ["x/a", "y/a"]
    with pytest.raises(UsageError, match="has no runs: expected a folder of runs"):
        main(parse([str(tmp_path / "report"), "--encoders"]))
    with pytest.raises(UsageError, match="c has no train/exact_accuracy: expected runs of pretrain_etrm"):
        main(parse([str(tmp_path / "runs/c"), "--encoders"]))
    with pytest.raises(SystemExit):
        parse([str(tmp_path / "runs"), "--encoders", "--step", "3"])
    assert "--step has no meaning with --encoders" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["standard", "lpn_variational"])
def test_training_may_search_at_the_beginning_of_each_example(data, kind):
    words = (f"arch.encoder_type={kind}", "arch.encoder_num_layers=1", "query_policy=leave_one_out")
    plain, task = make(data, *words).task, make(data, *words, "train_search_steps=3").task
    (_, before), (_, batch) = (next(iter(each.micro_batches(1))) for each in (plain, task))
    assert "shift" not in before
    assert batch["shift"].shape == ((8, 2, 32) if kind == "standard" else (8, 32))
    assert (batch["shift"] != 0).flatten(1).any(1).any()
    model = task.model.train()
    shown = (batch[name] for name in ("demo_inputs", "demo_labels", "demo_mask"))
    encoded = model.encoder(*shown, noise=batch.get("noise"))
    if kind == "standard":
        expected = encoded.context + batch["shift"]
    else:
        expected = model.encoder.context_of(encoded.latent + batch["shift"])
    torch.testing.assert_close(model.inner.embed(batch)["context"], expected)
    carry = model(batch).carry
    assert torch.equal(carry.data["shift"], batch["shift"])
    # an example keeps what was found for it, and the state of a run holds it
    step(task, 1)
    kept = task._carries[0].data["shift"]
    (_, second) = next(iter(task.micro_batches(2)))
    assert torch.equal(second["shift"] != 0, torch.zeros_like(second["shift"]).bool())
    task.loss((0, second))
    assert torch.equal(task._carries[0].data["shift"], kept)
    stored = task.state_dict()["carry"]["data"]["shift"]
    assert torch.equal(stored.tensor if hasattr(stored, "tensor") else stored, kept)
    assert all(p.grad is None for p in model.parameters())
