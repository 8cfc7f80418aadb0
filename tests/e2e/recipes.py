"""The entry scripts with their schemas, recipes and families, for tests that go through all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from engine.cli.help import help_text
from engine.cli.recipes import find_groups
from engine.cli.translate import translate
from engine.config import load_synced_config
from engine.registry import FAMILIES, Family, build_config, families, resolve
from tests.conftest import ROOT, archs_of

CONFIGS = ROOT / "config"


@dataclass(frozen=True)
class Entry:
    """One entry script, with its family."""

    declared: Family

    @property
    def name(self) -> str:
        return self.declared.entry

    @property
    def schema(self) -> type:
        return self.declared.schema

    @property
    def config(self) -> str:
        """The decorator's config."""
        return self.declared.config_name

    @property
    def family(self) -> str:
        """The FAMILY of its models."""
        return self.declared.requires["FAMILY"]

    @property
    def recipes(self) -> list[str]:
        """Its files in config/."""
        stems = sorted(path.stem for path in CONFIGS.glob(f"cfg_{self.name}*.yaml"))
        longer = tuple(f"cfg_{other}" for other in FAMILIES if other.startswith(f"{self.name}_"))
        return [stem for stem in stems if not stem.startswith(longer)]

    @property
    def archs(self) -> list[str]:
        """The architectures that it can train."""
        return archs_of(self.family, **self.declared.requires)

    def own_arch(self, recipe: str) -> str:
        """The architecture that a recipe's defaults name."""
        lines = (CONFIGS / f"{recipe}.yaml").read_text(encoding="utf-8").splitlines()
        return next(line.split()[-1] for line in lines if "- arch:" in line)

    def words(self, argv: list[str], config: str) -> list[str]:
        """Overrides in Hydra's style, without Hydra's own flags; of a sweep the first job's."""
        groups = find_groups([CONFIGS], config)
        _, overrides = translate(argv, self.schema, groups=groups, aliases=self.declared.aliases)
        overrides = self.declared.rewrite(overrides, groups, {}) if self.declared.rewrite else overrides
        single = []
        for override in OverridesParser.create().parse_overrides(overrides):
            line = str(override.input_line)
            if override.is_sweep_override():
                line = line.partition("=")[0] + "=" + next(override.sweep_string_iterator())
            single.append(line)
        return single

    def required(self, config: str, overrides: list[str]) -> list[str]:
        """The script's required flags that a command leaves out, so that its recipes compose."""
        given = {word.lstrip("+").partition("=")[0]: word.partition("=")[2] for word in overrides}
        words = dict(self.declared.schema.REQUIRED)
        if given.get("arch") == "attn_finetune":  # has no rank
            words.pop("arch.lora_rank", None)
        return [f"++{key}={value}" for key, value in words.items() if key not in given]

    def compose(self, config: str, *overrides: str) -> Any:
        """The checked config of a recipe."""
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONFIGS), version_base=None):
            composed = compose(config, overrides=[*overrides, *self.required(config, list(overrides))])
        return load_synced_config(composed, schema=self.schema, entry=self.name)

    def accept(self, argv: list[str]) -> None:
        """Everything of a launch that needs neither data nor torch; raises what the launch would raise."""
        config = next((w.partition("=")[2] for w in argv if w.startswith("--config-name=")), self.config)
        if "--help" in argv:
            shown = help_text(self.declared, find_groups([CONFIGS], config), [CONFIGS], config)
            assert f"usage: python {self.name}.py" in shown
            return
        made = self.compose(config, *self.words(argv, config))
        if not made.arch:  # a resume takes it from the run
            return
        hyper = {key: value for key, value in made.arch.items() if key != "loss"}
        if "mine" in hyper["name"]:  # a class that the page itself shows: the runs of the page build it
            return
        build_config(resolve(hyper["name"], "models"), hyper, "arch")
        loss = dict(made.arch["loss"])
        if "mine" not in loss["name"]:
            build_config(resolve(loss["name"], "losses"), loss, "arch.loss")


ENTRIES = {family.entry: Entry(family) for family in families()}
PRETRAIN, TRAIN = ENTRIES["pretrain"], ENTRIES["train"]


def entry_of(script: str) -> Entry | None:
    """The entry of `train.py`; None for another script."""
    return ENTRIES.get(Path(script).stem) if "/" not in script else None
