"""Probes of models with an encoder, besides the common ones: CFG255, DYN704, DYN705, DYN710 to DYN715, DYN718.

In the tiny data (tasks/etrm/verify.py) a task is a permutation of tokens, so demonstrations identify their task.

Shapes: B rows, K demonstrations, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from models.recursive_reasoning.etrm import DEMONSTRATIONS
from tasks.etrm.decoder import decoder_part, find_decoder, load_decoder
from verification.probes.episodes import force, pattern
from verification.probes.instance import (
    Recorder,
    Tiny,
    Unobservable,
    evaluate,
    first_batch,
    fit,
    listed,
    perturb,
    runtime,
    same,
    step,
    tables,
)
from verification.probes.launch import create_model, replaced
from verification.probes.registry import Probe

Batch = dict[str, Tensor]
Found = Iterator[str]
CLOSE, FROZEN, STEPS = 1e-4, 2, 3


# --- queries and demonstrations ---------------------------------------------------------------------------------------


def slots(tiny: Tiny) -> Found:
    """DYN705: a slot that has halted takes the next example of its stream, however many steps the others take."""
    task = tiny.build(run={"accumulation": 1}).task

    def halt(number: int, output: Any) -> Any:
        rows = pattern(output.carry) if number == 0 else ~pattern(output.carry)
        return output if tiny.act_mode == "fixed" else replace(output, carry=replace(output.carry, halted=rows))

    recorder = Recorder(task.module, halt)
    taken = torch.zeros(task.global_rows, dtype=torch.int64)
    for number in range(1, STEPS + 1):
        step(task, number)
        call = recorder.calls[-1]
        fresh = torch.ones_like(taken, dtype=torch.bool) if call.carry is None else call.carry.halted
        where = fresh.nonzero()[:, 0]
        expected = torch.from_numpy(task.sampler.take(where.numpy(), taken[where].numpy())["inputs"])
        if other := int((call.batch["inputs"][where] != expected).any(1).sum()):
            yield f"step {number} offers {other} of {len(where)} slots that are done another example than their next"
            return
        taken += fresh


def shown(tiny: Tiny) -> Iterator[tuple[str, Batch]]:
    """(description, batch) of training under two policies and of an evaluation."""
    for policy in ("test_only", "leave_one_out"):
        yield f"training (query_policy={policy})", first_batch(tiny.build(run={"query_policy": policy}).task)
    task = tiny.build(run={"evaluators": []}).task
    recorder = Recorder(task.module)
    evaluate(task)
    yield from (("the evaluation", call.batch) for call in recorder.calls if not call.training)


def no_answer_is_shown(tiny: Tiny) -> Found:
    """DYN712: the query pair is not among the demonstrations."""
    for what, batch in shown(tiny):
        inputs, labels, mask = (batch[name] for name in DEMONSTRATIONS)
        pair = (inputs == batch["inputs"][:, None]).all(-1) & (labels == batch["labels"][:, None]).all(-1)
        if rows := int((pair & mask).any(1).sum()):
            yield f"{what} shows {rows} of {len(mask)} rows the very answer that they should give"


def own_task_is_shown(tiny: Tiny) -> Found:
    """DYN711: demonstrations belong to the task of the query; an evaluation shows all of them."""
    for what, batch in shown(tiny):
        mask = batch["demo_mask"]
        if rows := int((~mask.any(1)).sum()):
            yield f"{what} shows {rows} of {len(mask)} rows no demonstration"
        elif "evaluation" in what and not bool(mask.all()):  # all tasks of the tiny data have the same number
            yield f"{what} leaves out demonstrations: {int(mask.sum(1).min())} of {mask.shape[1]} are shown"
        # tokens of the query whose label differs from that in a demonstration
        tokens, answers = (batch[name].where(mask[..., None], -1).flatten(1) for name in DEMONSTRATIONS[:2])
        known = (tokens[:, None] == batch["inputs"][..., None]) & (batch["inputs"][..., None] > 1)
        if rows := int((known & (answers[:, None] != batch["labels"][..., None])).any(2).any(1).sum()):
            yield f"{what} shows {rows} of {len(mask)} rows demonstrations of another task"


KEYS = {"max_demos": 1, "max_train_groups": 1, "demo_dropout": 0.95, "query_policy": "leave_one_out"}
"""Run keys, each with a value that changes the first batch if the others are PLAIN."""
PLAIN = {"max_demos": 10, "max_train_groups": None, "demo_dropout": 0.0, "query_policy": "test_only", "min_demos": 1}


def keys_take_effect(tiny: Tiny) -> Found:
    """CFG255: run keys of this family, besides those of the schedule and the optimizers."""

    def built(**run: Any) -> Any:
        return tiny.build(perturbed=False, run=PLAIN | run).task

    first = first_batch(built())
    for key, value in KEYS.items():
        if same(first, first_batch(built(**{key: value}))):
            yield f"{key}={value} in place of {PLAIN[key]} changes neither the questions nor the demonstrations"
    rates = {group.name: group.lr for group in built(encoder_lr_scale=0.5).param_groups()}
    if rates.get("encoder") != rates.get("trunk", 0.0) / 2:
        yield "encoder_lr_scale=0.5 is given, and the encoder's learning rate is not half of the trunk's"


# --- demonstrations and contexts --------------------------------------------------------------------------------------


def fresh_encoding(tiny: Tiny) -> Found:
    """DYN704: continuing rows use a context encoded with the current weights."""
    if tiny.act_mode == "fixed":
        raise Unobservable("a fixed model takes its steps between two updates")
    task = tiny.build().task
    encoder, recorder = task.model.encoder, Recorder(task.module, force)
    step(task, 1)
    old = {name: value.clone() for name, value in encoder.state_dict().items()}
    perturb(encoder)
    step(task, 2)
    call = recorder.calls[-1]
    data, rows = call.output.carry.data, ~pattern(call.carry)
    state = {name: value for name, value in call.carry.latents.items() if name.startswith("encoder_")}

    def context() -> Tensor:
        """The encoder's context of the continuing rows."""
        with torch.no_grad():
            encoded = encoder(*(data[name] for name in DEMONSTRATIONS), noise=data.get("noise")).context
            return encoder.refine(encoded, state).context[rows]  # type: ignore[no-any-return]

    used, expected = call.output.aux["context"][rows], context()
    encoder.load_state_dict(old)
    change = (expected - context()).abs().amax()  # the tolerance is relative: a recurrent encoder amplifies rounding
    if not bool(change > 0) or bool((used - expected).abs().amax() > 1e-2 * change):
        yield "continuing rows work with a context that the present weights do not make: it is an old one"


def no_table(tiny: Tiny) -> Found:
    """DYN718: no parameter and no answer depends on the puzzle identifier."""
    make, sizes = create_model(tiny.launch.module), []
    for puzzles in (1, 100):
        model = make(tiny.config(), replace(tiny.spec.full_shape(None), num_puzzle_identifiers=puzzles), runtime(0))[0]
        sizes.append({name: value.shape for name, value in model.state_dict().items()})
    if sized := [name for name, shape in sizes[0].items() if sizes[1].get(name) != shape] + list(tables(model)):
        yield f"{listed(sized)} is sized by the number of puzzles"
    task = tiny.build().task
    batch = first_batch(task)
    other = {**batch, "puzzle_identifiers": batch["puzzle_identifiers"].flip(0) + 10**6}
    with torch.no_grad():
        if not torch.equal(*(task.module.eval()(one).logits for one in (batch, other))):
            yield "the answer depends on the puzzle's identifier"


def demonstrations_are_a_set(tiny: Tiny) -> Found:
    """DYN710: order, padding and masked demonstrations change nothing; others do; a row without any is finite."""
    task = tiny.build().task
    batch, encoder = first_batch(task), task.model.eval().encoder
    inputs, labels, mask = (batch[name] for name in DEMONSTRATIONS)
    rows, noise, first = len(mask), labels.roll(1, 2), torch.zeros_like(mask)
    first[:, 0] = mask[:, 0]

    def encode(*demonstrations: Tensor) -> Tensor:
        """The context of each row, and its KL if there is one: [B, W]."""
        with torch.no_grad():
            encoded = encoder(*demonstrations)
            context = encoder.refine(encoded.context, encoder.initial(len(demonstrations[0]))).context.flatten(1)
            return context if encoded.kl is None else torch.cat((context, encoded.kl[:, None]), dim=1)

    short = [grids.where(torch.arange(grids.shape[2]) < 8, 0) for grids in (inputs, labels)]
    # in a batch with longer pairs the padding of the short ones is masked, not cut off
    long = [torch.cat(pair) for pair in ((short[0], inputs), (short[1], short[1].roll(1, 0)), (mask, mask))]
    plain, one = encode(inputs, labels, mask), encode(inputs, labels, first)
    for text, expected, actual in (
        (
            "the order of the demonstrations changes the context",
            plain,
            encode(inputs.flip(1), labels.flip(1), mask.flip(1)),
        ),
        (
            "what is in a masked place changes the context",
            one,
            encode(inputs.where(first[..., None], noise), labels, first),
        ),
        ("empty places change the context, or its KL", one, encode(inputs[:, :1], labels[:, :1], first[:, :1])),
        (
            "padding is attended to: the context depends on the longest pair of the batch",
            encode(*short, mask),
            encode(*long)[:rows],
        ),
    ):
        if not torch.allclose(actual, expected, atol=CLOSE):
            yield text
    if any(torch.allclose(other, plain, atol=CLOSE) for other in (one, encode(inputs, labels.roll(1, 0), mask))):
        yield "other demonstrations make the same context"
    if not torch.isfinite(encode(inputs, labels, torch.zeros_like(mask))).all():
        yield "a row without demonstrations has no finite context"


def context_is_used(tiny: Tiny) -> Found:
    """DYN711: answers depend on the context, and gradients reach it."""
    task = tiny.build().task
    batch, model = first_batch(task), task.model.eval()
    context = model.encode(batch).context.detach().requires_grad_()
    steps = 1 if model.encoder.initial(1) else tiny.max_steps  # a recurrent encoder changes the context after a step
    logits = model.decode_with_context(batch, context, steps).logits
    if torch.allclose(logits, model.decode_with_context(batch, context.roll(1, 0), steps).logits, atol=CLOSE):
        yield "contexts of other rows give the same answers"
    if not bool((torch.autograd.grad(logits.square().sum(), context)[0] != 0).flatten(1).any(1).all()):
        yield "no gradient reaches the context"
    with torch.no_grad():
        answer = model(batch) if steps == tiny.max_steps else next(model.think(batch, steps))
    if not torch.allclose(logits, answer.logits, atol=10 * CLOSE, rtol=10 * CLOSE):
        yield "an evaluation does not decode the context that its demonstrations make"
    yield from own_task_is_shown(tiny)


# --- stages, latents, a loaded decoder --------------------------------------------------------------------------------


def stages(tiny: Tiny) -> Found:
    """DYN713: a group frozen for two steps changes from the third on, the other one from the first."""
    for frozen, trained, key in (
        ("encoder", "trunk", "freeze_encoder_steps"),
        ("trunk", "encoder", "freeze_decoder_steps"),
    ):
        run = {key: FROZEN, "max_steps": FROZEN + 2}
        plan = replace(tiny.build(run=run), final_eval=False, eval_steps=(), schedule=lambda step: 1.0)
        parts = plan.task.model.param_groups()

        def copied(parts: Any = parts) -> Any:
            return {name: [param.detach().clone() for param in params] for name, params in parts.items()}

        copies = [copied()]

        def after_step(copies: Any = copies, copied: Any = copied) -> None:
            copies.append(copied())

        fit(plan, tiny.config(run), after_step)
        for number, (before, after) in enumerate(pairwise(copies), 1):
            changed = {name for name in parts if not same(before[name], after[name])}
            if changed != ({trained} if number <= FROZEN else {frozen, trained}):
                names = listed(sorted(changed)) or "nothing"
                yield f"{frozen} frozen for {FROZEN} steps: step {number} moved {names}"


def kl_weight(tiny: Tiny) -> Found:
    """DYN714: each row's KL has the weight `kl_weight` in the summed loss."""
    task = tiny.build().task
    encoder, batch, outputs = task.model.encoder, first_batch(task), list[Any]()
    if not encoder.VARIATIONAL:
        raise Unobservable(f"{tiny.arch.get('encoder_type')} has no latent")
    encoder.register_forward_hook(lambda _, __, output: outputs.append(output))
    output = task.module.train()(batch, None)
    result, expected = task.loss_head(output), (tiny.arch.get("loss") or {}).get("kl_weight", 0.0)
    (slope,) = torch.autograd.grad(result.total / result.weight, output.aux["kl"])
    if not torch.allclose(slope, torch.full_like(slope, expected / len(slope)), rtol=1e-3, atol=1e-9):
        yield f"the KL of a row has the weight {float(slope.mean()) * len(slope):.3g}, arch.loss.kl_weight={expected}"
    mu, variance, kl = outputs[0].mu, outputs[0].logvar.exp(), outputs[0].kl
    by_hand = kl_divergence(Normal(mu, variance.sqrt()), Normal(torch.zeros_like(mu), 1.0)).sum(-1)  # [B, N]
    exist = batch["demo_mask"] if encoder.by_demonstration else torch.ones_like(by_hand)
    if not torch.allclose(kl, (by_hand * exist).sum(1) / exist.sum(1), rtol=1e-3, atol=1e-3):
        yield "the KL is not that of the posterior's mean and variance from N(0, I)"
    with torch.no_grad():
        drawn = (task.module({**batch, "noise": batch["noise"] + more}, None).logits for more in (0, 1))
        if torch.equal(*drawn):
            yield "training does not sample the latent: the KL is that of a distribution that nothing is drawn from"


def decoder_is_loaded(tiny: Tiny) -> Found:
    """DYN715: loading a decoder replaces every tensor of the decoder and none of the encoder."""
    theirs, own = tiny.build().task.model.state_dict(), tiny.build(perturbed=False).task.model
    before = {name: value.clone() for name, value in own.state_dict().items()}
    load_decoder(own, decoder_part(theirs))
    after = own.state_dict()
    encoders = {name for name in after if "encoder." in name or "context_" in name}
    if differing := [name for name in after if name not in encoders and not torch.equal(after[name], theirs[name])]:
        yield f"{listed(differing)} are not those of the loaded decoder"
    if changed := [name for name in after if name in encoders and not torch.equal(after[name], before[name])]:
        yield f"{listed(changed)} changed, which a decoder does not have"
    loaded: list[int] = []
    stand_in: Any = SimpleNamespace(provenance="", leakage="", load=lambda: loaded.append(1))
    with replaced(find_decoder, lambda *_: stand_in):
        plan = tiny.build(run={"load_pretrained_decoder": "probe"})
    if plan.start is not None:
        plan.start()
    if not loaded:
        yield "a run that names a decoder does not load it"


PROBES = tuple(
    Probe(code=code, run=run, passed=text, act=True)
    for code, run, text in (
        ("CFG255", keys_take_effect, ""),
        ("DYN704", fresh_encoding, "continuing rows see what the present weights make of their demonstrations"),
        ("DYN705", slots, ""),
        ("DYN710", demonstrations_are_a_set, "demonstrations are a set; padding and masked places change nothing"),
        ("DYN711", context_is_used, "answers depend on the context, and gradients reach it"),
        ("DYN712", no_answer_is_shown, ""),
        ("DYN713", stages, "frozen groups do not change during their steps, and change afterwards"),
        ("DYN714", kl_weight, "the KL of each row has the weight arch.loss.kl_weight"),
        ("DYN715", decoder_is_loaded, "a loaded decoder replaces every tensor but the encoder's"),
        ("DYN718", no_table, "no table of puzzles; answers do not depend on identifiers"),
    )
)
"""The text of a passed probe is "" if the common probe of this code has one."""
