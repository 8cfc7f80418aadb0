"""Probes of models with an encoder: DYN704, DYN708, DYN710 to DYN715, DYN718."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from losses import ACTLossHead
from models.encoders import EncoderOutput
from models.recursive_reasoning.etrm import DEMONSTRATIONS
from tasks.etrm.decoder import decoder_part, find_decoder, put
from tasks.etrm.probes_fixed import COMMON, Found, depth, fixed, fixed_rows
from tasks.etrm.probes_shown import keys_are_handed_on, no_answer_is_shown, own_task_is_shown, slots
from verification.probes.episodes import force, pattern
from verification.probes.instance import Recorder, Tiny, Unobservable, first_batch, fit, listed, runtime, step
from verification.probes.launch import create_model, replaced
from verification.probes.registry import Observation, Probe
from verification.probes.training import training_run

CLOSE, FROZEN = 1e-4, 2


def fresh_encoding(tiny: Tiny) -> Found:
    """DYN704: rows that go on are computed with the encoding that the present weights make of their demonstrations."""
    if fixed(tiny):
        raise Unobservable("a fixed model takes its steps between two updates")
    task = tiny.build().task
    encoder, recorder = task.model.encoder, Recorder(task.module, force)
    step(task, 1)
    old = copy.deepcopy(encoder)
    with torch.no_grad():
        for param in encoder.parameters():
            param.add_(0.1 * torch.randn(param.shape, generator=torch.Generator().manual_seed(6)))
    step(task, 2)
    call = recorder.calls[-1]
    data = call.output.carry.data
    state = {name: value for name, value in call.carry.latents.items() if name.startswith("encoder_")}

    def context(of: Any) -> Tensor:
        """What an encoder makes of the rows that go on."""
        with torch.no_grad():
            made = of(*(data[name] for name in DEMONSTRATIONS), noise=data.get("noise")).context
            return of.refined(made, state).context[~pattern(call.carry)]  # type: ignore[no-any-return]

    seen, now = call.output.aux["context"][~pattern(call.carry)], context(encoder)
    moved = (now - context(old)).abs().amax()  # a recurrent encoder multiplies what is rounded
    if not bool(moved > 0) or bool((seen - now).abs().amax() > 1e-2 * moved):
        yield "continuing rows work with a context that the present weights do not make: it is an old one"


def no_table(tiny: Tiny) -> Found:
    """DYN718: which forward ran; no parameter and no answer depends on which puzzle it is."""
    run = training_run(tiny)
    named = "_forward_train_online" if fixed(tiny) else "_forward_train_original"
    trained = {name for name in run.recorder.names if name.startswith("_forward_train")}
    if trained != {named}:
        yield f"training ran {listed(sorted(trained))}, expected {named}"
    if any(hasattr(type(module), "take_pending") for module in run.model.modules()):
        yield "there is a table of puzzles"
    make, sizes = create_model(tiny.launch.module), []
    for puzzles in (1, 100):
        model = make(tiny.config(), replace(tiny.spec.full_shape(None), num_puzzle_identifiers=puzzles), runtime(0))[0]
        sizes.append({name: value.shape for name, value in model.state_dict().items()})
    if sized := [name for name, shape in sizes[0].items() if sizes[1].get(name) != shape]:
        yield f"{listed(sized)} is sized by the number of puzzles"
    task = tiny.build().task
    batch = first_batch(task)
    other = {**batch, "puzzle_identifiers": batch["puzzle_identifiers"].flip(0) + 10**6}
    with torch.no_grad():
        answers = [task.module.eval()(one).logits for one in (batch, other)]
    if not torch.equal(*answers):
        yield "the answer depends on the puzzle's identifier"


# --- demonstrations, latents, stages ----------------------------------------------------------------------------------


def a_set(tiny: Tiny) -> Found:
    """DYN710: order, padding and masked places change nothing; other demonstrations do; a row without any is finite."""
    task = tiny.build().task
    batch = first_batch(task)
    encoder = task.model.eval().encoder
    inputs, labels, mask = (batch[name] for name in DEMONSTRATIONS)

    def made(*demonstrations: Tensor) -> Tensor:
        """The context, and the KL of each row where there is one: [B, W]."""
        with torch.no_grad():
            encoded = encoder(*demonstrations)
            context = encoder.refined(encoded.context, encoder.initial(len(demonstrations[0]))).context.flatten(1)
            return context if encoded.kl is None else torch.cat((context, encoded.kl[:, None]), dim=1)

    plain = made(inputs, labels, mask)
    if not torch.allclose(made(inputs.flip(1), labels.flip(1), mask.flip(1)), plain, atol=CLOSE):
        yield "the order of the demonstrations changes the context"
    fewer = mask.clone()
    fewer[:, 1:] = False
    one, noise = made(inputs, labels, fewer), labels.roll(1, 2)
    if not torch.allclose(made(torch.where(fewer[..., None], inputs, noise), labels, fewer), one, atol=CLOSE):
        yield "what stands in a masked place changes the context"
    if not torch.allclose(made(inputs[:, :1], labels[:, :1], fewer[:, :1]), one, atol=CLOSE):
        yield "empty places change the context, or its KL"
    padded = [torch.where(torch.arange(inputs.shape[2]) < 8, grids, 0) for grids in (inputs, labels)]
    long = [torch.cat((cells, cells.roll(1, 0)), 0) for cells in padded]
    long[0][len(mask) :] = inputs  # one long pair: the padding of the others is masked, not cut
    if not torch.allclose(made(*long, torch.cat((mask, mask)))[: len(mask)], made(*padded, mask), atol=CLOSE):
        yield "padding is attended to: the context depends on the longest pair of the batch"
    if torch.allclose(one, plain, atol=CLOSE) or torch.allclose(
        made(inputs, labels.roll(1, 0), mask), plain, atol=CLOSE
    ):
        yield "other demonstrations make the same context"
    if not torch.isfinite(made(inputs, labels, torch.zeros_like(mask))).all():
        yield "a row without demonstrations has no finite context"


def context_is_used(tiny: Tiny) -> Found:
    """DYN711."""
    task = tiny.build().task
    batch = first_batch(task)
    model = task.model.eval()
    context = model.encode(batch).context.detach().requires_grad_()
    steps = 1 if model.encoder.initial(1) else tiny.max_steps  # a recurrent encoder changes it at the next one
    logits = model.decode_with_context(batch, context, steps).logits
    if torch.allclose(logits, model.decode_with_context(batch, context.roll(1, 0), steps).logits, atol=CLOSE):
        yield "contexts of other rows give the same answers"
    if not bool((torch.autograd.grad(logits.square().sum(), context)[0] != 0).flatten(1).any(1).all()):
        yield "no gradient reaches the context"
    with torch.no_grad():
        answer = model(batch) if steps == tiny.max_steps else next(model.think(batch, steps))
    if not torch.allclose(logits, answer.logits, atol=10 * CLOSE, rtol=10 * CLOSE):
        yield "an evaluation does not decode the context that its demonstrations make"


def stages(tiny: Tiny) -> Found:
    """DYN713: what is frozen for two steps moves from the third on, the other part from the first."""
    for still, moving in (("encoder", "trunk"), ("trunk", "encoder")):
        run = {f"freeze_{'encoder' if still == 'encoder' else 'decoder'}_steps": FROZEN, "max_steps": FROZEN + 2}
        plan = replace(tiny.build(run=run), final_eval=False, eval_steps=(), schedule=lambda step: 1.0)
        parts = plan.task.model.param_groups()
        seen = [{name: _flat(params) for name, params in parts.items()}]

        def watch(seen: Any = seen, parts: Any = parts) -> None:
            seen.append({name: _flat(params) for name, params in parts.items()})

        fit(plan, tiny.config(run), watch)
        for number, (before, after) in enumerate(pairwise(seen), 1):
            moved = {name for name in parts if not torch.equal(before[name], after[name])}
            if moved != ({moving} if number <= FROZEN else {still, moving}):
                yield f"{still} frozen for {FROZEN} steps: step {number} moved {listed(sorted(moved)) or 'nothing'}"


def _flat(params: list[Any]) -> Tensor:
    return torch.cat([param.detach().flatten().clone() for param in params])


def kl_weight(tiny: Tiny) -> Found:
    """DYN714: the KL of each row counts `kl_weight` times in the sum that the trainer divides by the rows."""
    task = tiny.build().task
    if not task.model.encoder.VARIATIONAL:
        raise Unobservable(f"{tiny.arch.get('encoder_type')} has no latent")
    batch, encoded = first_batch(task), list[EncoderOutput]()
    task.model.encoder.register_forward_hook(lambda _, __, made: encoded.append(made))
    output = task.module.train()(batch, None)
    head: ACTLossHead = task.loss_head
    result, expected = head(output), (tiny.arch.get("loss") or {}).get("kl_weight", 0.0)
    (slope,) = torch.autograd.grad(result.total / result.weight, output.aux["kl"])
    if not torch.allclose(slope, torch.full_like(slope, expected / len(slope)), rtol=1e-3, atol=1e-9):
        yield f"the KL of a row has the weight {float(slope.mean()) * len(slope):.3g}, arch.loss.kl_weight={expected}"
    mu, logvar, kl = encoded[0].mu, encoded[0].logvar, encoded[0].kl
    assert mu is not None
    assert logvar is not None
    assert kl is not None
    posterior = Normal(mu, logvar.exp().sqrt())
    by_hand = kl_divergence(posterior, Normal(torch.zeros_like(mu), torch.ones_like(mu))).sum(-1)  # [B, N]
    exist = batch["demo_mask"] if task.model.encoder.by_demonstration else torch.ones_like(by_hand)
    by_hand = (by_hand * exist).sum(1) / exist.sum(1)
    if not torch.allclose(kl, by_hand, rtol=1e-3, atol=1e-3):
        yield "the KL is not that of the posterior's mean and variance from N(0, I)"
    other = {**batch, "noise": batch["noise"] + 1}
    with torch.no_grad():
        if torch.equal(task.module(batch, None).logits, task.module(other, None).logits):
            yield "training does not sample the latent: the KL is that of a distribution that nothing is drawn from"


def decoder_is_loaded(tiny: Tiny) -> Found:
    """DYN715: every tensor of the decoder, none of the encoder."""
    source, own = tiny.build().task.model, tiny.build(stirred=False).task.model
    before = {name: value.clone() for name, value in own.state_dict().items()}
    put(own, decoder_part(source.state_dict()))
    after, theirs = own.state_dict(), source.state_dict()
    encoders = {name for name in after if "encoder." in name or "context_" in name}
    if wrong := [name for name in after if name not in encoders and not torch.equal(after[name], theirs[name])]:
        yield f"{listed(wrong)} are not those of the loaded decoder"
    if moved := [name for name in after if name in encoders and not torch.equal(after[name], before[name])]:
        yield f"{listed(moved)} changed, which a decoder does not have"
    loaded: list[int] = []
    stand_in: Any = SimpleNamespace(provenance="", leakage="", load=lambda: loaded.append(1))
    with replaced(find_decoder, lambda *_: stand_in):
        plan = tiny.build(run={"load_pretrained_decoder": "probe"})
    if plan.start is not None:
        plan.start()
    if not loaded:
        yield "a run that names a decoder does not load it"


def probes() -> list[Probe]:
    """One row for each code."""
    own = (
        ("DYN704", fresh_encoding, "continuing rows see what the present weights make of their demonstrations"),
        ("DYN708", depth, "num_act_steps steps for each batch, and no carry between batches"),
        ("DYN710", a_set, "demonstrations are a set; padding and masked places change nothing"),
        ("DYN711", context_is_used, "answers depend on the context, and gradients reach it"),
        ("DYN713", stages, "frozen groups stand still for their steps, and move afterwards"),
        ("DYN714", kl_weight, "the KL of each row has the weight arch.loss.kl_weight"),
        ("DYN715", decoder_is_loaded, "a loaded decoder replaces every tensor but the encoder's"),
        ("DYN718", no_table, "no table of puzzles; answers do not depend on identifiers"),
    )
    rows = [*fixed_rows(), *(Probe(code=code, run=run, passed=text, act=True) for code, run, text in own)]
    found = {row.code: row for row in rows}
    further = {
        "DYN705": slots,
        "DYN711": own_task_is_shown,
        "DYN712": no_answer_is_shown,
        "CFG255": keys_are_handed_on,
    }
    for code, run in further.items():
        common = found.get(code) or COMMON.get((code, True)) or COMMON[code, None]
        found[code] = replace(common, run=_both(common.run, run))
    return list(found.values())


def _both(first: Observation, second: Observation) -> Observation:
    """The faults of two probes, one after the other."""

    def run(tiny: Tiny) -> Found:
        yield from first(tiny)
        yield from second(tiny)

    return run
