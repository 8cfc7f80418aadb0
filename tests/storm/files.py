"""Corrupt files: every file of a run and of its data, damaged in every way, read by every command that opens runs.

    python -m tests.storm --files 300 --seed 0

A command may work or end in one line. A traceback, a hang, gigabytes, a changed file elsewhere, and a run that a mere
look has changed are faults.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.child import Outcome, clone, execute, judge
from tests.chaos.commands import COMMANDS

RUNS = {
    "pretrain.py": (*COMMANDS["pretrain"].split(), "max_steps=8"),
    "train.py": (*COMMANDS["train"].split(), "max_iters=8"),
}
LIMIT_S = 40
LOOKS: dict[str, tuple[tuple[str, ...], ...]] = {
    "pretrain.py": (
        ("scripts/evaluate.py", "run", "--device", "cpu"),
        ("scripts/visualize.py", "run", "--device", "cpu", "--example", "0", "--steps", "1", "--out", "out.png"),
        ("scripts/verify_path.py", "--checkpoint", "run", "--data"),
        ("scripts/feudal_report.py", "run", "--no-interventions", "--out", "report"),
    ),
    "train.py": (
        ("scripts/evaluate.py", "run", "--device", "cpu"),
        ("scripts/sample.py", "run", "--device", "cpu", "--max-new-tokens", "4"),
        ("scripts/export_gpt2.py", "run", "exported"),
        ("scripts/verify_path.py", "--checkpoint", "run"),
    ),
}
RESUMES = ("again", "by name")
ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    0.5,
    2**31,
    2**63,
    2**70,
    -(10**30),
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../outside/kept",
    "/dev/zero",
    "\x00",
    "é\u2028",
    [],
    {},
    [[]],
    {"$tensor": "nope"},
    {"$tuple": 3},
    {"$dict": [[1]]},
    ["x"] * 3,
    {"x": {}},
    "payload@Payload",
    "${oc.env:HOME}",
    "${",
    "x" * 3000,
)
BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(12)
)


@dataclass(frozen=True)
class Case:
    """One damaged file and the command that meets it."""

    script: str
    command: tuple[str, ...]
    file: str
    kind: str


# --- damage -----------------------------------------------------------------------------------------------------------


def _leaf(value: Any, chance: random.Random) -> Any:
    """`value` with one place in it changed: another value, a key gone, a key more."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key, kind = chance.choice(sorted(value)), chance.random()
        if kind < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.15:
            return {**value, chance.choice(("nope", "", "$tensor", "a.b")): chance.choice(ODD)}
        return {**value, key: _leaf(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        return [*value[:at], _leaf(value[at], chance), *value[at + 1 :]]
    return chance.choice(ODD)


def _json(path: Path, chance: random.Random) -> None:
    try:
        value = json.loads(path.read_text())
    except ValueError:
        value = {}
    path.write_text(json.dumps(_leaf(value, chance)))


def _yaml(path: Path, chance: random.Random) -> None:
    lines = path.read_text().splitlines()
    at = chance.randrange(len(lines))
    head = lines[at].partition(":")[0]
    odd = chance.choice(
        (
            "",
            "null",
            "[",
            "{",
            "${nope}",
            "${.seed}",
            "!!python/object:os.system x",
            "*x",
            "[]",
            "-1",
            "2e9",
            "payload@Payload",
            "/dev/zero",
            "&x [*x]",
            "|",
            "'",
            "1e999",
            "2024-01-01",
            "{a: 1}",
        )
    )
    lines[at] = f"{head}: {odd}"
    path.write_text("\n".join(lines))


def _tensors(path: Path, chance: random.Random) -> None:
    """The same file with one tensor renamed, cut, of another type, not finite, or gone."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    if not tensors:
        return save_file({"nope": torch.zeros(1)}, path)
    name = chance.choice(sorted(tensors))
    one = tensors.pop(name)
    kind = chance.choice(("name", "gone", "cut", "type", "nan", "more"))
    if kind != "gone":
        changed = {
            "cut": one.flatten()[: max(0, one.numel() - 1)].clone(),
            "type": one.to(torch.int64 if one.is_floating_point() else torch.float32),
            "nan": torch.full_like(one, float("nan")) if one.is_floating_point() else torch.full_like(one, 1),
            "more": one[None].clone(),
        }
        tensors["nope" if kind == "name" else name] = changed.get(kind, one)
    save_file(tensors, path)


def _replace(path: Path, make: Callable[[Path], Any]) -> None:
    path.unlink()
    make(path)


def damage(path: Path, kind: str, chance: random.Random, outside: Path) -> None:
    """Damage the file `path` in the way `kind`."""
    data = path.read_bytes() if path.is_file() else b""
    match kind:
        case "cut":
            path.write_bytes(data[: chance.randrange(len(data) + 1)])
        case "empty":
            path.write_bytes(b"")
        case "bits":
            changed = bytearray(data or b"\0")
            for _ in range(chance.choice((1, 3, 50))):
                changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
            path.write_bytes(changed)
        case "noise":
            path.write_bytes(chance.randbytes(chance.choice((1, 40, 5000))))
        case "text":
            path.write_text(
                chance.choice(("hello\n", "[]", "{}", "null", "3", '"x"', "[{}]", "{]", "\ufeff{}", "- 1", "'"))
            )
        case "deep":
            path.write_text(chance.choice(("[", '{"a":', "{a: ", "- ")) * chance.choice((70, 3000, 100_000)))
        case "bomb":
            path.write_text(BOMB)
        case "huge":
            os.truncate(path, 1 << 41)
        case "doubled":
            path.write_bytes(data + data)
        case "folder":
            _replace(path, Path.mkdir)
        case "pipe":
            _replace(path, os.mkfifo)
        case "zero":
            _replace(path, lambda place: place.symlink_to("/dev/zero"))
        case "outside":
            _replace(path, lambda place: place.symlink_to(outside / "kept"))
        case "loop":
            _replace(path, lambda place: place.symlink_to(place.name))
        case "gone":
            path.unlink()
        case "value" if path.suffix in (".yaml", ".txt"):
            _yaml(path, chance)
        case "value" if path.suffix == ".safetensors":
            _tensors(path, chance)
        case _:
            _json(path, chance)


KINDS = (
    "cut",
    "empty",
    "bits",
    "noise",
    "text",
    "deep",
    "bomb",
    "huge",
    "doubled",
    "folder",
    "pipe",
    "zero",
    "outside",
    "loop",
    "gone",
    *["value"] * 20,
)


def seal(folder: Path) -> None:
    """Make the checksums of a checkpoint right again, so that its content is what a reader meets."""
    from engine.io import read_json, sha256_file, sha256_json

    file = folder / "manifest.json"
    try:
        manifest = read_json(file)
        for name in manifest["files"]:
            path = folder / name
            if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 30:
                manifest["files"][name] = {"sha256": sha256_file(path), "size": path.stat().st_size}
        manifest.pop("sha256", None)
        manifest["sha256"] = sha256_json(manifest)
        file.write_text(json.dumps(manifest))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return


# --- the storm --------------------------------------------------------------------------------------------------------


def snapshot(*folders: Path) -> dict[str, str]:
    """What is in the folders: kind and content of every entry, by path. Links are not followed."""
    contents = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink():
                contents[str(path)] = f"-> {os.readlink(path)}"
            elif path.is_file():
                size = path.stat().st_size
                contents[str(path)] = (
                    f"{size} bytes" if size > 1 << 30 else hashlib.sha256(path.read_bytes()).hexdigest()
                )
            else:
                contents[str(path)] = "folder" if path.is_dir() else "special"
    return contents


def cases(base: Path, count: int, seed: int) -> Iterator[Case]:
    """`count` cases; the same seed gives the same."""
    chance = random.Random(seed)
    for _ in range(count):
        script = chance.choice(sorted(RUNS))
        run = base / "runs" / script / "run"
        files = [
            path.relative_to(base / "runs" / script)
            for path in sorted(run.rglob("*"))
            if path.is_file() and not path.is_symlink()
        ]
        data = base / "data" / ("plain" if script == "train.py" else "debug-sudoku-4x4")
        parts = [path.relative_to(base) for path in sorted(data.rglob("*")) if path.is_file()]
        command = chance.choice(LOOKS[script]) if chance.random() < 0.65 else (chance.choice(RESUMES),)
        # half of the cases in a checkpoint, the rest beside it and in the data
        inner = [path for path in files if "step_" in str(path)]
        outer = [path for path in files if "step_" not in str(path)]
        yield Case(
            script, command, str(chance.choice(chance.choice((inner, inner, outer, parts)))), chance.choice(KINDS)
        )


def storm(base: Path, scratch: Path, count: int, seed: int) -> Iterator[str]:
    """Meet `count` damaged files; yields a line for each fault. `base` holds data/ and gets runs/."""
    for script, words in RUNS.items():
        kept, place = base / "runs" / script, scratch / "place"
        if not kept.exists():  # made where its copies will lie: a run remembers its working directory
            shutil.rmtree(place, ignore_errors=True)
            clone(base / "data", place / "data")
            made = execute(script, words, place)
            if made.code:
                raise RuntimeError(f"{script} does not run: {made.output[-2000:]}")
            clone(place / "run", kept / "run")
    outside = scratch / "outside"
    outside.mkdir(parents=True, exist_ok=True)
    (outside / "kept").write_text("kept\n")
    for number, case in enumerate(cases(base, count, seed)):
        place = scratch / "place"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        clone(base / "runs" / case.script / "run", place / "run")
        clone(base / "data", place / "data")
        chance = random.Random(f"{seed}/{number}")
        file = place / case.file
        damage(file, case.kind, chance, outside)
        sealed = "step_" in case.file and chance.random() < 0.8
        if sealed:
            seal(file.parent)
        elsewhere, looked = snapshot(outside, place / "data"), snapshot(place / "run")
        outcome = execute(*_command(case), place, limit_s=LIMIT_S)
        fault = _fault(case, outcome, place, looked)
        if not fault and snapshot(outside, place / "data") != elsewhere:
            fault = "something outside the run directory was changed"
        if fault:
            what = f"{case.file} {case.kind}{' (sealed)' if sealed else ''}"
            yield f"#{number} {case.script} {' '.join(case.command)} | {what}: {fault}\n    {outcome.last[:400]}"


def _command(case: Case) -> tuple[str, list[str]]:
    if case.command == ("by name",):
        longer = "max_steps=10" if case.script == "pretrain.py" else "max_iters=10"
        return case.script, ["resume=true", "run_dir=run", "verify=off", longer]
    if case.command == ("again",):
        return case.script, [*RUNS[case.script], "max_steps=10", "resume_from=latest", "resume=auto"]
    return case.command[0], [*case.command[1:]]


def _fault(case: Case, outcome: Outcome, place: Path, before: dict[str, str]) -> str:
    verifies = case.command[0] == "scripts/verify_path.py"
    fault = judge(outcome, LIMIT_S)
    if fault and not (verifies and outcome.code == 1 and fault.startswith("no last line")):
        return fault
    after = snapshot(place / "run")
    changed = [path for path in before if after.get(path) != before[path]]
    if case.command[0] in RESUMES:
        aside = place / "run.1"
        if outcome.code == 2 and aside.exists():
            return "a refused command set the run aside"
        if outcome.code in (0, 2):
            return ""
        kept = [path for path in changed if "step_8/" in path and path not in after]
        return f"lost {', '.join(kept[:3])}" if kept else ""
    changed += [path for path in after if path not in before and "evaluation_step_" not in path]
    return f"a look changed {', '.join(changed[:3])}" if changed else ""
