"""Language models: data and vocabularies, the schedule, and what takes the place of the checks of ACT steps."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.io import user_path
from verification.chain import Chain
from verification.checks.job import override_keys
from verification.checks.model import MODULES, no_grad_decorator
from verification.checks.registry import (
    Family,
    NotApplicable,
    check,
    declared,
    need_model,
    need_resolved,
    need_script,
    need_task,
    register_family,
    say,
)
from verification.finding import Finding, Level
from verification.source import calls, mentions, parameters, walk
from verification.text_data import TextPath

NAME = "language_models"
OPTIMIZER_KEYS = ("weight_decay", "beta1", "beta2")


# --- keys without effect ----------------------------------------------------------------------------------------------


def _schedule(config: dict[str, Any]) -> dict[str, Any]:
    found = config.get("lr_scheduler")
    return found if isinstance(found, dict) else {}


def _no_horizon(config: dict[str, Any]) -> bool:
    name, options = _schedule(config).get("name"), _schedule(config).get("options") or {}
    return name in ("step", "plateau", "inverse_sqrt") or (name == "exponential" and options.get("gamma") is not None)


def _arch_is(key: str, *values: Any) -> Callable[[dict[str, Any]], bool]:
    return lambda config: (config.get("arch") or {}).get(key) in values


def _wide(config: dict[str, Any]) -> bool:
    window, context = (_number((config.get("arch") or {}).get(key)) for key in ("window_size", "block_size"))
    return window is not None and context is not None and window >= context


def _late(config: dict[str, Any]) -> bool:
    limit, end = (_number(config.get(key)) for key in ("max_steps", "max_iters"))
    return limit is not None and end is not None and limit >= end


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) else None


_CONSTANT = (lambda c: not c.get("decay_lr"), "decay_lr=false: the learning rate stays at its peak")
_SILENT = (lambda c: c.get("max_sample_tokens") is None, "max_sample_tokens=null: no samples are written")
_NO_MIXTURE = (lambda c: c.get("training_mode") != "multidataset", "training_mode is not multidataset")
_NO_STREAMS = (lambda c: c.get("training_mode") != "multicontext", "training_mode is not multicontext")
_UNTRAINED = (lambda c: bool(c.get("eval_only")), "eval_only=true: nothing is trained")

DEAD = (
    *((key, *_CONSTANT) for key in ("min_lr", "lr_decay_iters")),
    *((f"lr_scheduler.options.{o}", *_CONSTANT) for o in ("gamma", "size", "share", "factor", "patience", "threshold")),
    ("lr_decay_iters", _no_horizon, "this lr_scheduler has no horizon"),
    *((key, *_SILENT) for key in ("sample_start_tokens", "num_samples", "temperature", "top_k")),
    ("dataset", lambda c: not _NO_MIXTURE[0](c) or not _NO_STREAMS[0](c), "training_mode takes its data from a list"),
    ("multidataset_criterion", *_NO_MIXTURE),
    (
        "dataset_sampling_probs_transition_method",
        lambda c: not c.get("dataset_sampling_probs_final"),
        "dataset_sampling_probs_final=null: the weights do not move",
    ),
    ("multicontext_align", *_NO_STREAMS),
    ("arch.loss.stream_weights", *_NO_STREAMS),
    ("gpt2_type", lambda c: c.get("init_from") != "gpt2", "init_from is not gpt2"),
    *((key, *_UNTRAINED) for key in ("max_iters", "warmup_iters", "learning_rate", *OPTIMIZER_KEYS)),
    ("early_stop_min_delta", lambda c: c.get("early_stop_patience") is None, "early_stop_patience=null"),
    (
        "arch.share_size",
        lambda c: _arch_is("share_attn", "none")(c) and _arch_is("share_mlp", "none")(c),
        "arch.share_attn=none and arch.share_mlp=none: no block shares its weights",
    ),
    *(
        (f"arch.{key}", lambda c: (c.get("arch") or {}).get("n_layer") == 1, "arch.n_layer=1: nothing to share with")
        for key in ("share_attn", "share_mlp", "share_size")
    ),
    ("arch.window_size", _wide, "it is no narrower than the context, arch.block_size"),
    ("max_steps", _late, "the run ends before, at max_iters"),
    ("arch.rope_theta", lambda c: not _arch_is("pos_encodings", "rope")(c), "there are no rotary positions"),
    ("arch.activation_variant", _arch_is("mlp_variant", "swiglu"), "arch.mlp_variant=swiglu has its own activation"),
    ("arch.norm_placement", _arch_is("norm_variant", "identity"), "arch.norm_variant=identity: there is no norm"),
    ("arch.norm_gain", _arch_is("norm_variant", "identity"), "arch.norm_variant=identity: there is no norm"),
)  # fmt: skip


@check("JOB031", family=NAME)
def optimizer_reads_them(chain: Chain) -> Iterator[Finding]:
    """weight_decay, beta1 and beta2 reach the optimizer through its file, or not at all."""
    need_resolved(chain)
    file = chain.locate(f"optimizer/{chain.choices.get('optimizer')}")
    text = chain.repo.text(file) or ""
    mine = override_keys(chain)
    for key in OPTIMIZER_KEYS:
        if key in mine and f"${{{key}}}" not in text and f"${{{key}}}" not in str(mine.values()):
            text_ = f"{key} is overridden without effect: {file} does not take it"
            yield say("JOB031", "WARN", text_, chain.where, chain.line)


@check("JOB031", family=NAME)
def schedule_is_used(chain: Chain) -> Iterator[Finding]:
    """A curve that the command itself chooses, and holds at its peak."""
    chosen = [word for word in chain.overrides if word.lstrip("+").startswith("lr_scheduler=")]
    if not need_resolved(chain).get("decay_lr") and _schedule(need_resolved(chain)).get("name") != "none" and chosen:
        yield say("JOB031", "WARN", f"{chosen[-1]} is without effect: {_CONSTANT[1]}", chain.where, chain.line)


# --- data -------------------------------------------------------------------------------------------------------------


def texts(chain: Chain) -> list[TextPath]:
    """The text data sets of the chain. Raises NotApplicable where there are none."""
    need_resolved(chain)
    found = [entry for entry in chain.data if isinstance(entry, TextPath)]
    if not found:
        raise NotApplicable("the config names no text")
    return found


@check("DAT540", family=NAME)
def pretrained_tokens(chain: Chain) -> Iterator[Finding]:
    config = need_resolved(chain)
    if config.get("init_from") != "gpt2":
        raise NotApplicable("no pretrained vocabulary")
    known = [entry for entry in texts(chain) if entry.tokenizer]
    for entry in known:
        good = entry.tokenizer == "gpt2"
        text = f"{entry.path} has tokens of '{entry.tokenizer}', init_from=gpt2 reads GPT-2's own tokens"
        yield say("DAT540", "PASS" if good else "FAIL", text, entry.origin)
    if not known:
        raise NotApplicable("the tokenizer of the data is not known")


@check("DAT541", family=NAME)
def one_vocabulary(chain: Chain) -> Iterator[Finding]:
    config = need_resolved(chain)
    if config.get("training_mode") != "multidataset":
        raise NotApplicable("there is one data set, or each stream has its own table")
    found = {entry.vocabulary: entry for entry in texts(chain) if entry.vocabulary}
    if config.get("multidataset_wte"):
        yield say("DAT541", "PASS", "each data set has its own token table and head (multidataset_wte)")
    elif len(found) > 1:
        names = ", ".join(f"{entry.path} ({entry.tokenizer})" for entry in found.values())
        yield say(
            "DAT541", "WARN", f"{names} share one token table, their vocabularies differ", chain.where, chain.line
        )
    else:
        yield say("DAT541", "PASS", f"one vocabulary: {', '.join(found) or 'of data sets that are not here'}")


@check("DAT542", family=NAME)
def aligned(chain: Chain) -> Iterator[Finding]:
    config = need_resolved(chain)
    if config.get("training_mode") != "multicontext":
        raise NotApplicable("there are no aligned streams")
    streams, place = texts(chain), (chain.where, chain.line)
    wrong = False
    twice = sorted({e.path for e in streams if [other.path for other in streams].count(e.path) > 1})
    for path in twice:
        wrong = True
        yield say("DAT542", "WARN", f"{path} is there twice: one stream is a copy of the other", *place)
    for split in ("train", "val"):
        sizes = {e.path: e.lengths[split] for e in streams if split in e.lengths}
        if len(set(sizes.values())) > 1:
            wrong = True
            cut = config.get("multicontext_align") == "truncate"
            text = f"{split} has {', '.join(f'{n} tokens in {path}' for path, n in sizes.items())}"
            fix = "multicontext_align=truncate, if they begin together" if not cut else ""
            yield say("DAT542", "WARN" if cut else "FAIL", text, *place, fix)
    sources = {entry.text for entry in streams if entry.text}
    if len(sources) > 1:
        wrong = True
        names = ", ".join(entry.path for entry in streams)
        yield say("DAT542", "WARN", f"{names} are not annotations of one text", *place)
    if not wrong:
        yield say("DAT542", "PASS", f"{len(streams)} streams, nothing known against their alignment", *place)


@check("JOB033", family=NAME)
def earlier_run(chain: Chain) -> Iterator[Finding]:
    """The run whose weights init_from=prev_run takes."""
    path = need_resolved(chain).get("prev_run_ckpt")
    if path and not ((chain.cwd or chain.repo.root) / user_path(str(path))).exists():
        level: Level = "FAIL" if chain.with_data else "WARN"
        yield say("JOB033", level, f"prev_run_ckpt={path} does not exist (yet)", chain.where, chain.line)


@check("DAT523", family=NAME)
def token_range(chain: Chain) -> Iterator[Finding]:
    if not chain.with_data:
        raise NotApplicable("contents are read with --data only")
    from dataset.text.stream import TokenStream

    for entry in texts(chain):
        for split in ("train", "val") if entry.state == "there" and not entry.problem else ():
            stream = TokenStream((chain.cwd or chain.repo.root) / entry.path, split)
            most, size = int(stream.tokens.max()), stream.meta.vocab_size
            text = f"{entry.path}/{split}.bin: {len(stream.tokens)} tokens up to {most}, vocabulary {size}"
            yield say("DAT523", "PASS" if most < size else "FAIL", text, f"{entry.path}/{split}.bin")


# --- schedule ---------------------------------------------------------------------------------------------------------


@check("CFG251", family=NAME)
def something_is_trained(chain: Chain) -> Iterator[Finding]:
    config = need_resolved(chain)
    rate = config.get("learning_rate")
    if config.get("eval_only"):
        raise NotApplicable("eval_only=true: nothing is to be trained")
    if not isinstance(rate, int | float):
        raise NotApplicable("the learning rate is no number (JOB030)")
    planned = chain.kind in ("job", "recipe")
    level: Level = "PASS" if rate > 0 else "FAIL" if planned else "WARN"
    text = f"learning_rate={rate:g}" + ("" if rate > 0 else ": nothing is trained")
    yield say("CFG251", level, text, *chain.key_line("learning_rate"))


@check("CFG256", family=NAME)
def horizon(chain: Chain) -> Iterator[Finding]:
    config = need_resolved(chain)
    if not config.get("decay_lr") or config.get("eval_only"):
        raise NotApplicable("the learning rate does not fall")
    if _no_horizon(config):
        raise NotApplicable(f"lr_scheduler={_schedule(config).get('name')} has no horizon")
    end, last, warmup = config.get("lr_decay_iters"), config.get("max_iters"), config.get("warmup_iters")
    place = chain.key_line("lr_decay_iters")
    if not all(isinstance(value, int) for value in (end, last, warmup)):
        raise NotApplicable("a length is no number (JOB030)")
    if end <= warmup:  # type: ignore[operator]
        text = f"lr_decay_iters={end} lies within the warm-up of {warmup}: the rate falls to min_lr at once"
        yield say("CFG256", "WARN", text, *place)
    elif end != last:
        what = "never reaches min_lr" if end > last else f"rests at min_lr for {last - end} iterations"  # type: ignore[operator]
        # at a launch the script itself says so
        level: Level = "INFO" if chain.kind == "launch" else "WARN"
        text = f"lr_decay_iters={end}, the run has {last} iterations: the learning rate {what}"
        yield say("CFG256", level, text, *place, f"lr_decay_iters={last}")
    else:
        yield say("CFG256", "PASS", f"the rate reaches min_lr with the run's end, at {end}", *place)


# --- model, loss and task ---------------------------------------------------------------------------------------------


@check("MOD410", family=NAME)
def is_a_language_model(chain: Chain) -> Iterator[Finding]:
    cls = need_model(chain)
    found = cls.method("forward")
    problems = []
    if not cls.all_foreign & set(MODULES):
        problems.append(f"{cls.name} is no nn.Module (its bases: {', '.join(sorted(cls.all_foreign)) or 'none'})")
    if found is None:
        problems.append(f"{cls.name} has no forward")
    elif parameters(found[0])[1:2] != ["tokens"]:
        problems.append(f"{cls.name}.forward takes ({', '.join(parameters(found[0])[1:])}), expected (tokens, ...)")
    elif no_grad_decorator(found[0]):
        problems.append(f"{cls.name}.forward is under no_grad: nothing is trained")
    for text in problems:
        yield say("MOD410", "FAIL", text, cls.file, cls.line)
    if not problems:
        yield say("MOD410", "PASS", f"class {cls.name} with forward(tokens, ...)", cls.file, cls.line)


@check("MOD441", family=NAME)
def next_token(chain: Chain) -> Iterator[Finding]:
    """The loss compares with the targets of the micro-batch, not with what the model was given."""
    task = need_task(chain)
    found = task.method("loss")
    if found is None:
        raise NotApplicable(f"{task.name} has no method loss")
    function, owner = found
    # tokens, targets, ... = micro_batch
    unpacked = [
        [element.id for element in node.targets[0].elts if isinstance(element, ast.Name)]
        for node in walk(function)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple)
        and isinstance(node.value, ast.Name) and node.value.id in parameters(function)
    ]  # fmt: skip
    heads = calls(function, "loss_head")
    if not unpacked or len(unpacked[0]) < 2 or not heads:
        raise NotApplicable(f"{task.name}.loss does not unpack a micro-batch and call loss_head")
    given, wanted = unpacked[0][:2]
    for call in heads:
        scored = call.args[1] if len(call.args) > 1 else None
        good = isinstance(scored, ast.Name) and scored.id == wanted
        shown = ast.unparse(scored) if scored is not None else "nothing"
        text = f"{task.name}.loss scores against {shown}" + ("" if good else f", not against {wanted}")
        yield say("MOD441", "PASS" if good else "FAIL", text, owner.file, call.lineno)
    for call in calls(function, "module"):
        if any(mentions(argument, wanted) for argument in call.args):
            text = f"{task.name}.loss gives the model {wanted}: the answer is in the input, expected {given}"
            yield say("MOD441", "FAIL", text, owner.file, call.lineno)


@check("MOD450", family=NAME)
def evaluation(chain: Chain) -> Iterator[Finding]:
    """Without gradient, without dropout."""
    task = need_task(chain)
    found = task.method("evaluate")
    if found is None:
        raise NotApplicable(f"{task.name} has no method evaluate")
    function, owner = found
    problems = [] if calls(function, "eval") else ["does not call eval(): dropout stays on"]
    problems += [] if no_grad_decorator(function) or mentions(function, "no_grad") else ["is not under no_grad"]
    for text in problems:
        yield say("MOD450", "WARN", f"{task.name}.evaluate {text}", owner.file, function.lineno)
    if not problems:
        yield say("MOD450", "PASS", f"{task.name}.evaluate: no dropout, no gradient", owner.file, function.lineno)


@check("MOD460", family=NAME)
def groups(chain: Chain) -> Iterator[Finding]:
    """Every parameter of the model lies in one of its groups, and every group goes to an optimizer."""
    model, task = need_model(chain), need_task(chain)
    function, sorted_by = task.module.names.get("param_groups"), model.method("param_groups")
    script = need_script(chain)
    if not isinstance(function, ast.FunctionDef) or not calls(script.build.tree, "param_groups"):
        raise NotApplicable(f"{task.module.file} has no function param_groups that the script calls")
    problems = []
    if sorted_by is None or not calls(function, "param_groups"):
        problems.append((f"param_groups does not ask {model.name} for its groups", task.file, function.lineno))
    elif not calls(sorted_by[0], "named_parameters", "parameters"):
        problems.append(
            (f"{model.name}.param_groups does not go through all parameters", sorted_by[1].file, sorted_by[0].lineno)
        )
    for place, node in [(task.file, function), *([(sorted_by[1].file, sorted_by[0])] if sorted_by else [])]:
        for inner in walk(node):
            if isinstance(inner, ast.Continue | ast.Break):
                text = "param_groups leaves parameters out: they are never trained"
                problems.append((text, place, inner.lineno))
    for text, file, line in problems:
        yield say("MOD460", "FAIL", text, file, line)
    if not problems:
        yield say("MOD460", "PASS", f"every group of {model.name} has its optimizer", task.file, function.lineno)


@check("SUM600", family=NAME)
def summary(chain: Chain) -> Iterator[Finding]:
    config = need_resolved(chain)
    cls, data = need_model(chain), declared(chain, "DATA_MODE")
    names = " + ".join(Path(entry.path).name for entry in chain.data)
    wanted = (chain.script.requires if chain.script else {}).get("DATA_MODE")
    text = (
        f"{cls.name} ({chain.choices.get('arch')}) learns the next token of {names}, {config.get('training_mode')} mode"
    )
    text += f", {chain.choices.get('optimizer')}, {_schedule(config).get('name')} schedule"
    good = data == wanted == "tokens" and {entry.mode for entry in chain.data if entry.mode} <= {data}
    yield say("SUM600", "PASS" if good else "FAIL", text, cls.file, cls.line)


register_family(
    Family(
        NAME,
        dead=DEAD,
        intent={
            "family": lambda chain: declared(chain, "FAMILY"),
            "data": lambda chain: ",".join(Path(entry.path).name for entry in chain.data),
            "optimizer": lambda chain: chain.choices.get("optimizer"),
            "lr_scheduler": lambda chain: chain.choices.get("lr_scheduler"),
        },
        act=False,
        questions=(
            "Which training mode is intended (single, multidataset or multicontext)? Which data? Which weights does it "
            "begin with? Is this a new experiment or a reproduction?"
        ),
    )
)
