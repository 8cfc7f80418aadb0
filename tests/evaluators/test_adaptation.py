"""Few-shot models at test time: other demonstrations, search among latents, training on a task's own demonstrations."""

from __future__ import annotations

import copy
import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dataset.arc.augment import Augmentation
from dataset.arc.build import ArcBuild, build_subsets
from dataset.arc.corpus.generate import CorpusPlan, generate
from dataset.arc.tokens import to_tokens
from dataset.fewshot import FewShotEvalSampler, few_shot
from dataset.format import load_splits
from engine.distributed import keyed_numpy
from engine.errors import UsageError
from evaluators.adaptation.examples import Originals, augment, demonstration_pairs, draw_augmentations, leave_one_out
from evaluators.adaptation.search import (
    Objective,
    SearchConfig,
    Space,
    all_iterates,
    answer,
    held_out_scores,
    iterates,
    search,
    split_rows,
)
from evaluators.adaptation.training import Examples, TrainingConfig, fit_tokens, fit_weights, losses
from evaluators.arc import ARCConfig
from evaluators.arc_adapt import ARCTestTimeTraining, ARCTestTimeTrainingConfig
from evaluators.arc_controls import LABELS, ARCControls, ARCControlsConfig
from evaluators.arc_search import ARCLatentSearch, ARCLatentSearchConfig
from losses import ACTLossConfig, ACTLossHead
from models.recursive_reasoning.act import PuzzleShape
from models.recursive_reasoning.etrm import TRMWithEncoder, TRMWithEncoderConfig
from scripts.fewshot_report import main, parse

SHAPE = PuzzleShape(36, 12, 1, 0)
HEAD = ACTLossHead(ACTLossConfig(loss_type="softmax_cross_entropy"))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """Five held-out tasks with an augmented copy each, of 1 to 4 demonstrations."""
    root = tmp_path_factory.mktemp("few") / "set"
    corpus = CorpusPlan(side=6, families="few", num_train=2, num_test=5, num_novel=0, demonstrations=(1, 4))
    plan = ArcBuild(output_dir=root, test_sets=("evaluation",), num_aug=1, canvas=6, data_mode="encoder", workers=1)
    build_subsets(plan, lambda: generate(corpus))
    return few_shot(load_splits([root], "test"))


def model_of(kind: str = "standard", dtype=torch.float32, **keys) -> TRMWithEncoder:
    torch.manual_seed(0)
    config = TRMWithEncoderConfig(
        encoder_type=kind,
        encoder_num_layers=1,
        hidden_size=32,
        num_heads=2,
        expansion=1.0,
        L_layers=1,
        H_cycles=1,
        L_cycles=1,
        context_len=2,
        halt_max_steps=2,
        pos_encodings="rope_2d",
        **keys,
    )
    return TRMWithEncoder(config, SHAPE, auto_dtype=dtype).to(dtype).eval()


@pytest.fixture(scope="module")
def batch(splits) -> dict[str, torch.Tensor]:
    (arrays,) = [arrays for _, arrays, _ in FewShotEvalSampler(splits, 10)]
    return {name: torch.from_numpy(values) for name, values in arrays.items()}


def part(batch, rows) -> dict[str, torch.Tensor]:
    return {name: values[rows] for name, values in batch.items()}


def weights(model) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


def unchanged(model, before) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True)) and all(
        p.grad is None for p in model.parameters()
    )


# --- examples ---------------------------------------------------------------------------------------------------------


def test_grids_are_turned_and_recoloured_with_their_border():
    generator = np.random.default_rng(0)
    grids = [generator.integers(0, 10, generator.integers(1, 7, 2)).astype(np.uint8) for _ in range(16)]
    changes = [Augmentation(k % 8, "0" + "".join(map(str, 1 + generator.permutation(9)))) for k in range(16)]
    tokens = np.stack([to_tokens(grid, 6) for grid in grids] + [np.zeros(36, dtype=np.uint8)]).astype(np.int32)
    tids = np.array([change.tid for change in changes] + [3])
    tables = np.stack([change.table for change in [*changes, changes[0]]]).astype(np.int64)
    out = augment(tokens, tids, tables)
    for grid, change, made in zip(grids, changes, out, strict=False):
        assert (made == to_tokens(change.apply(grid), 6)).all()
    assert (out[-1] == 0).all()
    assert out.dtype == tokens.dtype


def test_every_demonstration_is_asked_with_the_others(batch):
    folds, owner = leave_one_out(batch)
    counts = batch["demo_mask"].sum(1)
    assert owner.tolist() == [row for row in range(10) if counts[row] > 1 for _ in range(counts[row])]
    assert (counts == 1).any()
    for number, row in enumerate(owner.tolist()):
        assert folds["demo_mask"][number].sum() == counts[row] - 1
        hidden = (batch["demo_mask"][row] & ~folds["demo_mask"][number]).nonzero().item()
        assert torch.equal(folds["inputs"][number], batch["demo_inputs"][row, hidden])
        labels = batch["demo_labels"][row, hidden]
        assert torch.equal(folds["labels"][number], torch.where(labels == 0, -100, labels))
    assert len(demonstration_pairs(batch).owner) == counts.sum()


# --- search -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["standard", "lpn_variational"])
@pytest.mark.parametrize("mode", ["gradient_ascent", "random_search"])
def test_search_finds_better_latents_and_changes_no_weight(batch, kind, mode):
    model = model_of(kind)
    before, space = weights(model), Space(model)
    config = SearchConfig(mode=mode, budgets=[0, 2, 6], scale=0.3)
    result, again = (search(space, batch, HEAD.token_loss, config, seed=1) for _ in range(2))
    assert unchanged(model, before)
    for budget in (0, 2, 6):
        assert torch.equal(result.latents[budget], again.latents[budget])
    assert torch.equal(result.scores[0], result.first)
    assert sorted(result.runners_up) == [2, 6]  # of one point there is no second
    assert (result.scores[2] >= result.scores[0]).all()
    assert (result.scores[6] >= result.scores[2]).all()
    assert result.scores[6].mean() > result.first.mean()
    objective = Objective(space, batch, HEAD.token_loss, config, 1)
    torch.testing.assert_close(objective(result.latents[6]), result.scores[6])
    path = torch.stack([score for _, score in iterates(objective, space.start(batch), config, 1)])
    torch.testing.assert_close(objective(result.runners_up[6]), path.sort(dim=0, descending=True)[0][1])
    with torch.no_grad():
        own = model(batch)
    answers, q_halt = answer(space, batch, result.latents[0])  # budget 0 is the model's own answer
    assert torch.equal(answers, own.logits.argmax(-1))
    torch.testing.assert_close(q_halt, own.q_halt_logits)
    rows = torch.tensor([7, 2])
    alone = search(space, part(batch, rows), HEAD.token_loss, config, seed=1)
    torch.testing.assert_close(alone.latents[6], result.latents[6][rows], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["standard", "hybrid_variational"])
def test_the_gradient_is_that_of_finite_differences(batch, kind):
    space = Space(model_of(kind, torch.float64))
    objective, z = Objective(space, batch, HEAD.token_loss, SearchConfig(demo_augs=2)), space.start(batch)
    assert z.dtype == torch.float64
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(objective(z).sum(), z)
    direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=z.dtype)
    step = 1e-5
    with torch.no_grad():
        slope = (objective(z + step * direction) - objective(z - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).flatten(1).sum(1), slope, rtol=1e-6, atol=1e-8)


def test_a_demonstration_that_is_left_out_chooses_the_number_of_updates(batch):
    space, config = Space(model_of()), SearchConfig(budgets=[0, 5], select="leave_one_out", lr=0.5)
    worth = held_out_scores(space, batch, HEAD.token_loss, config, 0)
    assert worth.shape == (6, 10)
    single = batch["demo_mask"].sum(1) == 1
    assert (worth[:, single] == 0).all()
    result = search(space, batch, HEAD.token_loss, config)
    assert torch.equal(result.steps, worth.argmax(0))
    assert (result.steps[single] == 0).all()
    # by hand for one row and one of its demonstrations
    row = int((~single).nonzero()[0])
    folds, owner = leave_one_out(part(batch, torch.tensor([row])))
    path = iterates(Objective(space, folds, HEAD.token_loss, config), space.start(folds), config, 0)
    total = 0.0
    for fold in range(len(owner)):
        one = part(folds, torch.tensor([fold]))
        logits = space.model.decode_with_context(one, path[3][0][fold : fold + 1]).logits
        loss = HEAD.token_loss(logits, one["labels"])
        total -= float(loss.detach().sum() / (one["labels"] != -100).sum())
    assert worth[3, row].item() == pytest.approx(total / len(owner), rel=1e-5)


@pytest.mark.parametrize("more", [{"num_perturbations": 2}, {"include_all_latents": True}])
@pytest.mark.parametrize("select", ["best", "leave_one_out"])
def test_further_starts_add_iterates_and_leave_those_of_the_first(batch, more, select):
    space = Space(model_of("lpn_variational"))
    one, several = (
        search(space, batch, HEAD.token_loss, SearchConfig(budgets=[0, 1, 4], select=select, **keys))
        for keys in ({}, more)
    )
    assert torch.equal(one.latents[0], several.latents[0])  # budget 0 is the encoder's own
    objective = Objective(space, batch, HEAD.token_loss, SearchConfig())
    torch.testing.assert_close(objective(several.latents[4]), several.scores[4])
    points, scores, updates = all_iterates(objective, batch, SearchConfig(budgets=[4], **more), 0)
    starts = points[updates == 0]
    assert len(starts) == (3 if "num_perturbations" in more else 1 + batch["demo_mask"].shape[1])
    assert torch.equal(points[:5], all_iterates(objective, batch, SearchConfig(budgets=[4]), 0)[0])
    if select == "best":
        assert (several.scores[4] >= one.scores[4]).all()
        assert torch.equal(several.scores[4], scores.max(0).values)
    if "include_all_latents" in more:
        mean = (starts[1:] * batch["demo_mask"].t().unsqueeze(-1)).sum(0) / batch["demo_mask"].sum(1, keepdim=True)
        torch.testing.assert_close(mean, starts[0])  # z is the mean of the demonstrations' latents
        assert torch.equal(
            starts[1:][~batch["demo_mask"].t()], starts[0].expand_as(starts[1:])[~batch["demo_mask"].t()]
        )


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_steps_of_gradient_ascent_by_hand(batch, schedule):
    space, config = Space(model_of()), SearchConfig(budgets=[3], optimizer="sgd", lr=0.2, lr_schedule=schedule)
    objective = Objective(space, batch, HEAD.token_loss, config)
    points, *_ = all_iterates(objective, batch, config, 0)
    for number in range(3):
        z = points[number].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(z).sum(), z)
        norm = gradient.flatten(1).norm(dim=1)[:, None, None]
        size = 0.2 * (0.5 * (1 + np.cos(np.pi * number / 3))) ** 0.5 if schedule == "cosine" else 0.2
        torch.testing.assert_close(points[number + 1] - points[number], size * gradient / norm.clamp(min=1))


@pytest.mark.parametrize("keys", [{}, {"turn": False}, {"recolour": False}])
def test_copies_of_the_demonstrations_are_scored_beside_them(batch, keys):
    batch = part(batch, torch.arange(4))
    space, config = Space(model_of()), SearchConfig(demo_augs=4, **keys)
    z, seed = space.start(batch), 5
    objective = Objective(space, batch, HEAD.token_loss, config, seed)
    tids, tables = draw_augmentations(keyed_numpy(seed, "latent_search_copies"), 4)
    changes = [
        Augmentation(0 if "turn" in keys else int(tid), "".join(map(str, table)))
        for tid, table in zip(tids, tables, strict=True)
    ]
    own, copies = objective.scored.inputs.split([n := len(objective.pairs.owner), 4 * n])
    assert torch.equal(own, objective.pairs.inputs)
    if "recolour" in keys:  # every copy is another turn of the same colours
        assert (own[0] != 0).any()
        assert copies.sort(1).values[:, -36:].equal(own.sort(1).values.repeat(4, 1))
        turns = {tuple(copy.tolist()) for copy in [own[0], *copies[::n]]}
        assert len(turns) > 2
        assert all((copies[k * n : (k + 1) * n] != own).any() for k in range(4))
        return
    expected = torch.zeros(len(z))
    context = space.context(z)
    for row, place in batch["demo_mask"].nonzero().tolist():
        pair = [grid_of(batch[name][row, place]) for name in ("demo_inputs", "demo_labels")]
        terms = []
        for change in [Augmentation(), *changes]:
            question, answer = (torch.from_numpy(to_tokens(change.apply(grid), 6)).int()[None] for grid in pair)
            logits = space.model.decode_with_context({"inputs": question}, context[row : row + 1], act_steps=1).logits
            loss = HEAD.token_loss(logits, torch.where(answer == 0, -100, answer.long()))
            terms.append(-float(loss.detach().sum() / (answer != 0).sum()))
        expected[row] += sum(terms) / 5
    torch.testing.assert_close(objective(z).detach(), expected)
    alone = Objective(space, batch, HEAD.token_loss, SearchConfig())
    assert torch.equal(objective.solved(z), alone.solved(z))  # of the demonstrations alone
    assert not torch.allclose(objective(z), alone(z))


def grid_of(tokens: torch.Tensor) -> np.ndarray:
    """The grid at the top left of a 6x6 canvas, by its tokens 2 to 11."""
    canvas = tokens.view(6, 6).numpy()
    cells = canvas >= 2
    return (canvas[: cells.any(1).sum(), : cells.any(0).sum()] - 2).astype(np.uint8)


@pytest.mark.parametrize("select", ["best", "leave_one_out"])
def test_a_search_in_pieces_is_the_same_and_takes_less_at_once(batch, monkeypatch, select):
    model, most = model_of("lpn_variational", torch.float64), []
    decode = type(model).decode_with_context
    monkeypatch.setattr(
        type(model), "decode_with_context", lambda *args, **kw: most.append(len(args[2])) or decode(*args, **kw)
    )
    space, found, at_once = Space(model), [], []
    counts = batch["demo_mask"].sum(1)
    some = part(batch, counts.argsort()[[0, -1, -2, -3]])  # of one demonstration, and of the most
    for rows in (None, 1):
        config = SearchConfig(budgets=[0, 2], select=select, demo_augs=1, microbatch=rows)
        most.clear()
        results = [search(space, piece, HEAD.token_loss, config, 2) for piece in split_rows(some, rows)]
        found.append(
            [torch.cat([each.latents[2] for each in results]), torch.cat([each.scores[2] for each in results])]
        )
        at_once.append(max(most))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)
    assert at_once[1] <= 2 * int(counts.max()) < at_once[0]


def test_the_context_is_searched_where_there_is_a_latent(batch):
    model = model_of("lpn_variational")
    space = Space(model, "context")
    assert space.start(batch).shape == (10, 2, 32)
    assert torch.equal(space.context(space.start(batch)), model.encode(batch).context)
    assert space.posterior_means(batch) == []


def test_the_pull_to_the_start_shortens_the_way(batch):
    space = Space(model_of())
    moves = []
    for pull in (0.0, 10.0):
        result = search(space, batch, HEAD.token_loss, SearchConfig(budgets=[8], prior_weight=pull))
        moves.append((result.latents[8] - space.start(batch)).flatten(1).norm(dim=1).mean())
    assert moves[1] < 0.7 * moves[0]


# --- training at test time --------------------------------------------------------------------------------------------


def test_a_token_is_trained_for_all_tasks_at_once_and_each_as_alone(splits):
    model = model_of()
    before, originals, config = weights(model), Originals(splits), TrainingConfig(steps=10, lr=0.1, examples=4)
    examples = Examples(originals, np.arange(5), config, 3)
    together, history = fit_tokens(model, examples, config, HEAD.token_loss, CPU)
    assert unchanged(model, before)
    assert len(history) == config.steps
    batch, owner = examples.batch(0, CPU)
    with torch.no_grad():
        with_token, without = (losses(model, batch, t, HEAD.token_loss, 1) for t in (together[owner], None))
    assert with_token.mean() < without.mean()
    sizes = originals.demonstrations(np.arange(5))["demo_mask"].sum(1)
    assert (together[torch.from_numpy(sizes == 1)] == 0).all()
    group = int(np.flatnonzero(sizes > 1)[-1])
    alone, _ = fit_tokens(model, Examples(originals, np.array([group]), config, 3), config, HEAD.token_loss, CPU)
    torch.testing.assert_close(alone[0], together[group], rtol=1e-3, atol=1e-4)


def trained_alone(model, examples, config) -> dict[str, torch.Tensor]:
    """What `fit_weights` does, for one task, by hand: the weights after Adam's steps on a copy of the model."""
    own = copy.deepcopy(model)
    part = own.encoder if config.adapt == "encoder" else own
    adam = torch.optim.Adam(part.parameters(), lr=config.lr, betas=(0.9, 0.95))
    for step in range(config.steps):
        adam.zero_grad()
        losses(own, examples.batch(step, CPU)[0], None, HEAD.token_loss, 1).mean().backward()
        adam.step()
    return dict(own.named_parameters())


@pytest.mark.parametrize(
    ("kind", "adapt"), [("standard", "encoder"), ("perceiver", "all"), ("lpn_variational", "all"), ("recurrent", "all")]
)
def test_weights_of_many_tasks_are_trained_at_once_and_each_as_alone(splits, kind, adapt):
    model, originals = model_of(kind), Originals(splits)
    config = TrainingConfig(adapt=adapt, steps=3, lr=3e-3, examples=4)
    before, sizes = weights(model), originals.demonstrations(np.arange(5))["demo_mask"].sum(1)
    together, history = fit_weights(model, Examples(originals, np.arange(5), config, 0), config, HEAD.token_loss, CPU)
    assert unchanged(model, before)
    assert history[-1].nanmean() < history[0].nanmean()
    assert any("encoder." in name for name in together)
    assert any("encoder." not in name for name in together) == (adapt == "all")
    own = dict(model.named_parameters())
    for group in range(5):
        if sizes[group] == 1:  # nothing to leave out
            assert history[:, group].isnan().all()
            assert all(torch.equal(value[group], own[name]) for name, value in together.items())
            continue
        assert history[-1, group] != history[0, group]
        alone = trained_alone(model, Examples(originals, np.array([group]), config, 0), config)
        for name, value in together.items():
            torch.testing.assert_close(value[group], alone[name], rtol=1e-3, atol=2e-4)


def test_examples_of_a_task_are_turned_alike_and_depend_on_the_task_alone(splits):
    originals, config = Originals(splits), TrainingConfig(examples=5)
    sizes = originals.demonstrations(np.arange(5))["demo_mask"].sum(1)
    group = int(sizes.argmax())
    batch, owner = Examples(originals, np.array([group]), config, 0).batch(2, CPU)
    other, owners = Examples(originals, np.arange(5), config, 0).batch(2, CPU)
    assert owner.tolist() == [0] * 5
    for name, values in batch.items():
        assert torch.equal(values, other[name][owners == group]), name
    assert batch["demo_mask"].sum(1).tolist() == [sizes[group] - 1] * 5
    colours = [set(batch["demo_labels"][row].flatten().tolist()) for row in range(5)]
    assert len(set(map(frozenset, colours))) > 1
    plain, _ = Examples(originals, np.array([group]), TrainingConfig(examples=5, recolour=False), 0).batch(2, CPU)
    own = set(originals.demonstrations(np.array([group]))["demo_labels"].flatten().tolist())
    assert set(plain["demo_labels"].flatten().tolist()) == own
    still, _ = Examples(originals, np.array([group]), TrainingConfig(recolour=False, turn=False), 0).batch(2, CPU)
    pairs = torch.from_numpy(originals.demonstrations(np.array([group]))["demo_inputs"]).expand_as(still["demo_inputs"])
    assert torch.equal(still["demo_inputs"], pairs.to(still["demo_inputs"].dtype))
    hidden = ~batch["demo_mask"] & torch.from_numpy(originals.demonstrations(np.array([group]))["demo_mask"])
    for row in range(5):
        assert torch.equal(batch["inputs"][row], batch["demo_inputs"][row, hidden[row]][0])


# --- evaluators -------------------------------------------------------------------------------------------------------


def evaluated(evaluator, splits, *, rows: int = 4, model: TRMWithEncoder | None = None) -> dict[str, float | None]:
    model = model or model_of()
    evaluator.attach(model, HEAD)
    before = weights(model)
    evaluator.begin(splits)
    sampler = FewShotEvalSampler(splits, rows)
    for _, arrays, valid in sampler:
        batch = {name: torch.from_numpy(values) for name, values in arrays.items()}
        with torch.no_grad():
            output = model(batch)
        evaluator.update(batch, [output], output.logits.argmax(-1), valid)
    assert unchanged(model, before)
    return evaluator.result()


def test_controls_show_other_demonstrations(splits, batch):
    evaluator = ARCControls(ARCControlsConfig())
    values = evaluated(evaluator, splits)
    for label in LABELS:
        assert values[f"ARC_i_clean/{label}/tasks"] == 5
        assert values[f"ARC_i_clean/{label}/votes"] == 10
        assert 0 <= values[f"ARC_i_clean/{label}/pass@1_low"] <= values[f"ARC_i_clean/{label}/pass@1_high"] <= 1
        assert f"arc_controls_{label}.json" in evaluator.files
    assert not evaluator.alter(batch, "blanked")["demo_mask"].any()
    groups = batch["group_ids"].numpy()
    shown = evaluator.originals.demonstrations(np.arange(5))
    foreign = evaluator.alter(batch, "foreign")
    for row, group in enumerate(groups):
        match = [
            other for other in range(5) if (shown["demo_inputs"][other] == foreign["demo_inputs"][row].numpy()).all()
        ]
        assert match
        assert group not in match
    shuffled = evaluator.alter(batch, "shuffled")
    assert torch.equal(shuffled["demo_inputs"], batch["demo_inputs"])
    assert torch.equal(shuffled["demo_mask"], batch["demo_mask"])
    mask = batch["demo_mask"]
    assert (shuffled["demo_labels"][mask] != batch["demo_labels"][mask]).any(1).all()
    with pytest.raises(UsageError, match="ARCControls is for pretrain_etrm"):
        ARCControls(ARCControlsConfig()).begin(splits)
    with pytest.raises(UsageError, match="needs a model that is shown demonstrations, which SimpleNamespace is not"):
        evaluator.attach(SimpleNamespace(), HEAD)


def test_a_search_has_a_score_for_every_budget_with_its_class(splits):
    settings = {"budgets": [0, 3], "max_augmentations": 1}
    values = evaluated(ARCLatentSearch(ARCLatentSearchConfig(**settings)), splits)
    assert (
        values["ARC_i_clean/search_0/votes"] == values["ARC_ii_clean/search_3/votes"] == 5
    )  # the second is not a vote
    assert values["ARC_ii_clean/search_3/unmatched_examples"] == 0
    assert values["search/demo_logp_best"] > values["search/demo_logp_init"]
    assert values["search/latent_move"] > 0
    assert 0 < values["search/steps_to_best"] <= 3
    other = evaluated(ARCLatentSearch(ARCLatentSearchConfig(**settings)), splits, rows=10)
    assert other["search/demo_logp_best"] == pytest.approx(values["search/demo_logp_best"], rel=1e-3)
    # in pieces, and each demonstration with copies
    pieces = evaluated(ARCLatentSearch(ARCLatentSearchConfig(microbatch=1, **settings)), splits)
    clock = "search/seconds_per_question"
    assert {**pieces, clock: 0} == pytest.approx({**values, clock: 0}, rel=1e-3)
    copies = evaluated(ARCLatentSearch(ARCLatentSearchConfig(demo_augs=2, **settings)), splits)
    assert copies["search/demo_exact_init"] == values["search/demo_exact_init"]
    assert copies["search/demo_logp_init"] != values["search/demo_logp_init"]
    assert copies["search/demo_logp_best"] > copies["search/demo_logp_init"]
    for wrong, message in (
        ({"budgets": [-1]}, r"budgets=.*expected numbers from 0"),
        ({"microbatch": 0}, "microbatch=0"),
        ({"demo_augs": 2, "turn": False, "recolour": False}, "demo_augs=2: nothing changes.* turn or recolour"),
        ({"demo_augs": 8, "recolour": False}, "demo_augs=8: expected at most 7 with recolour=false"),
    ):
        with pytest.raises(ValueError, match=message):
            ARCLatentSearchConfig(**wrong)


@pytest.mark.parametrize("adapt", ["token", "all"])
def test_test_time_training_reports_what_it_did(splits, adapt):
    evaluator = ARCTestTimeTraining(ARCTestTimeTrainingConfig(adapt=adapt, steps=3, examples=4))
    values = evaluated(evaluator, splits)
    assert values[f"ARC_ii_clean/adapt_{adapt}_3/tasks"] == 5
    assert values["adapt/tasks_without_training"] > 0
    assert values["adapt/loss_first"] > 0
    assert values["adapt/seconds_per_task"] > 0


def test_the_report_counts_by_family_and_by_budget(splits, tmp_path, capsys):
    folder = tmp_path / "run/evaluations"
    folder.mkdir(parents=True)
    for evaluator in (
        ARCControls(ARCControlsConfig()),
        ARCLatentSearch(ARCLatentSearchConfig(budgets=[0, 1], max_augmentations=1)),
        ARCLatentSearch(ARCLatentSearchConfig(mode="random_search", budgets=[0, 2, 10], max_augmentations=1)),
    ):
        evaluated(evaluator, splits)
        for name, text in evaluator.files.items():
            (folder / f"step_7_{name}").write_text(text)
    record = json.loads((folder / "step_7_arc_controls_own.json").read_text())
    solved = next(iter(record["tasks"]))
    record["tasks"][solved]["test"][0]["rank"] = 1
    (folder / "step_7_arc_controls_own.json").write_text(json.dumps(record))
    main(parse([str(tmp_path / "run"), "--out", str(tmp_path / "report")]))
    text = capsys.readouterr().out
    assert (tmp_path / "report/report.md").read_text() in text
    rows = {row[0]: row[1:] for row in csv.reader((tmp_path / "report/families.csv").open())}
    place = rows["family"].index("own")
    assert float(rows["all trained on"][place]) == pytest.approx(1 / 5)
    assert float(rows[solved.rpartition("_")[0]][place]) > 0
    ways = {row[0]: row[1] for row in csv.reader((tmp_path / "report/ways.csv").open())}
    assert (ways["own"], ways["search_0"], ways["search_1"]) == ("i_clean", "i_clean", "ii_clean")
    labels = [label for label in ways if label.startswith(("search", "random"))]
    assert labels == ["search_0", "search_1", "random_0", "random_2", "random_10"]
    for name in ("search", "random"):
        assert (tmp_path / f"report/{name}.png").read_bytes()[1:4] == b"PNG"
    with pytest.raises(UsageError, match=r"--step 3: .* has evaluations of the steps 7"):
        main(parse([str(tmp_path / "run"), "--step", "3"]))
    with pytest.raises(UsageError, match="has no records of arc@ARC"):
        main(parse([str(tmp_path)]))
    with pytest.raises(UsageError, match="none is not a folder: expected a run"):
        main(parse([str(tmp_path / "none")]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "step_7_arc_tasks.json is not JSON"),
        ("5", "step_7_arc_tasks.json: expected a JSON object"),
        ('{"scores": {"pass@1": 0.5}, "tasks": []}', "is not a record of arc@ARC"),
        ('{"scores": {"pass@1": "half"}, "tasks": {}}', "is not a record of arc@ARC"),
        ("{}", "has no scores of step 7"),
    ],
)
def test_a_damaged_record_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "evaluations").mkdir()
    (tmp_path / "evaluations/step_7_arc_tasks.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        main(parse([str(tmp_path), "--out", str(tmp_path / "report")]))
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("config", [ARCConfig, ARCControlsConfig, ARCLatentSearchConfig, ARCTestTimeTrainingConfig])
@pytest.mark.parametrize(("given", "message"), [([0, 2], "pass_Ks=.*at least 1"), ([], "pass_Ks is empty")])
def test_numbers_of_answers_are_refused_with_the_config(config, given, message):
    with pytest.raises(ValueError, match=message):
        config(pass_Ks=given)
