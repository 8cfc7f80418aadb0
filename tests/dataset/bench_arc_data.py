"""What the ARC builder costs: beside the public algorithm on the same tasks, or the whole set with its memory.

    python -m tests.dataset.bench_arc_data arc-bundles/arc-agi            # 20 tasks, both algorithms, arrays compared
    python -m tests.dataset.bench_arc_data arc-bundles/arc-agi --full     # training, evaluation, concept: time, memory

The public algorithm is tests/dataset/naive_arc.py: one process, the legacy generator, sha256 of every augmented task.
Memory is the sum of RssAnon over the builder's processes, read ten times a second. Wall time, and in the
comparison the CPU time of all processes: other work on the machine stretches the former only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from dataset.arc.build import ArcBuild, build
from dataset.arc.tasks import CHALLENGES, SOLUTIONS
from dataset.arguments import OneLineParser, positive
from dataset.format import load_splits
from engine.io import user_path
from tests.dataset import naive_arc

SUBSETS, TEST_SET = ("training", "evaluation", "concept"), "evaluation"


def cut(prefix: str, folder: Path, count: int) -> tuple[str, list[tuple[str, Any, Any]]]:
    """The first `count` tasks over the subsets as bundles in `folder`; their prefix, and their content."""
    shares = [count // 3 + (number < count % 3) for number in range(3)]
    parts = []
    for name, share in zip(SUBSETS, shares, strict=True):
        both: list[Any] = []
        for kind in (CHALLENGES, SOLUTIONS):
            content = json.loads(Path(f"{prefix}_{name}_{kind}.json").read_text())
            both.append({task: content[task] for task in list(content)[:share]})
            (folder / f"cut_{name}_{kind}.json").write_text(json.dumps(both[-1]))
        parts.append((name, both[0], both[1]))
    return str(folder / "cut"), parts


def compare(prefix: str, folder: Path, count: int, num_aug: int) -> None:
    """Both algorithms on the same tasks, one after the other; whether they agree."""
    prefix, parts = cut(prefix, folder, count)
    seconds = {}
    for name, compact in (("token arrays", False), ("compact", True)):
        began = _clocks()
        root = folder / name.replace(" ", "-")
        build(ArcBuild(output_dir=root, prefix=prefix, subsets=SUBSETS, num_aug=num_aug, compact=compact))
        seconds[name] = _clocks() - began
    began = _clocks()
    expected = naive_arc.build(parts, TEST_SET, num_aug=num_aug)
    for split in ("train", "test"):
        for array, values in expected[split].items():
            np.save(folder / f"{split}_{array}.npy", values)
    seconds["public algorithm"] = _clocks() - began
    for split in ("train", "test"):
        for name in ("token-arrays", "compact"):
            (part,) = load_splits([folder / name], split)
            same = all(
                np.array_equal(rows, expected[split][array][number : number + 4096])
                for array in ("inputs", "labels")
                for number in range(0, len(part.inputs), 4096)
                for rows in [getattr(part, array)[number : number + 4096]]
            )
            print(f"{split}, {name}: {len(part.inputs):,} examples, {'equal' if same else 'DIFFERENT'}")
    for name, value in seconds.items():
        wall, cpu = seconds["public algorithm"] / value
        print(f"{name:17} {value[0]:7.2f} s {wall:5.1f} x   {value[1]:7.2f} CPU s {cpu:5.1f} x")


def _clocks() -> np.ndarray:
    """(wall, CPU) seconds; the latter of this process and of its children that have ended."""
    times = os.times()
    return np.array([times.elapsed, times.user + times.system + times.children_user + times.children_system])


def anonymous(pid: int) -> int:
    """kB of private memory of a process and its children."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                total += int(line.split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return total
    return total + sum(map(anonymous, map(int, children)))


def full(prefix: str, folder: Path, num_aug: int) -> None:
    """The whole of ARC-AGI-1 and ConceptARC in both forms: seconds, peak of private memory, size on disk."""
    for form in ("compact", "token arrays"):
        words = [
            sys.executable,
            "-m",
            "dataset.build_arc_dataset",
            "--input-file-prefix",
            prefix,
            "--subsets",
            *SUBSETS,
        ]
        words += ["--test-set-name", TEST_SET, "--num-aug", str(num_aug), "--output-dir", str(folder / "arc1concept")]
        words += ["--compact"] if form == "compact" else []
        began, peak = time.perf_counter(), 0
        child = subprocess.Popen(words)
        while child.poll() is None:
            peak = max(peak, anonymous(child.pid))
            time.sleep(0.1)
        seconds = time.perf_counter() - began
        size = sum(file.stat().st_size for file in (folder / "arc1concept").rglob("*") if file.is_file())
        print(f"{form}: {seconds:.1f} s, RssAnon {peak / 1e6:.2f} GB at most, {size / 1e6:,.1f} MB on disk", flush=True)
        shutil.rmtree(folder / "arc1concept", ignore_errors=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("prefix", type=user_path, help="of the bundles PREFIX_SUBSET_challenges.json")
    out.add_argument("--tasks", type=positive, default=20, metavar="N", help="tasks to compare on")
    out.add_argument("--num-aug", type=positive, default=1000, metavar="N", help="augmentations of each task")
    out.add_argument("--full", action="store_true", help="build the whole set instead, in both forms")
    out.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    return out


def main() -> int:
    """Measure what the arguments name."""
    arguments = parser().parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if arguments.full:
            full(str(arguments.prefix), Path(folder), arguments.num_aug)
        else:
            compare(str(arguments.prefix), Path(folder), arguments.tasks, arguments.num_aug)
    return 0


if __name__ == "__main__":
    sys.exit(main())
