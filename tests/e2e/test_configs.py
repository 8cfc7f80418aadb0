"""Every shipped recipe composes, builds at full size on `meta`, takes a step, and has no key that nothing reads."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
import torch

from engine.loop import compiling
from engine.registry import family_of
from tests.conftest import ROOT, _entry, run_forked, run_script
from tests.e2e.recipes import ENTRIES, PRETRAIN, TRAIN, Entry
from tests.train import conftest as small_texts

texts = small_texts.texts  # a fixture
PAIRS = [
    (entry, recipe, arch)
    for entry in ENTRIES.values()
    for recipe in entry.recipes
    for arch in entry.archs
    if not (recipe == "cfg_pretrain_sudoku_6x6_feudal" and arch.startswith("trm"))  # one stack has no H_layers
    if not (recipe == "cfg_pretrain_sudoku_hard_fast" and arch == "trm_hier6")  # nine updates, six latents
    if not (recipe in ("cfg_pretrain_etrm_fewshot", "cfg_pretrain_etrm_pattern") and arch == "etrm")  # num_act_steps
]
IDS = [f"{recipe}-{arch}" for _, recipe, arch in PAIRS]
SHAPES = {
    "sudoku-default": (16, 6, 1),
    "sudoku-4x4": (16, 6, 1),
    "sudoku-6x6": (36, 8, 1),
    "sudoku-9x9-easy": (81, 11, 1),
    "sudoku-9x9-hard": (81, 11, 1),
    "sudoku-extreme-1k-aug-1000": (81, 11, 1),
    "maze-8x8": (64, 6, 1),
    "maze-30x30-hard-1k": (900, 6, 1),
    "arc1concept-aug-1000": (900, 12, 876_406),
    "arc2concept-aug-1000": (900, 12, 1_191_730),
    "arc-corpus-easy-10x10": (100, 12, 133),
    # with an encoder of demonstrations the number of puzzles sizes nothing
    "arc1concept-encoder-aug-1000": (900, 12, 1),
    "few-shot-6x6": (36, 12, 1),
    "pattern-5x5": (25, 12, 1),
}
COUNTS = {
    ("cfg_pretrain_sudoku_extreme_mlp", "trm"): 5_028_866,
    ("cfg_pretrain_sudoku_extreme_att", "trm"): 6_828_034,
    ("cfg_pretrain_maze_hard", "trm"): 6_822_914,
    ("cfg_pretrain_arc_agi_1", "trm"): 6_829_058,
    ("cfg_pretrain_arc_agi_2", "trm"): 6_829_058,
    ("cfg_pretrain_etrm_arc_agi_1", "etrm"): 6_829_058 + 11_347_968,
    ("cfg_pretrain_sudoku_4x4", "trm"): 62_338,
    ("cfg_pretrain_sudoku_6x6", "trm"): 77_954,
    ("cfg_pretrain_sudoku_9x9_easy", "trm"): 261_890,
    # nanoGPT's own counts leave out the positions: 10.65 M and 0.80 M
    ("cfg_train_shakespeare", "gpt"): 10_745_088,
    ("cfg_train_cpu", "gpt"): 804_096,
}


def test_every_architecture_belongs_to_a_family() -> None:
    known = {arch for entry in ENTRIES.values() for arch in entry.archs}
    assert known == {path.stem for path in (ROOT / "config/arch").glob("*.yaml")}


def shape_of(entry: Entry, config) -> object:
    """What the data of a recipe fix about its model."""
    if entry is TRAIN:
        from models.language_models.config import LMShape

        return LMShape((65,))
    if entry.family == "feedback":
        from models.feedback.adapter_config import AdapterShape
        from models.feedback.config import BaseConfig
        from tasks.feedback.base import text_shape

        text = text_shape(257)
        return AdapterShape(BaseConfig(), text) if "frozen_base" in entry.declared.requires.values() else text
    if entry.family == "animal":
        pytest.importorskip("peft", reason="pip install -e '.[animal]'")
        return entry.declared.function("verify", "full_shape")(config)
    from models.recursive_reasoning.act import PuzzleShape

    return PuzzleShape(*SHAPES[Path(config.data_paths[0]).name])


@pytest.mark.parametrize(
    ("entry", "recipe", "arch"),
    [
        pytest.param(*pair, marks=() if pair[0].own_arch(pair[1]) == pair[2] else pytest.mark.slow, id=name)
        for pair, name in zip(PAIRS, IDS, strict=True)
    ],
)
def test_full_size_model_builds_on_meta(entry: Entry, recipe: str, arch: str) -> None:
    from engine.task import Runtime

    config = entry.compose(recipe, f"arch={arch}")
    device = torch.device("meta")
    runtime = Runtime(
        device=device, dtype=torch.float32, attention="auto", seed=0, accumulation=1, rank=0, world_size=1
    )
    with device:
        model, _ = family_of(entry.name, "entry").create_model(config, shape_of(entry, config), runtime)
    assert all(p.is_meta for p in model.parameters())
    if (recipe, arch) in COUNTS:
        count = model.num_parameters() if entry is PRETRAIN else sum(p.numel() for p in model.parameters())
        assert count == COUNTS[recipe, arch]


def one_step_reading_everything(script: str, argv: list[str]) -> None:
    """Run a command and print the declared keys that nothing read."""
    import engine.config
    import engine.registry
    import engine.run.stored
    from engine.schema import structure
    from verification.probes.reads import track, unread

    made = []

    def collecting(cls, data, where=""):
        declared = getattr(cls, "_records", cls)  # a config that is read again
        made.append((where, track(structure(declared, data, where))))
        return made[-1][1]

    for module in (engine.config, engine.registry, engine.run.stored):
        module.structure = collecting
    try:
        _entry(script, argv)
    except SystemExit as end:
        if end.code:
            raise
    read: dict[str, bool] = {}
    for where, instance in made:
        missing = set(unread(instance, where))
        for key in vars(instance):
            name = f"{where}.{key}" if where else key
            if not key.startswith("_"):
                read[name] = read.get(name, False) or name not in missing
    print("UNREAD", sorted(name for name, seen in read.items() if not seen), file=sys.stderr)


# Settings with the keys that are read because of them, and the recipe that is enough to see it.
CONDITIONAL = (
    (
        "run_dir=null epochs=2 eval_interval=1 select_on=validation ema=true ema_share=null arch.mlp_t=false arch.pos_encodings=rope "
        "arch.puzzle_emb_ndim=32 arch.puzzle_emb_len=1",
        {"project_name", "select_on", "validation_groups", "ema_rate", "arch.rope_theta", "arch.puzzle_emb_len"},
        "cfg_pretrain_sudoku_4x4",
    ),
    # The transformer baseline has no recursion to count, but recipes set its sizes for whatever arch they are given.
    (
        "arch.name=recursive_reasoning.hrm@HRM arch.H_layers=1",
        {"arch.H_cycles", "arch.L_cycles"},
        "cfg_pretrain_sudoku_4x4",
    ),
)

# The same of train.py; tests/train/test_effects.py and tests/models show what each does where it is read.
OTHER_MODES = {
    *[
        "dataset_list",
        "dataset_sampling_probs",
        "dataset_sampling_probs_final",
        "dataset_sampling_probs_transition_method",
    ],
    *[
        "dataset_interleaving",
        "dataset_interleaving_shuffle",
        "multicontext_datasets",
        "gpt2_type",
        "prev_run_ckpt",
        "ema_rate",
    ],
    *["arch.rope_theta", "arch.share_size"],
    *["beta1", "beta2", "weight_decay", "out_dir"],  # read by interpolation: config/optimizer, run_dir
}
SMALL = {
    "pretrain": ("+debug=tiny", "max_steps=1", "eval_max_examples=4"),
    "train": ("+debug=tiny_text", "offline=stand_in"),
}


# Each recipe with its own architecture, and one small recipe of each script with all others: keys are per schema.
ONE_STEP = [
    pair
    for pair in PAIRS
    if pair[0].name in SMALL
    and (pair[1] in ("cfg_pretrain_sudoku_4x4", "cfg_train_cpu") or pair[0].own_arch(pair[1]) == pair[2])
]


@pytest.mark.parametrize(("entry", "recipe", "arch"), ONE_STEP, ids=[f"{pair[1]}-{pair[2]}" for pair in ONE_STEP])
def test_one_step_reads_every_key(
    workplace: Path, texts: Path, monkeypatch: pytest.MonkeyPatch, entry: Entry, recipe: str, arch: str
) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "eager")  # generating code takes seconds (forks inherit it)
    argv = [f"--config-name={recipe}", f"arch={arch}", *SMALL[entry.name], "device=cpu"]
    argv += [f"dataset={texts}/plain", "max_sample_tokens=2"] if entry is TRAIN else []
    unread = unread_keys(entry.name, argv, workplace)
    unread.discard("script")  # compared with the running script in the composed config, before the schema reads it
    if entry is TRAIN:
        assert unread <= OTHER_MODES, unread - OTHER_MODES
        return
    assert unread <= (allowed := set[str]().union(*(keys for _, keys, _ in CONDITIONAL))), unread - allowed
    for settings, keys, enough in CONDITIONAL:
        if unread & keys and recipe == enough:
            again = unread_keys(entry.name, [*argv, "run_name=again", *settings.split()], workplace)
            assert not again & unread & keys, settings


def unread_keys(script: str, argv: list[str], cwd: Path) -> set[str]:
    """The declared keys that a run leaves unread."""
    result = run_forked(one_step_reading_everything, script, argv, cwd=cwd)
    assert result.code == 0, result.output
    return set(ast.literal_eval(result.output.split("UNREAD ")[1].splitlines()[0]))


@pytest.mark.parametrize("name", ["layers.block@ReasoningBlock", "sparse_embedding@SparseEmbedding"])
def test_an_architecture_of_another_family_is_refused(workplace: Path, name: str) -> None:
    result = run_script("pretrain", "+debug=tiny", f"arch.name={name}", cwd=workplace)
    assert result.code == 2
    assert "FAMILY" in result.output
    assert len([line for line in result.output.splitlines() if line.startswith("error")]) == 1


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["arch=nope"], "hrm"),
        (["--config-name=cfg_pretrian"], "cfg_pretrain"),
        (["arch.L_cyles=4"], "arch.L_cycles"),
        (["+arch.L_cyles=4"], "arch.L_cycles"),
        (["++arch.loss.loss_typ=x"], "arch.loss.loss_type"),
        (["--global_batch_sise", "4"], "global_batch_size"),
        (["+lrr=3"], "lr"),
        (["lr=fast"], "lr"),
        (["arch.hidden_size=30"], "arch.num_heads"),
        (["arch.loss.loss_type=softmax"], "softmax_cross_entropy"),
        (["device=gpu"], "cuda"),
        (["device=cuda:99"], "device=cuda:99: "),
        (["arch.name=recursive_reasoning.trn@TRM"], "recursive_reasoning.trm"),
        (["arch.name=recursive_reasoning.trm@TMR"], "TRM"),
        (["evaluators=[{name: steps@PerStepAcuracy}]"], "PerStepAccuracy"),
        (["evaluators=[{name: steps@PerStepAccuracy, typo: 1}]"], "typo"),
        (["data_paths=[data/sudoku-9x8]"], "data/sudoku-9x8"),
        (["epochs=7", "eval_interval=3"], "eval_interval"),
        (["global_batch_size=100000"], "global_batch_size"),
        (["accumulation=3"], "global_batch_size"),
        (["lr=nan"], "lr: expected a finite number"),
        (["arch.rope_theta=inf"], "arch.rope_theta: expected a finite number"),
        (["run_name="], "run_name"),
        (["run_name=../x"], "run_name"),
        (["run_dir=data"], "not a run"),
        (["freeze_weights=true", "arch.puzzle_emb_ndim=0", "arch.puzzle_emb_len=0"], "freeze_weights"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_exit_two(workplace: Path, argv: list[str], expected: str) -> None:
    tiny = [] if argv[0].startswith("--config-name") else ["+debug=tiny"]
    result = run_script("pretrain", *tiny, "device=cpu", *argv, cwd=workplace)
    assert result.code == 2, result.output
    assert "Traceback" not in result.output
    errors = [line for line in result.output.splitlines() if line.startswith("error")]
    assert len(errors) == 1, result.output
    assert expected in errors[0]


def test_a_misspelt_key_in_yaml_is_refused(workplace: Path) -> None:
    extra = workplace / "extra"
    extra.mkdir()
    (extra / "cfg_mine.yaml").write_text(
        "defaults:\n  - cfg_pretrain_sudoku_4x4\n  - _self_\narch:\n  loss:\n    precison: float64\n"
    )
    result = run_script("pretrain", "--config-dir", str(extra), "--config-name=cfg_mine", "device=cpu", cwd=workplace)
    assert result.code == 2
    assert "arch.loss.precision" in result.output
