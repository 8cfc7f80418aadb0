"""The words of a command: launchers, environment, quotes."""

from __future__ import annotations

import shlex

import pytest

from launcher.command import parse


@pytest.mark.parametrize(
    ("line", "launcher", "script", "processes", "first"),
    [
        ("python pretrain.py lr=1", "python", "pretrain.py", 1, "lr=1"),
        ("A=1 B='x y' python3.11 -u pretrain.py a", "python", "pretrain.py", 1, "a"),
        ("./pretrain.py a", "python", "pretrain.py", 1, "a"),
        ("torchrun --nproc-per-node=4 pretrain.py a", "torchrun", "pretrain.py", 4, "a"),
        ("torchrun --standalone --nproc_per_node 2 --nnodes 3 pretrain.py a", "torchrun", "pretrain.py", 6, "a"),
        ("torchrun --nproc-per-node=gpu pretrain.py a", "torchrun", "pretrain.py", None, "a"),
        ("python -m torch.distributed.run --nproc-per-node 2 pretrain.py a", "torchrun", "pretrain.py", 2, "a"),
        ("uv run python pretrain.py a", "python", "pretrain.py", 1, "a"),
        ("srun python pretrain.py a", "python", "pretrain.py", 1, "a"),
        ("python -m dataset.build_sudoku_dataset a", "python", None, 1, "a"),
        ("bash -c x", "bash", None, 1, "-c"),
    ],
)
def test_commands(line: str, launcher: str, script: str | None, processes: int | None, first: str) -> None:
    command = parse(shlex.split(line))
    assert (command.launcher, command.script, command.processes) == (launcher, script, processes)
    assert command.arguments[0] == first


def test_environment_and_quotes() -> None:
    command = parse(shlex.split("A=1 B='x y' python pretrain.py 'run_name=\"a b\"'"))
    assert command.env == {"A": "1", "B": "x y"}
    assert command.arguments == ('run_name="a b"',)
