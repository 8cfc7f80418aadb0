"""The rules of language models: vocabularies, the schedule, what is trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verification.data import TextPath, text_data
from verification.finding import Finding, Level
from verification.rule import FamilyRules, NotApplicable, Rule, finding, need_config, need_model
from verification.rules.job import override_keys
from verification.subject import Subject

Config = dict[str, Any]
OPTIMIZER_KEYS = ("weight_decay", "beta1", "beta2")


# --- keys without effect ----------------------------------------------------------------------------------------------


def _schedule(config: Config) -> Config:
    block = config.get("lr_scheduler")
    return block if isinstance(block, dict) else {}


def _no_horizon(config: Config) -> bool:
    name, options = _schedule(config).get("name"), _schedule(config).get("options") or {}
    return name in ("step", "plateau", "inverse_sqrt") or (name == "exponential" and options.get("gamma") is not None)


def optimizer_reads_them(subject: Subject) -> Iterator[Finding]:
    """JOB031: weight_decay, beta1 and beta2 reach the optimizer through its file, or not at all."""
    need_config(subject)
    file = subject.trace.locate(f"optimizer/{subject.choices.get('optimizer')}")
    text, mine = subject.text(file) or "", override_keys(subject)
    for key in OPTIMIZER_KEYS:
        if key in mine and f"${{{key}}}" not in text and f"${{{key}}}" not in str(mine.values()):
            message = f"{key} is overridden without effect: {file} does not take it"
            yield finding("JOB031", "WARN", message, *subject.place)


def schedule_is_used(subject: Subject) -> Iterator[Finding]:
    """JOB031: a curve that the command itself chooses, and holds at its peak."""
    config = need_config(subject)
    chosen = [word for word in subject.trace.overrides if word.lstrip("+").startswith("lr_scheduler=")]
    if not config.get("decay_lr") and _schedule(config).get("name") != "none" and chosen:
        text = f"{chosen[-1]} is without effect: decay_lr=false: the learning rate stays at its peak"
        yield finding("JOB031", "WARN", text, *subject.place)


# --- data -------------------------------------------------------------------------------------------------------------


def texts(subject: Subject) -> list[TextPath]:
    """The text data sets. Raises NotApplicable where there are none."""
    need_config(subject)
    sets = [entry for entry in subject.data if isinstance(entry, TextPath)]
    if not sets:
        raise NotApplicable("the config names no text")
    return sets


def pretrained_tokens(subject: Subject) -> Iterator[Finding]:
    """DAT540."""
    if need_config(subject).get("init_from") != "gpt2":
        raise NotApplicable("no pretrained vocabulary")
    known = [entry for entry in texts(subject) if entry.tokenizer]
    for entry in known:
        text = f"{entry.path} has tokens of '{entry.tokenizer}', init_from=gpt2 reads GPT-2's own tokens"
        yield finding("DAT540", "PASS" if entry.tokenizer == "gpt2" else "FAIL", text, entry.origin)
    if not known:
        raise NotApplicable("the tokenizer of the data is not known")


def one_vocabulary(subject: Subject) -> Iterator[Finding]:
    """DAT541."""
    config = need_config(subject)
    if config.get("training_mode") != "multidataset":
        raise NotApplicable("there is one data set, or each stream has its own table")
    kinds = {entry.vocabulary: entry for entry in texts(subject) if entry.vocabulary}
    if config.get("multidataset_wte"):
        yield finding("DAT541", "PASS", "each data set has its own token table and head (multidataset_wte)")
    elif len(kinds) > 1:
        names = ", ".join(f"{entry.path} ({entry.tokenizer})" for entry in kinds.values())
        text = f"{names} share one token table, their vocabularies differ"
        yield finding("DAT541", "WARN", text, *subject.place)
    else:
        yield finding("DAT541", "PASS", f"one vocabulary: {', '.join(kinds) or 'of data sets that are not here'}")


def aligned(subject: Subject) -> Iterator[Finding]:
    """DAT542."""
    config = need_config(subject)
    if config.get("training_mode") != "multicontext":
        raise NotApplicable("there are no aligned streams")
    streams, place = texts(subject), subject.place
    paths = [entry.path for entry in streams]
    for path in sorted({path for path in paths if paths.count(path) > 1}):
        yield finding("DAT542", "WARN", f"{path} is there twice: one stream is a copy of the other", *place)
    for split in ("train", "val"):
        sizes = {entry.path: entry.lengths[split] for entry in streams if split in entry.lengths}
        if len(set(sizes.values())) > 1:
            cut = config.get("multicontext_align") == "truncate"
            text = f"{split} has {', '.join(f'{n} tokens in {path}' for path, n in sizes.items())}"
            fix = "multicontext_align=truncate, if they begin together" if not cut else ""
            yield finding("DAT542", "WARN" if cut else "FAIL", text, *place, fix)
    if len({entry.text for entry in streams if entry.text}) > 1:
        yield finding("DAT542", "WARN", f"{', '.join(paths)} are not annotations of one text", *place)
    yield finding("DAT542", "PASS", f"{len(streams)} streams, nothing known against their alignment", *place)


def token_range(subject: Subject) -> Iterator[Finding]:
    """DAT523."""
    if not subject.with_data:
        raise NotApplicable("contents are read with --data only")
    from dataset.text.stream import TokenStream

    for entry in texts(subject):
        for split in ("train", "val") if entry.state == "there" and not entry.problem else ():
            stream = TokenStream(subject.trace.cwd / entry.path, split)
            most, size = int(stream.tokens.max()), stream.meta.vocab_size
            text = f"{entry.path}/{split}.bin: {len(stream.tokens)} tokens up to {most}, vocabulary {size}"
            yield finding("DAT523", "PASS" if most < size else "FAIL", text, f"{entry.path}/{split}.bin")


# --- schedule ---------------------------------------------------------------------------------------------------------


def count_steps(subject: Subject) -> int | None:
    """Optimizer steps: max_iters, none in a run that only evaluates."""
    config = subject.resolved or {}
    stated = config.get("max_iters")
    return 0 if config.get("eval_only") else stated if isinstance(stated, int) else None


def something_is_trained(subject: Subject) -> Iterator[Finding]:
    """CFG251."""
    config = need_config(subject)
    rate = config.get("learning_rate")
    if config.get("eval_only"):
        raise NotApplicable("eval_only=true: nothing is to be trained")
    if not isinstance(rate, int | float):
        raise NotApplicable("the learning rate is no number (JOB030)")
    level: Level = "PASS" if rate > 0 else "FAIL" if subject.kind in ("job", "recipe") else "WARN"
    text = f"learning_rate={rate:g}" + ("" if rate > 0 else ": nothing is trained")
    yield finding("CFG251", level, text, *subject.trace.key_line("learning_rate"))


def horizon(subject: Subject) -> Iterator[Finding]:
    """CFG256."""
    config = need_config(subject)
    if not config.get("decay_lr") or config.get("eval_only"):
        raise NotApplicable("the learning rate does not fall")
    if _no_horizon(config):
        raise NotApplicable(f"lr_scheduler={_schedule(config).get('name')} has no horizon")
    end, last, warmup = (config.get(key) for key in ("lr_decay_iters", "max_iters", "warmup_iters"))
    if not (isinstance(end, int) and isinstance(last, int) and isinstance(warmup, int)):
        raise NotApplicable("a length is no number (JOB030)")
    place = subject.trace.key_line("lr_decay_iters")
    if end <= warmup:
        text = f"lr_decay_iters={end} lies within the warm-up of {warmup}: the rate falls to min_lr at once"
        yield finding("CFG256", "WARN", text, *place)
    elif end != last:
        how = "never reaches min_lr" if end > last else f"rests at min_lr for {last - end} iterations"
        level: Level = "INFO" if subject.kind == "launch" else "WARN"  # at a launch the script prints it
        text = f"lr_decay_iters={end}, the run has {last} iterations: the learning rate {how}"
        yield finding("CFG256", level, text, *place, f"lr_decay_iters={last}")
    else:
        yield finding("CFG256", "PASS", f"the rate reaches min_lr with the run's end, at {end}", *place)


def summary(subject: Subject) -> Iterator[Finding]:
    """SUM600."""
    config, model, data = need_config(subject), need_model(subject), subject.declares("DATA_MODE")
    names = " + ".join(Path(entry.path).name for entry in subject.data)
    arch, mode, optimizer = subject.choices.get("arch"), config.get("training_mode"), subject.choices.get("optimizer")
    text = f"{model.cls_name} ({arch}) learns the next token of {names}, {mode} mode"
    text += f", {optimizer}, {_schedule(config).get('name')} schedule"
    good = data == subject.requires.get("DATA_MODE") == "tokens"
    good = good and {entry.mode for entry in subject.data if entry.mode} <= {data}
    yield finding("SUM600", "PASS" if good else "FAIL", text, *model.place)


FAMILY_RULES = FamilyRules(
    data=lambda subject: text_data(subject.resolved or {}, subject.trace.cwd, subject.local_data),
    steps=count_steps,
    rules=(
        Rule(("JOB031",), optimizer_reads_them),
        Rule(("JOB031",), schedule_is_used),
        Rule(("DAT540",), pretrained_tokens),
        Rule(("DAT541",), one_vocabulary),
        Rule(("DAT542",), aligned),
        Rule(("DAT523",), token_range),
        Rule(("CFG251",), something_is_trained),
        Rule(("CFG256",), horizon),
        Rule(("SUM600",), summary),
    ),
    questions=(
        "Which training mode is intended (single, multidataset or multicontext)? Which data? "
        "Which weights does it begin with? Is this a new experiment or a reproduction?"
    ),
    intents={
        "data": lambda subject: ",".join(Path(entry.path).name for entry in subject.data),
        "optimizer": lambda subject: subject.choices.get("optimizer"),
        "lr_scheduler": lambda subject: subject.choices.get("lr_scheduler"),
    },
)
