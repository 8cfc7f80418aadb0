"""What a busy neighbour costs a two-thread training step, with threads that spin at barriers and threads that sleep.

    python scripts/bench_threads.py [--pairs 3] [--steps 40]

Interleaves OMP_WAIT_POLICY=ACTIVE and PASSIVE, each alone and beside one process that keeps a core busy, and prints the
median step of the 4x4 Sudoku recipe in milliseconds with its range over the runs. One JSON line at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
POLICIES = ("ACTIVE", "PASSIVE")


def median_step_ms(policy: str, steps: int, folder: str) -> float:
    """Train `steps` steps in a fresh process; the median of its logged step times, warm-up left out."""
    name = f"{policy.lower()}_{os.urandom(3).hex()}"
    command = [
        sys.executable, str(ROOT / "pretrain.py"), "--config-name=cfg_pretrain_sudoku_4x4", "device=cpu", "threads=2",
        f"max_steps={steps}", "log_interval=1", "final_eval=false", f"run_dir={name}",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_WAIT_POLICY": policy, "OMP_NUM_THREADS": "2"}
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (Path(folder) / name / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["time/step_ms"] for line in lines[5:])


def main() -> None:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3, help="interleaved runs of each setting (default 3)")
    parser.add_argument("--steps", type=int, default=40, help="training steps of one run (default 40)")
    arguments = parser.parse_args()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.pairs):
            for busy in (False, True):
                neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
                try:
                    for policy in POLICIES:
                        key = f"{policy} {'beside a busy process' if busy else 'alone'}"
                        found.setdefault(key, []).append(median_step_ms(policy, arguments.steps, folder))
                finally:
                    if neighbour is not None:
                        neighbour.kill()
                        neighbour.wait()
    for key, values in found.items():
        print(f"{key:<32}{statistics.median(values):8.1f} ms  [{min(values):.1f} .. {max(values):.1f}]")
    print(json.dumps({key: [round(value, 2) for value in values] for key, values in found.items()}))


if __name__ == "__main__":
    main()
