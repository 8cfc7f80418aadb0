"""Verification rules for runs over demonstrations: the latent, the loaded decoder, the test tasks, the run name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verification.finding import Finding
from verification.rule import NotApplicable, Rule, finding, need_config, need_model
from verification.rules.data import there
from verification.subject import Subject

DECODER = "load_pretrained_decoder"


def latent_has_a_prior(subject: Subject) -> Iterator[Finding]:
    """CFG252: an encoder whose class declares a variational latent has a KL weight."""
    need_model(subject)
    from models.encoders import encoder_class

    kind, weight = subject.arch.get("encoder_type"), (subject.arch.get("loss") or {}).get("kl_weight")
    place = subject.trace.key_line("arch.encoder_type")
    try:
        variational = encoder_class(str(kind)).VARIATIONAL
    except ValueError as error:
        yield finding("CFG252", "FAIL", str(error), *place, "name one of these")
        return
    if variational and not weight:
        text = f"arch.encoder_type={kind} samples its latent, and arch.loss.kl_weight={weight} gives it no prior"
        yield finding("CFG252", "WARN", text, *subject.trace.key_line("arch.loss.kl_weight"))
    what = f"a latent, kl_weight={weight}" if variational else "no latent"
    yield finding("CFG252", "PASS", f"arch.encoder_type={kind}: {what}", *place)


def decoder_fits(subject: Subject) -> Iterator[Finding]:
    """CFG253: a loaded decoder has this architecture's shape and cycles."""
    checkpoint, place = _decoder(subject), subject.trace.key_line(DECODER)
    from engine.registry import resolve
    from tasks.etrm.decoder import changed_keys

    model: Any = resolve(need_model(subject).text, "models")
    config = {key: value for key, value in subject.arch.items() if key not in ("name", "loss")}
    changed = changed_keys(checkpoint, model.Config(**config))
    if changed and not need_config(subject).get("allow_decoder_mismatch"):
        yield finding("CFG253", "FAIL", f"the decoder was trained with {', '.join(changed)}", *place)
    else:
        yield finding("CFG253", "PASS", "the decoder has this architecture's shape and cycles", *place)


def decoder_is_clean(subject: Subject) -> Iterator[Finding]:
    """DAT530: a loaded decoder was not trained on tasks of the test split."""
    intended, decoder = (subject.intent or {}).get("init"), need_config(subject).get(DECODER)
    place = subject.trace.key_line(DECODER)
    if (intended == "scratch" and decoder) or (intended == "contaminated" and not decoder):
        yield finding("DAT530", "FAIL", f"intended init={intended}, resolved {DECODER}={decoder}", *place)
    checkpoint = _decoder(subject)
    from dataset.format import load_splits
    from tasks.etrm.decoder import provenance

    folders = [subject.trace.cwd / entry.path for entry in subject.data if entry.state == "there"]
    if not folders:
        raise NotApplicable("the data are not here: the run itself will report what its decoder has seen")
    text = provenance(checkpoint, load_splits(folders, "test"))
    level = "PASS" if text.startswith("clean") else "INFO" if intended == "contaminated" else "FAIL"
    yield finding("DAT530", level, text, *place)


def _decoder(subject: Subject) -> Any:
    """The checkpoint of the decoder that the config names. Raises: NotApplicable if there is none."""
    name = need_config(subject).get(DECODER)
    if not name:
        raise NotApplicable(f"{DECODER}=null: no decoder is loaded")
    from engine.errors import UsageError
    from engine.io import user_path
    from engine.run.load_run import find_checkpoint

    try:
        return find_checkpoint(subject.trace.cwd / user_path(str(name)))
    except UsageError as error:
        raise NotApplicable(f"{DECODER}={name} is not here ({error})") from error


def every_test_is_asked(subject: Subject) -> Iterator[Finding]:
    """DAT522: an evaluation covers each test of test_puzzles.json, in the first puzzle of its task."""
    from dataset.format import load_splits
    from engine.errors import UsageError
    from evaluators.voting.tasks import unasked_questions

    for entry in there(subject):
        folder = subject.trace.cwd / entry.path
        if not (folder / "test_puzzles.json").exists():
            continue
        try:
            tasks, never = unasked_questions(load_splits([folder], "test"))
        except UsageError as error:
            yield finding("DAT522", "FAIL", str(error), entry.path)
            continue
        of = f"{len(tasks.questions)} tests of {len(tasks.names)} tasks"
        text = (
            f"{len(never)} of {of} are never asked, first of {never[0].task}: a score leaves them out" if never else ""
        )
        yield finding("DAT522", "FAIL" if never else "PASS", f"{entry.path}: {text or f'{of}, all asked'}", entry.path)


def name_says_encoder(subject: Subject) -> Iterator[Finding]:
    """JOB032: the run name contains no encoder, in full or abbreviated, other than the one that is trained."""
    name, own = str(need_config(subject).get("run_name") or ""), str(subject.arch.get("encoder_type"))
    folder = Path(__file__).resolve().parents[2] / "models" / "encoders" / "kinds"
    kinds = sorted((path.stem for path in folder.glob("[a-z]*.py")), key=len, reverse=True)
    short = [kind.replace("_variational", "_var(?:iational)?").replace("_standard", "_st(?:andar)?d") for kind in kinds]
    for word in re.findall(rf"(?<![a-z])(?:{'|'.join(short)})(?![a-z])", name.lower()):
        if not own.startswith(word.replace("_std", "_standard")) or (word in kinds and word != own):
            text = f"run_name={name}: '{word}' in the name, but arch.encoder_type={own}"
            yield finding("JOB032", "WARN", text, subject.where, subject.line)


ENCODER_RULES = (
    Rule(("CFG252",), latent_has_a_prior),
    Rule(("CFG253",), decoder_fits),
    Rule(("DAT522",), every_test_is_asked),
    Rule(("DAT530",), decoder_is_clean),
    Rule(("JOB032",), name_says_encoder),
)
