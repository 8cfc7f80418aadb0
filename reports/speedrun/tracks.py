"""The tracks: each has a command per seed, a plain launch of an entry script, and the metric that counts."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.cli.translate import quote
from engine.errors import UsageError
from engine.registry import ROOT


@dataclass(frozen=True)
class Track:
    """A speedrun track. With `targets`, the first step and the CPU time count at which `metric` reaches each, searched
    in all checkpoints of a run; without targets, its final value counts."""

    name: str
    words: tuple[str, ...]
    """The script and its arguments, without seed and folder."""
    metric: str
    seeds: tuple[int, ...] = (0,)
    targets: tuple[float, ...] = ()
    needs_cuda: bool = False

    def commands(self, seeds: Sequence[int], folder: Path, extra: Sequence[str] = ()) -> dict[int, list[str]]:
        """Seed -> the words of its launch, which writes to `folder`/seed_N; `extra`: further overrides."""
        script, *words = self.words
        command = ["python", str(ROOT / script), *words, *extra]
        places = {seed: quote(str(folder / f"seed_{seed}")) for seed in seeds}
        return {seed: [*command, f"seed={seed}", f"run_dir={places[seed]}"] for seed in seeds}


TRACKS = {
    track.name: track
    for track in (
        Track(
            "sudoku-4x4-cpu",
            (
                "pretrain.py",
                "--config-name=cfg_pretrain_sudoku_4x4_fast",
                *("device=cpu", "threads=1", "log_interval=10", "checkpoint_interval=10", "keep_last=1000"),
            ),
            "eval/exact_accuracy",
            seeds=(0, 1, 2),
            targets=(0.95, 0.98),
        ),
        Track(
            "sudoku-hard-gpu",
            (
                "pretrain.py",
                "--config-name=cfg_pretrain_sudoku_hard_fast",
                *("device=cuda", "max_seconds=480", "eval_interval=null", "final_eval_max_examples=4096"),
            ),
            "eval/exact_accuracy",
            needs_cuda=True,
        ),
        Track(
            "lm-5min",
            (
                "train.py",
                "--config-name=cfg_train_cpu",
                *("device=auto", "arch=gpt_fast", "dataset=shakespeare_char", "max_seconds=300"),
                *("max_iters=6000", "lr_decay_iters=6000", "eval_interval=6000"),
            ),
            "eval/val_loss",
        ),
    )
}


def require_machine(track: Track) -> None:
    """Raise UsageError if the track needs a GPU and torch sees none."""
    import torch

    if track.needs_cuda and not torch.cuda.is_available():
        raise UsageError(
            f"{track.name} needs a CUDA GPU and torch sees none here (python scripts/doctor.py shows what it sees)"
        )


def job_file(commands: dict[int, list[str]]) -> str:
    """The text of a job file with these commands."""
    return "".join(f"[ ] {shlex.join(words)}\n" for words in commands.values())


def check_commands(commands: dict[int, list[str]]) -> None:
    """Check that the commands, which differ only in seed and folder, compose. Raises: UsageError as a launch does."""
    from engine.cli.resolve import resolve

    for _, script, *words in list(commands.values())[:1]:
        for problem in resolve(Path(script), words, root=ROOT, cwd=Path.cwd()).problems.values():
            raise UsageError(problem)
