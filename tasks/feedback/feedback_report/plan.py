"""The runs of the small comparison of docs/results/feedback.md, as two job files: bases, and adapters of them.

Two bases of equal size, one for each data set, and looped ones with as many parameters. Everything else is trained on
GSM8K: adapters of the WikiText base (other domain) and of the GSM8K base (in-domain), and GSM8K bases that train for as
many steps as a base and its adapter together.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.cli.translate import quote
from engine.errors import UsageError
from engine.io import atomic_write_text
from engine.registry import ROOT

SETTINGS = ROOT / "config/feedback_comparison.json"
WIDE = "arch.init_std=0.1"
"""The default, 0.02, is for wider models: at widths of 16 to 64 they learn little within a few hundred steps."""
DISTINCT, RECURRENT = (WIDE, "arch.hyper_dim=16"), (WIDE, "arch.hyper_dim=24")
"""Widths at which both have about 30,000 parameters, as many as the attention matrices of the base."""
RANK = 4
"""Rank of the hypernetworks and of the smallest static LoRA."""
EQUAL_RANK = 27
"""Rank at which a static LoRA has as many parameters as the hypernetwork with distinct blocks."""
LOOPED = ("arch=feedforward_looped", "arch.loop_start=0", "arch.loop_layers=3")
FILES = ("bases", "adapters")


@dataclass(frozen=True)
class Sizes:
    """Lengths of the runs: steps of a base, and of an adapter."""

    base: int = 300
    adapter: int = 150
    sweep: tuple[int, ...] = (1, 16)
    """Further ranks, for the first seed only."""


def bases(seed: int, folder: Path, sizes: Sizes) -> Iterator[list[str]]:
    """Commands that train the bases of one seed."""
    looped = {f"looped{loops}": (*LOOPED, f"arch.loops={loops}") for loops in (2, 3)}
    for name, words in {"base": (), **looped}.items():
        yield _base(seed, folder, "wikitext", name, sizes.base, *words)
    yield _base(seed, folder, "gsm8k", "base", sizes.base)
    for name, words in {"longer": (), **looped}.items():
        yield _base(seed, folder, "gsm8k", name, sizes.base + sizes.adapter, *words)


def adapters(seed: int, folder: Path, sizes: Sizes, *, sweep: bool) -> Iterator[list[str]]:
    """Commands that train the adapters of one seed."""
    lora, tuned = ("arch=static_lora", f"lora_rank={EQUAL_RANK}"), ("arch=attn_finetune",)
    distinct = (*DISTINCT, f"lora_rank={RANK}")
    for place in ("wikitext", "gsm8k"):
        on = (seed, folder, sizes.adapter, f"{place}_base")
        yield _adapter(*on, "lora", *lora)
        yield _adapter(*on, "finetune", *tuned)
        yield _adapter(*on, "distinct", *distinct)
        yield _adapter(*on, "recurrent", *RECURRENT, f"lora_rank={RANK}", script="feedbackward_rec_alt_train.py")
    on = (seed, folder, sizes.adapter, "wikitext_base")
    yield _adapter(*on, "lora_small", "arch=static_lora", f"lora_rank={RANK}")
    yield _adapter(*on, "reverse", *distinct, "feedback_reverse=true")
    yield _adapter(*on, "tokens", *distinct, "arch.conditioning=tokens")
    yield _adapter(*on, "passes2", *distinct, "arch.n_passes=2")
    for loops in (2, 3):
        yield _adapter(seed, folder, sizes.adapter, f"wikitext_looped{loops}", "lora", *lora)
    for rank in sizes.sweep if sweep else ():
        yield _adapter(*on, f"rank{rank}", *DISTINCT, f"lora_rank={rank}")


def _base(seed: int, folder: Path, dataset: str, name: str, steps: int, *words: str) -> list[str]:
    return _command("feedforward_train.py", seed, folder / f"{dataset}_{name}", dataset, steps, WIDE, *words)


def _adapter(
    seed: int, folder: Path, steps: int, base: str, name: str, *words: str, script: str = "feedbackward_alt_train.py"
) -> list[str]:
    named = (
        f"ff_checkpoint_dir={quote(str(folder / base))}",
        f"ff_checkpoint_name=epoch_ckpt_{base.partition('_')[0]}.pt",
    )
    return _command(script, seed, folder / f"on_{base}_{name}", "gsm8k", steps, *named, *words)


def _command(script: str, seed: int, run: Path, dataset: str, steps: int, *words: str) -> list[str]:
    plain = ("num_samples=0", "verify=off", f"total_steps={steps}", f"seed={seed}", f"run_dir={quote(str(run))}")
    return ["python", str(ROOT / script), "--config", str(SETTINGS), f"active_dataset={dataset}", *plain, *words]


def write_plan(folder: Path, seeds: int, sizes: Sizes) -> list[Path]:
    """Write the job files to `folder`; returns them in the order to run them. An existing plan keeps its marks.

    Raises: UsageError if the folder has a different plan.
    """
    written = []
    for name in FILES:
        commands: list[list[str]] = []
        for seed in range(1, seeds + 1):
            place = folder / f"seed{seed}"
            commands += bases(seed, place, sizes) if name == "bases" else adapters(seed, place, sizes, sweep=seed == 1)
        path, lines = folder / f"{name}.txt", [shlex.join(command) for command in commands]
        if not path.exists():
            atomic_write_text(path, "".join(f"[ ] {line}\n" for line in lines))
        elif [line.partition("] ")[2].partition(" [")[0] for line in path.read_text().splitlines()] != lines:
            raise UsageError(f"{path} is the plan of another comparison: name another folder with --out")
        written.append(path)
    return written
