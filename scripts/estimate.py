"""What a run will cost, before it is started: parameters, memory, hours, operations, disk.

    python scripts/estimate.py --config-name=cfg_pretrain_sudoku_4x4 device=cpu
    python scripts/estimate.py --config-name=cfg_pretrain_sudoku_4x4 device=cpu --find-batch-size
    python scripts/estimate.py lr=1e-3 global_batch_size=64 --json estimate.json

The command line is that of the entry script. A few steps are really taken (on one process) and nothing is written to
the run directory; only generated data that are missing are built, as at a launch.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli.console import begin, execute

if __name__ == "__main__":
    begin()

import hydra
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from dataset.arguments import OneLineParser, positive
from engine.cli.main import run
from engine.cli.recipes import config_name_of
from engine.config import load_synced_config
from engine.errors import UsageError
from engine.io import atomic_write_json, print_rank0
from engine.registry import entry_module
from scripts._batch_size import Trial, best, find_batch_size, limit_memory, measure_apart, read_size, usual_limit

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "config"


def parser() -> argparse.ArgumentParser:
    """The script's own arguments; whatever else there is belongs to the entry script."""
    made = OneLineParser(
        prog="estimate.py", description=(__doc__ or "").partition("\n")[0], allow_abbrev=False,
        epilog="Everything else is the command line of the entry script: --config-name=..., key=value, --key value.",
    )  # fmt: skip
    made.add_argument("--entry", help="the entry script, e.g. pretrain; default: the one that the config is for")
    made.add_argument("--find-batch-size", action="store_true", help="try batch sizes, print a table, name the best")
    made.add_argument(
        "--memory-limit", metavar="SIZE", help="CPU memory a trial may take, e.g. 8GiB; default: 4/5 of what is free"
    )
    made.add_argument("--probe-steps", type=positive, default=8, metavar="N", help="steps to time; default: 8")
    made.add_argument("--probe-seconds", type=positive, default=20, metavar="N", help="about how long; default: 20")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    return made


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """(own arguments, the entry script's command line). Raises: SystemExit 2 on arguments that contradict."""
    made = parser()
    args, rest = made.parse_known_args(argv)
    if {"-m", "--multirun"} & set(rest):
        made.error("-m starts several jobs: estimate one of them")
    return args, rest


def entry_of(rest: list[str]) -> str:
    """The entry script that the named config is for (pretrain where none is named)."""
    name = config_name_of(rest) or "cfg_pretrain"
    if not (CONFIG / f"{name}.yaml").exists():  # of another folder, or misspelt: the composition below says so
        return "pretrain"
    with initialize_config_dir(str(CONFIG), version_base=None):
        script = OmegaConf.select(compose(name), "script")
    return Path(str(script or "pretrain")).stem


def load_entry(name: str) -> Any:
    """The entry script as a module. Raises: UsageError."""
    return entry_module(Path(name).stem, f"--entry {name}")


# --- what is said -----------------------------------------------------------------------------------------------------


def summary(found: Any, config: Any, name: str) -> dict[str, Any]:
    """The estimate as numbers: bytes, seconds, operations."""
    from scripts._probe import kept

    evaluation, flops = found.evaluation_seconds, found.flops_step
    stored = kept(found.saves, config.keep_last, config.keep_every)
    return {
        "config": name, "device": found.device, "parameters": found.parameters, "optimizers": found.optimizers,
        "frozen": found.frozen, "total_parameters": sum(found.parameters.values()) + found.frozen,
        "memory": found.memory, "batch_key": found.batch_key, "batch_rows": found.batch_rows,
        "steps": found.last_step, "total_steps": found.total_steps,
        "step_seconds": found.step_seconds, "timed_steps": found.timed_steps,
        "examples_per_s": found.examples_per_second,
        "training_seconds": found.training_seconds, "evaluations": found.evaluations,
        "evaluation_examples": found.eval_examples, "evaluation_seconds": evaluation,
        "seconds": found.training_seconds + (evaluation or 0.0),
        "flops_per_step": flops,
        "flops": None if flops is None else flops * found.last_step + (found.flops_evaluations or 0.0),
        "checkpoint_bytes": found.checkpoint, "checkpoints_kept": stored, "disk_bytes": found.checkpoint * stored,
    }  # fmt: skip


def report(e: dict[str, Any], keep_last: int, keep_every: int | None) -> None:
    """Print an estimate."""
    groups = ", ".join(f"{name} {count:,} ({e['optimizers'][name]})" for name, count in e["parameters"].items())
    memory, more = e["memory"], f", {e['frozen']:,} not trained" if e["frozen"] else ""
    exact = sum(memory[part] for part in ("weights", "gradients", "moments", "average"))
    print_rank0(f"config      {e['config']} on {e['device']}, {e['batch_key']}={e['batch_rows']}")
    print_rank0(f"parameters  {e['total_parameters']:,} = {groups}{more}")
    print_rank0(
        f"memory      {_size(exact)} = weights {_size(memory['weights'])} + gradients {_size(memory['gradients'])} "
        f"+ optimizer {_size(memory['moments'])} + average {_size(memory['average'])}"
    )
    what = "allocated on the GPU" if e["device"].startswith("cuda") else "of the process, Python and torch included"
    print_rank0(f"            activations about {_size(memory['activations'])}; peak {_size(memory['process'])} {what}")
    short = f" of {e['total_steps']:,} (max_steps)" if e["steps"] < e["total_steps"] else ""
    print_rank0(f"steps       {e['steps']:,}{short}")
    print_rank0(
        f"speed       {_duration(e['step_seconds'])} a step ({e['timed_steps']} timed), {e['examples_per_s']:,.0f} "
        "examples/s" + (f", {_flops(e['flops_per_step'] / e['step_seconds'])}/s" if e["flops_per_step"] else "")
    )
    evaluation = e["evaluation_seconds"]
    by = "not known" if evaluation is None else f"about {_duration(evaluation)}, by operations"
    print_rank0(
        f"time        {_duration(e['seconds'])} = training {_duration(e['training_seconds'])} "
        f"+ {e['evaluations']} evaluation(s) ({by})"
    )
    if e["flops"]:
        print_rank0(f"operations  {_flops(e['flops_per_step'])} a step, {_flops(e['flops'])} in all")
    rule = f"keep_last={keep_last}" + (f", keep_every={keep_every}" if keep_every else "")
    print_rank0(
        f"disk        {_size(e['disk_bytes'])} = {e['checkpoints_kept']} checkpoints ({rule}, best) of "
        f"{_size(e['checkpoint_bytes'])}; one more while it is written"
    )


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _duration(seconds: float) -> str:
    for limit, unit, scale in ((1, "ms", 1e-3), (120, "s", 1), (7200, "min", 60)):
        if seconds < limit:
            return f"{seconds / scale:.1f} {unit}"
    return f"{seconds / 3600:.1f} h"


def _flops(count: float) -> str:
    for unit, scale in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count / 1e6:.2f} MFLOP"


def report_trials(trials: list[Trial], key: str) -> None:
    """The table of batch sizes, and which to take. Raises: UsageError when none works."""
    print_rank0(f"\n{key:<20}{'examples/s':>12}{'peak memory':>14}")
    for trial in trials:
        if trial.reason:
            print_rank0(f"{trial.rows:<20}{trial.reason:>26}")
        else:
            print_rank0(f"{trial.rows:<20}{trial.examples_per_s or 0:>12,.0f}{_size(trial.memory or 0):>14}")
    chosen = best(trials)
    if chosen is None:
        raise UsageError(f"no {key} works: {trials[0].reason} even with {trials[0].rows} rows")
    print_rank0(
        f"best: {key}={chosen.rows} (the smallest within 3 % of the fastest; another batch is another experiment)"
    )


# --- the command ------------------------------------------------------------------------------------------------------


def estimate(config: Any, module: Any, entry: str, args: argparse.Namespace, rest: list[str]) -> None:
    """Probe, print, write; with --find-batch-size also the trials."""
    from engine.config import source_of
    from engine.device import choose_device
    from scripts._probe import probe

    limit = None
    if choose_device(config.device).device.type == "cpu" and (args.memory_limit or args.find_batch_size):
        limit = read_size(args.memory_limit) if args.memory_limit else usual_limit()
        limit_memory(limit)
    found = probe(config, module, steps=args.probe_steps, seconds=args.probe_seconds)
    numbers = summary(found, config, source_of(config).config_name or entry)
    report(numbers, config.keep_last, config.keep_every)
    if args.find_batch_size:
        own = ["--entry", entry, "--probe-steps", str(args.probe_steps), "--probe-seconds", str(args.probe_seconds)]
        own += ["--memory-limit", str(limit)] if limit else []
        trials = find_batch_size(
            found.batch_rows, config.accumulation,
            lambda rows: measure_apart([*own, *rest], found.batch_key, rows, limit_s=60 + 10 * args.probe_seconds),
        )  # fmt: skip
        numbers["trials"] = [vars(trial) for trial in trials]
        report_trials(trials, found.batch_key)
    if args.json is not None:
        atomic_write_json(args.json, numbers)
        print_rank0(f"written     {args.json}")


def main(argv: list[str] | None = None) -> int:
    """Compose as the entry script would, then estimate; the exit codes are those of every command."""
    args, rest = parse(argv)
    try:
        entry = Path(args.entry).stem if args.entry else entry_of(rest)
        module = load_entry(entry)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    name = inspect.getclosurevars(module.launch).nonlocals["config_name"]

    @hydra.main(config_path=str(CONFIG), config_name=name, version_base=None)
    def launch(hydra_config: DictConfig) -> None:
        estimate(load_synced_config(hydra_config, schema=module.SCHEMA, entry=entry), module, entry, args, rest)

    sys.argv = [sys.argv[0], *rest]
    return run(
        launch, schema=module.SCHEMA, entry=entry, aliases=getattr(module, "ALIASES", {}), config_dir=CONFIG,
        rewrite=getattr(module, "rewrite", None),
    )  # fmt: skip


if __name__ == "__main__":
    execute(main)
