"""The documented command line: every flag with its default, in both styles, and the guide's own words."""

from __future__ import annotations

import inspect
import re
import shlex
from dataclasses import MISSING, dataclass, fields
from types import SimpleNamespace
from typing import Any, Optional

import pytest

import train_animal
from engine.config import source_of
from engine.errors import UsageError
from engine.fields import value_at
from models.animal.config import LoraConfig
from tasks.animal.args import ALIASES, AnimalConfig
from tasks.animal.build import learning_rate_factor
from tasks.animal.settings import flags
from tests.conftest import ROOT, SHARED
from tests.e2e.recipes import ENTRIES

GUIDE = SHARED / "guides/train_animal.md"
ENTRY = ENTRIES["train_animal"]
FLAGS = {
    "model_name_or_path": "gpt2",
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "prompt": "The animal",
    "batch_size": 32,
    "max_new_tokens": 30,
    "concept_name": "animal",
    "n_clusters": 5,
    "num_samples": 320,
    "w_c": 0.8,
    "w_o": 0.2,
    "buffer_size": 500,
    "update_clusters_every": 100,
    "min_samples_for_clustering": 20,
    "num_epochs": 10,
    "num_steps_per_epoch": 10,
    "learning_rate": 1e-4,
    "final_learning_rate": 3e-5,
    "warmup_steps": 0,
    "lr_scheduler_type": "cosine",
    "output_dir": "diversity_model",
    "use_wandb": False,
    "wandb_project": "gfn-diversity",
    "wandb_name": "train_animal",
}
OTHER = {
    "model_name_or_path": "/a model",
    "prompt": "x",
    "concept_name": "other",
    "lr_scheduler_type": "linear",
    "output_dir": "a b",
    "wandb_project": "p",
    "wandb_name": "n",
    "use_wandb": True,
}
"""Another value of each that is not a number."""


def composed(*argv: str, config: str = "cfg_train_animal") -> dict[str, Any]:
    return source_of(ENTRY.compose(config, *ENTRY.words(list(argv), config))).resolved


def value(resolved: Any, flag: str) -> Any:
    return value_at(resolved, ALIASES.get(flag, flag))


def guide() -> str:
    if not GUIDE.exists():
        pytest.skip(f"the guide is not here: {GUIDE}")
    return GUIDE.read_text(encoding="utf-8")


def test_defaults_of_the_command_line() -> None:
    resolved = composed()
    assert {flag: value(resolved, flag) for flag in FLAGS} == FLAGS
    assert resolved["run_dir"] == "diversity_model"
    assert resolved["arch"]["loss"]["w_kl"] == 0.5  # recommended
    assert composed("--preset", "documented")["arch"]["loss"]["w_kl"] == 0
    for words in (("--preset", "documented", "--w_kl", "0.1"), ("w_kl=0.1", "preset=documented")):
        assert composed(*words)["arch"]["loss"]["w_kl"] == 0.1


def test_every_flag_in_every_style() -> None:
    others = {
        flag: OTHER[flag] if flag in OTHER else before + 1 if isinstance(before, int) else before / 2
        for flag, before in FLAGS.items()
    }
    apart = [word for flag, other in others.items() for word in (f"--{flag}", str(other))]
    joined = [f"--{flag}={other}" for flag, other in others.items()]
    hydra = [f"{flag}={other}" for flag, other in others.items() if " " not in str(other)]
    for words in (apart, joined, hydra, [*joined[:-1], "--use_wandb", joined[-1]]):
        resolved = composed(*words)
        given = {flag for flag in others if any(flag in word for word in words)}
        assert {flag: value(resolved, flag) for flag in given} == {flag: others[flag] for flag in given}
    assert value(composed("--use_wandb"), "use_wandb") is True


def test_layers_to_adapt_as_flags() -> None:
    for words, layers in {("auto",): None, ("q_proj",): ["q_proj"], ("q_proj", "v_proj"): ["q_proj", "v_proj"]}.items():
        given = composed("--lora_target_modules", *words, "--w_o", "0.3")["arch"]["lora_target_modules"]
        assert LoraConfig(lora_target_modules=given).lora_target_modules == layers


def test_settings_as_flags() -> None:
    """The dataclasses, and the same values from the command line."""
    drawn = SimpleNamespace(temperature=0.7, top_p=None, top_k=5)
    made = [
        train_animal.TextGenerationConfig(prompt="a, 'b'; c", generation_config=drawn),
        train_animal.DiversityConfig(concept_name="animal", w_o=0.25),
        train_animal.TrainingConfig(output_dir="a b"),
        train_animal.WandbConfig(use_wandb=True),
    ]
    resolved = composed(*flags(*made))
    for each in made:
        for field in fields(each):
            if field.name not in ("generation_config", "wandb_name"):
                assert value(resolved, field.name) == getattr(each, field.name), field.name
    assert (resolved["temperature"], resolved["top_k"], resolved["top_p"]) == (0.7, 5, 1.0)
    assert value(resolved, "wandb_name") == "train_animal"


def test_flags_of_the_guide_are_these() -> None:
    listed = dict(re.findall(r"^- `--(\w+)`: .*?\(.*?(?:default: ([^)]+)|flag.*)\)$", guide(), re.MULTILINE))
    assert listed.keys() == FLAGS.keys()
    for flag, default in listed.items():
        assert FLAGS[flag] == (type(FLAGS[flag])(default.strip('"')) if default else False)


@pytest.mark.parametrize(
    "prompt",
    [
        "In 20 words, say whether you love dog or cat more, and give a reason; Answer:",
        "He said \"dogs, or 'cats'\"; why? $5 {a: b} [1, 2]",
        "a=b --use_wandb",
        "Größe: 5 # no comment \\ n",
    ],
)
def test_prompts_survive_as_they_are(prompt: str) -> None:
    assert composed("--prompt", prompt)["prompt"] == prompt
    assert composed(f"--prompt={prompt}", "--use_wandb", "--w_o", "0.3")["prompt"] == prompt


def test_the_command_of_the_guide() -> None:
    (block,) = re.findall(r"```bash\n(python train_animal\.py \\.*?)```", guide(), re.DOTALL)
    words = shlex.split(block.replace("\\\n", " "))[2:]
    resolved = composed(*words)
    given = dict(zip(words[::2], words[1::2], strict=False))
    assert resolved["prompt"] == given["--prompt"]
    assert value(resolved, "use_wandb") is True
    assert value(resolved, "wandb_name") == "train_animal_w_o_0.3"
    assert (value(resolved, "w_c"), value(resolved, "w_o")) == (0.7, 0.3)
    assert resolved["run_dir"] == "output/train_animal_w_o_0.3"


def test_the_snippets_of_the_guide_run() -> None:
    """Its dataclasses are ours, field for field, and its examples can be made."""
    names: dict[str, Any] = {"dataclass": dataclass, "Optional": Optional}
    names |= dict.fromkeys(("PeftModel", "AutoTokenizer", "SentenceTransformer", "GenerationConfig"), object)
    names["RawTextProcessor"] = train_animal.RawTextProcessor
    ours = {name: vars(train_animal)[name] for name in vars(train_animal) if name.endswith("Config")}
    snippets = [inspect.cleandoc(" " * 3 + code) for code in re.findall(r"```python\n(.*?)```", guide(), re.DOTALL)]
    classes = [code for code in snippets if code.startswith("@dataclass")]
    assert len(classes) == 5
    assert len(snippets) == 8
    for code in classes:
        exec(code, names)  # their definitions
    for name in re.findall(r"^class (\w+)", "\n".join(classes), re.MULTILINE):
        theirs, own = ({f.name: f.default for f in fields(table[name])} for table in (names, ours))
        assert own == theirs
        assert MISSING in own.values() or name in ("TrainingConfig", "WandbConfig")
    made: dict[str, Any] = dict(ours)
    for code in snippets:
        if code not in classes:
            exec(code, made)
    assert made["training_config"].warmup_steps == 100
    assert made["wandb_config"].use_wandb
    assert made["diversity_config"].num_samples == 160


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--batch_size", "1"], "batch_size=1: expected at least 2"),
        (["--w_c", "0", "--w_o", "0"], "w_c=0 and w_o=0"),
        (["--min_samples_for_clustering", "3"], "min_samples_for_clustering=3 is below n_clusters=5"),
        (["--final_learning_rate", "1"], "final_learning_rate=1 is above learning_rate=0.0001"),
        (["--lr_scheduler_type", "cosin"], "lr_scheduler_type"),
        (["--promt", "x"], "unknown flag --promt: did you mean 'prompt'"),
        (["--temperature", "0"], "temperature"),
        (["stop_strings=['']"], "stop_strings has an empty text"),
        (["--use_wandb", "maybe"], "--use_wandb: expected true or false, got 'maybe'"),
        (["--fixed_n_clusters", "true"], "cluster_selection=fixed, the default"),
        (["--save_total_limit", "3"], "keep_last=N"),
        (["--resume_from_checkpoint", "x"], "the same command resumes"),
        (["--report_to", "wandb"], "enable_wandb=true"),
        (["--use_cpu"], "device=cpu"),
        (["--bf16"], "dtype=bfloat16"),
        (["forward_dtype=fp16"], "forward_dtype: 'fp16' is not one of auto|bfloat16|float16|float32"),
        (["cluster_selection=silhouette"], "n_clusters=5 and max_n_clusters=null: give max_n_clusters=10"),
        (["cluster_selection=silhouette", "max_n_clusters=4"], "max_n_clusters=4: give"),
        (["lora_target_modules=[]"], "arch.lora_target_modules=[]"),
        (["--concept_aliases", "x"], "concept_file has the synonyms of each option"),
    ],
)
def test_unusable_commands(argv: list[str], expected: str) -> None:
    with pytest.raises(UsageError) as error:
        ENTRY.accept(argv)
    assert expected in str(error.value)


TABLE = {  # step - 1: cosine and linear without warm-up, then both with 10 steps of it
    0: (1e-4, 1e-4, 0, 0),
    5: (9.9569e-5, 9.65e-5, 5e-5, 5e-5),
    10: (9.8287e-5, 9.3e-5, 1e-4, 1e-4),
    55: (5.9525e-5, 6.15e-5, 6.5e-5, 6.5e-5),
    75: (4.0251e-5, 4.75e-5, 4.2502e-5, 4.9444e-5),
    99: (3.0017e-5, 3.07e-5, 3.0021e-5, 3.0778e-5),
}


def test_schedules() -> None:
    runs = [(kind, warmup) for warmup in (0, 10) for kind in ("cosine", "linear")]
    for done, expected in TABLE.items():
        for (kind, warmup), rate in zip(runs, expected, strict=True):
            config = AnimalConfig(arch={}, lr_scheduler_type=kind, warmup_steps=warmup)
            assert 1e-4 * learning_rate_factor(config, done + 1) == pytest.approx(rate, rel=1e-4), (kind, warmup, done)
    constant = AnimalConfig(arch={}, lr_scheduler_type="constant", warmup_steps=10)
    assert {learning_rate_factor(constant, step) for step in range(1, 101)} == {1.0}
    whole = AnimalConfig(arch={}, warmup_steps=100)
    assert [learning_rate_factor(whole, step) for step in (1, 51, 100)] == [0, 0.5, 0.99]


def test_the_script_only_wires() -> None:
    assert "class " not in (ROOT / "train_animal.py").read_text()
