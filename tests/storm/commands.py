"""Mutated commands: every key of the entry scripts with values that nobody wants, seeded; and a judge of what they do.

    python -m tests.storm --commands 300 --seed 0        # each runs up to its first step, in its own folder

A command may work, or end in one line that begins with `error:`. A traceback, a hang, a crash or a file outside the
working directory is a fault.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from chaos import child
from chaos.child import Outcome

ROOT = Path(__file__).resolve().parents[2]
SECRET = "hunter2-of-the-storm"
TINY = {"pretrain": ("+debug=tiny", "device=cpu"), "train": ("+debug=tiny_text", "device=cpu")}
ODD = (
    "",
    "''",
    "' '",
    "null",
    "true",
    "off",
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "1",
    "0.5",
    "1e-300",
    "1e300",
    "2.5e19",
    str(2**31),
    str(2**63 - 1),
    str(2**63),
    str(2**64),
    str(-(2**63)),
    "9" * 400,
    "[]",
    "[1,2]",
    "[[]]",
    "{}",
    "{a:1}",
    "{name:null}",
    "x" * 300,
    "a,b",
    "a=b",
    "'a b'",
    "é☃",
    "a\udcff",
    "'\\'",
    "${seed}",
    "${.seed}",
    "${nope}",
    "${",
    "${oc.env:SECRET}",
    "${oc.env:HOME}",
    "${now:%Y}",
    "../..",
    "/dev/null",
    "~",
    "~/x",
    "module@Class",
    "os@system",
    "losses@ACTLossHead",
    "evaluators.steps@PerStepAccuracy",
    "models.layers.mlp@SwiGLU",
    "none",
    "None",
    "-",
)
"""Values in Hydra's style. What it cannot read is one of the ways to be wrong."""
FLAWS = (
    "--cfg nope",
    "--cfg job -p nope",
    "--info=nope",
    "--config-name nope",
    "--config-name=../x",
    "--config-dir nope",
    "--resolve",
    "--nope",
    "nope",
    "+nope=1",
    "~nope",
    "~arch",
    "~seed",
    "-m",
    "hydra.mode=MULTIRUN",
    "hydra.run=5",
    "hydra=5",
    "+debug=nope",
    "arch=nope",
    "arch=5",
    "arch=[trm]",
    "+sweep=seeds",
    "--config nope.json",
    "--seed",
    "seed=1 seed=2",
    "--no-seed",
    "--no-ema=3",
    "lr",
    "=",
    "=3",
    "+=",
    "++seed",
    "seed==3",
    "seed=3=4",
    "--",
    "---x",
    "--seed=",
    "--seed --ema",
    "arch.=3",
    ".arch=3",
    "arch..x=3",
    "arch.loss.name.x=3",
    "seed.x=3",
    "hydra.job.name=",
)
"""Words that are wrong as such."""
OPEN = (
    "arch.loss.name",
    "arch.loss.nope",
    "arch.nope",
    "optimizer.name",
    "optimizer.options",
    "optimizer.options.eps",
    "optimizer.rest",
    "optimizer.options.betas",
    "lr_scheduler.options.gamma",
)
"""Keys in blocks without a declared type."""


def keys(script: str) -> list[str]:
    """Every key of an entry script by dotted name, those of its architectures and losses included."""
    from engine.cli.keys import keys_of
    from engine.registry import family_of

    schema: Any = family_of(script, "script").schema
    names = [*keys_of(schema)]
    for block, kind in schema.NESTED_SCHEMAS.items():
        names += [f"{block}.{name}" for name in keys_of(kind)]
    names += OPEN if script == "train" else [key for key in OPEN if key.startswith("arch")]
    if script == "pretrain":
        from losses import FeudalLossConfig
        from models.recursive_reasoning.subgoal import SubgoalConfig

        names += [f"arch.loss.{field.name}" for field in fields(FeudalLossConfig)]
        names += [f"arch.subgoal_head.{field.name}" for field in fields(SubgoalConfig)]
    return [key for key in dict.fromkeys(names) if key != "hydra"]


def commands(seed: int = 0, count: int = 300) -> Iterator[tuple[str, list[str]]]:
    """`count` times (entry script, its words). The same seed gives the same commands."""
    chance = random.Random(seed)
    known = {script: keys(script) for script in TINY}
    for _ in range(count):
        script = chance.choice(sorted(TINY))
        words = list(TINY[script])
        for _ in range(chance.choice((1, 1, 1, 2))):
            key, value = chance.choice(known[script]), chance.choice(ODD)
            kind = chance.random()
            if kind < 0.15:
                words += chance.choice(FLAWS).split(" ")
            elif kind < 0.35:
                words += [f"--{key}", value] if chance.random() < 0.5 else [f"--{key}={value}"]
            else:
                words.append(f"{chance.choice(('', '', '+', '++'))}{key}={value}")
        yield script, words


def judge(outcome: Outcome, limit_s: float = 60.0) -> str:
    """What is wrong with an outcome, in a few words; "" where nothing is."""
    lines = outcome.output.strip().splitlines()
    if fault := child.broke(outcome, limit_s):
        return fault
    if SECRET in outcome.output:
        return "prints a secret of the environment"
    if outcome.code and not any(line.startswith(("error:", "interrupted:", "package ")) for line in lines):
        return "no line that names the problem"
    if outcome.code and sum(line.startswith("error:") for line in lines) > 1:
        return "several lines of errors"
    if lines and outcome.code and len(lines[-1]) > 900:
        return f"a line of {len(lines[-1])} characters"
    return ""


def execute(script: str, words: list[str], cwd: Path, *, whole: bool = False, limit_s: int = 60) -> Outcome:
    """Run a command in a forked child of this process, which has torch loaded; up to its built plan, or `whole`."""

    def before() -> None:
        import engine.run.launch

        os.environ["SECRET"] = SECRET
        if not whole:
            engine.run.launch.compile_task = _stop  # type: ignore[assignment]

    return child.execute(f"{script}.py", words, cwd, before=before, limit_s=limit_s)


def _stop(*_: Any, **named: Any) -> None:
    raise SystemExit(0)
