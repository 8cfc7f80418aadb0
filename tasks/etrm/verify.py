"""What verification has to know about recursive reasoning over demonstrations; its probes are in probes.py."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.puzzle_data import RULES, puzzle_data, training_groups, write_puzzles
from tasks.recursive_reasoning import verify as recursive_reasoning
from tasks.recursive_reasoning.verify import BATCH, SEQ_LEN
from verification.finding import Finding
from verification.rule import NotApplicable, Rule, finding, need_config, need_model
from verification.rules.data import there
from verification.spec import QUESTIONS, Settings, Verification
from verification.subject import Subject

DECODER = "load_pretrained_decoder"
DEMONSTRATIONS, VOCAB = 3, 12
SIZES = recursive_reasoning.SIZES | {"context_len": 4, "latent_dim": 8, "num_act_steps": 4}
PINNED: Settings = recursive_reasoning.PINNED | {
    "max_train_groups": None,
    DECODER: None,
    "allow_decoder_mismatch": False,
    "freeze_encoder_steps": 0,
    "freeze_decoder_steps": 0,
    "diagnostics_interval": 1000,  # inspecting the context embeds rows again
}
"""What every tiny run of pretrain_etrm.py has: size, length, place. Loading and freezing have probes of their own."""
ADAPTING = ("arc_search@", "arc_adapt@")
"""Evaluators that search or train at test time: they need gradients, which an evaluation otherwise must not keep."""


# --- the tiny instance ------------------------------------------------------------------------------------------------


def shrink(resolved: Mapping[str, Any], data: Path) -> Settings:
    """Settings of a tiny run: the arch shrunk, the run short, launch keys left at their defaults."""
    tiny = recursive_reasoning.shrink(resolved, data, SIZES)
    arch = tiny["arch"]
    if "num_act_steps" in arch:
        arch["num_act_steps"] = max(2, arch["num_act_steps"])  # a single step is as much that of a dynamic model
    if "encoder_num_layers" in arch:
        arch["encoder_num_layers"] = 1  # null are those of the table, up to six
    evaluators = [one for one in resolved.get("evaluators") or () if not str(one.get("name")).startswith(ADAPTING)]
    return tiny | PINNED | {"data_paths": [str(data)], "evaluators": evaluators}


def write_patterns(root: Path, train: int = 0, test: int = 0) -> None:
    """16 training and 8 test tasks on 4x4 grids, each with its own pattern and three demonstrations."""
    import numpy as np

    def draw(random: Any, count: int) -> tuple[Any, Any]:
        inputs = random.integers(2, VOCAB, (count, DEMONSTRATIONS + 1, SEQ_LEN))
        rule = random.permuted(np.tile(np.arange(VOCAB - 2), (count, 1)), axis=1)
        labels = 2 + np.take_along_axis(rule[:, None], inputs - 2, axis=2)
        return inputs.reshape(-1, SEQ_LEN), labels.reshape(-1, SEQ_LEN)

    splits = {"train": (2 * BATCH, 1, train), "test": (BATCH, 2 * BATCH + 1, test)}
    write_puzzles(root, draw, splits, words=VOCAB, demonstrations=DEMONSTRATIONS)


def full_shape(config: Any) -> Any:
    """The unshrunk model stands on the probes' grids."""
    from models.recursive_reasoning.act import PuzzleShape

    return PuzzleShape(SEQ_LEN, VOCAB, 3 * BATCH + 1)


def alternatives(data: Path) -> dict[str, tuple[Settings, Settings]]:
    """Other values of keys whose type gives none, or none that fits."""
    own: dict[str, tuple[Settings, Settings]] = {"arch.encoder_type": ({}, {"arch.encoder_type": "lpn_standard"})}
    return recursive_reasoning.alternatives(data, write_patterns) | own


def probes() -> Iterable[Any]:
    """Those of encoders."""
    from tasks.etrm.probes import PROBES

    return PROBES


# --- rules ------------------------------------------------------------------------------------------------------------


def count_steps(subject: Subject) -> int | None:
    """Optimizer steps as `tasks.etrm.task.SlotPlan` counts them."""
    config = subject.resolved or {}
    groups = training_groups(config, subject.data)
    epochs, batch, most = (config.get(key) for key in ("epochs", "global_batch_size", "max_train_groups"))
    if groups is None or not (isinstance(epochs, int) and isinstance(batch, int) and epochs > 0 and batch > 0):
        return None
    return max(1, (min(groups, most) if isinstance(most, int) else groups) * epochs // batch)


def latent_has_a_prior(subject: Subject) -> Iterator[Finding]:
    """CFG252, by what the encoder's class declares."""
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
    """CFG253: the shape and cycles of the decoder that is loaded."""
    checkpoint, place = _decoder(subject), subject.trace.key_line(DECODER)
    from engine.registry import resolve
    from tasks.etrm.decoder import other_keys

    model: Any = resolve(need_model(subject).text, "models")
    config = {key: value for key, value in subject.arch.items() if key not in ("name", "loss")}
    changed = other_keys(checkpoint, model.Config(**config))
    if changed and not need_config(subject).get("allow_decoder_mismatch"):
        yield finding("CFG253", "FAIL", f"the decoder was trained with {', '.join(changed)}", *place)
    else:
        yield finding("CFG253", "PASS", "the decoder has this architecture's shape and cycles", *place)


def decoder_is_clean(subject: Subject) -> Iterator[Finding]:
    """DAT530: whether the decoder that is loaded was trained on tasks of the test split."""
    meant, given = (subject.intent or {}).get("init"), need_config(subject).get(DECODER)
    place = subject.trace.key_line(DECODER)
    if (meant == "scratch" and given) or (meant == "contaminated" and not given):
        yield finding("DAT530", "FAIL", f"intended init={meant}, resolved {DECODER}={given}", *place)
    checkpoint = _decoder(subject)
    from dataset.format import load_splits
    from tasks.etrm.decoder import provenance

    folders = [subject.trace.cwd / entry.path for entry in subject.data if entry.state == "there"]
    if not folders:
        raise NotApplicable("the data are not here: the run itself will report what its decoder has seen")
    text = provenance(checkpoint, load_splits(folders, "test"))
    level = "PASS" if text.startswith("clean") else "INFO" if meant == "contaminated" else "FAIL"
    yield finding("DAT530", level, text, *place)


def _decoder(subject: Subject) -> Any:
    """The checkpoint that the config names. Raises: NotApplicable."""
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
    """DAT522: each test of test_puzzles.json is one that an evaluation asks, in the first puzzle of its task."""
    from dataset.format import load_splits
    from engine.errors import UsageError
    from evaluators.voting.tasks import never_asked

    for entry in there(subject):
        folder = subject.trace.cwd / entry.path
        if not (folder / "test_puzzles.json").exists():
            continue
        try:
            tasks, never = never_asked(load_splits([folder], "test"))
        except UsageError as error:
            yield finding("DAT522", "FAIL", str(error), entry.path)
            continue
        of = f"{len(tasks.questions)} tests of {len(tasks.names)} tasks"
        text = (
            f"{len(never)} of {of} are never asked, first of {never[0].task}: a score leaves them out" if never else ""
        )
        yield finding("DAT522", "FAIL" if never else "PASS", f"{entry.path}: {text or f'{of}, all asked'}", entry.path)


def name_says_encoder(subject: Subject) -> Iterator[Finding]:
    """JOB032: no other encoder in the run's name, whole or shortened, than the one that it trains."""
    name, own = str(need_config(subject).get("run_name") or ""), str(subject.arch.get("encoder_type"))
    folder = Path(__file__).resolve().parents[2] / "models" / "encoders" / "kinds"
    kinds = sorted((path.stem for path in folder.glob("[a-z]*.py")), key=len, reverse=True)
    short = [kind.replace("_variational", "_var(?:iational)?").replace("_standard", "_st(?:andar)?d") for kind in kinds]
    for word in re.findall(rf"(?<![a-z])(?:{'|'.join(short)})(?![a-z])", name.lower()):
        if not own.startswith(word.replace("_std", "_standard")) or (word in kinds and word != own):
            text = f"run_name={name}: '{word}' in the name, but arch.encoder_type={own}"
            yield finding("JOB032", "WARN", text, subject.where, subject.line)


VERIFICATION = Verification(
    act=True,
    shrink=shrink,
    write_data=write_patterns,
    full_shape=full_shape,
    alternatives=alternatives,
    pinned=PINNED,
    decides=("evaluators", "grad_clip", "query_policy", "demo_dropout"),
    exercised={"evaluators": [{"name": "steps@PerStepAccuracy"}]},
    encoder="encoder",
    table_key="puzzle_identifiers",
    sized="on this board size",
    probes=probes,
    data=puzzle_data,
    questions=QUESTIONS,
    steps=count_steps,
    named_values=recursive_reasoning.NAMED_VALUES,
    rates=lambda subject: {"encoder": "lr", "decoder": "lr"},
    rules=(
        *RULES,
        Rule(("CFG252",), latent_has_a_prior),
        Rule(("CFG253",), decoder_fits),
        Rule(("DAT522",), every_test_is_asked),
        Rule(("DAT530",), decoder_is_clean),
        Rule(("JOB032",), name_says_encoder),
    ),
)
