"""The console may be gone, closed, full or ASCII only, and Ctrl-C may come while a script still imports."""

from __future__ import annotations

import ast
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

BEGIN = "import sys; from engine.cli.console import begin, execute, open_streams\n"
WORK = BEGIN + "begin(run=True)\nfor i in range(3): print(i, flush=True)\nopen('done', 'w').close()\nexecute(lambda: 0)"
OUTPUT = BEGIN + "begin(output_is_all=True)\nfor i in range(3): print(i)\nexecute(lambda: 0)"


def shell(code: str, redirection: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """`python -c code redirection` in bash; its exit code is Python's."""
    line = f'"{sys.executable}" -c "$CODE" {redirection}; exit ${{PIPESTATUS[0]}}'
    known = {**os.environ, "PYTHONPATH": str(ROOT), "CODE": code, **env}
    return subprocess.run(["bash", "-c", line], cwd=cwd, env=known, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("redirection", "warned"),
    [
        ("| true", "Broken pipe"),
        (">/dev/full", "No space left"),
        (">&-", ""),
        ("2>&-", ""),
        (">&- 2>&- <&-", ""),
        (">/dev/full 2>/dev/full", ""),
        ("</dev/null >/dev/full 2>&1", ""),
    ],
)
def test_work_goes_on_without_a_console(tmp_path: Path, redirection: str, warned: str) -> None:
    ended = shell(
        WORK.replace("begin(run=True)", "begin(run=True)\nimport time; time.sleep(0.1)"), redirection, tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "done").exists()
    assert ended.stderr.count("\n") == (1 if warned else 0)
    assert warned in ended.stderr


def test_a_closed_stream_is_not_the_next_file_that_is_opened(tmp_path: Path) -> None:
    code = BEGIN + "import os; begin(); f = open('metrics', 'w'); os.write(1, b'stray'); print('x'); execute(lambda: 0)"
    assert shell(code, ">&- 2>&-", tmp_path).returncode == 0
    assert (tmp_path / "metrics").read_text() == ""


def test_a_script_is_quiet_about_a_reader_that_has_left(tmp_path: Path) -> None:
    ended = shell(WORK.replace("begin(run=True)", "begin()\nimport time; time.sleep(0.1)"), "| true", tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "done").exists()


def test_a_command_whose_output_is_all_ends_with_it(tmp_path: Path) -> None:
    broken = shell(OUTPUT.replace("range(3)", "range(10**9)"), "| head -1", tmp_path)
    assert (broken.returncode, broken.stdout, broken.stderr) == (141, "0\n", "")
    full = shell(OUTPUT, ">/dev/full", tmp_path)
    assert full.returncode == 1
    assert full.stderr == "error: standard output cannot be written (No space left on device)\n"


def test_a_file_that_the_disk_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code = "from pathlib import Path; begin(); execute(lambda: Path('file/report').write_text('x'))"
    ended = shell(BEGIN + code, "", tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: file/report cannot be used: Not a directory")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("env", "line"),
    [
        ({"RANK": "x"}, "RANK=x in the environment is not a number"),
        ({"RANK": "1"}, "RANK=1 in the environment is not below WORLD_SIZE=1"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 in the environment without the MASTER_ADDR of a launcher"),
        ({"RANK": "", "WORLD_SIZE": ""}, None),
        ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, None),
    ],
)
def test_ranks_left_in_the_environment_are_refused_in_one_line(
    tmp_path: Path, env: dict[str, str], line: str | None
) -> None:
    ended = shell(WORK, "", tmp_path, **env)
    assert ended.returncode == (2 if line else 0)
    assert ended.stderr == (f"error: {line}: unset it, or start the ranks with torchrun\n" if line else "")
    assert (tmp_path / "done").exists() == (line is None)


def test_a_terminal_that_goes_away_does_not_end_the_work(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    code = WORK.replace("begin(run=True)", "begin(); sys.stdin.readline()")
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    os.close(ours)
    assert process.communicate(b"\n", timeout=60) == (None, None)
    assert process.returncode == 0
    assert (tmp_path / "done").exists()


def test_a_full_pipe_that_does_not_block_is_waited_for(tmp_path: Path) -> None:
    code = BEGIN + "import os; os.set_blocking(1, False); begin(); print('x' * 300_000); execute(lambda: 0)"
    ended = shell(code, "| (sleep 0.3; wc -c)", tmp_path)
    assert (ended.returncode, ended.stdout.strip(), ended.stderr) == (0, "300001", "")


@pytest.mark.parametrize(
    ("env", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, b"Gr??e ?"),
        ({"PYTHONIOENCODING": "latin-1"}, b"Gr\xfc\xdfe ?"),
        ({"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, b"Gr??e ?"),
        ({"PYTHONIOENCODING": "utf-8"}, "Grüße ✓".encode()),
    ],
)
def test_what_a_terminal_cannot_show_is_replaced(env: dict[str, str], shown: bytes) -> None:
    code = BEGIN + r"begin(); print('Gr\xfc\xdfe', '\u2713'); print('lost \udc80'); execute(lambda: 7)"
    known = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, env=known, timeout=60)
    assert (ended.returncode, ended.stderr) == (7, b"")
    assert ended.stdout.splitlines() == [shown, b"lost ?"]


def test_what_a_program_reads_is_utf_8_everywhere() -> None:
    code = BEGIN + r"from engine.cli.console import print_data; begin(); print_data('\u2713\udc80'); execute(lambda: 0)"
    known = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, env=known, timeout=60)
    assert (ended.returncode, ended.stderr, ended.stdout) == (0, b"", "✓?".encode())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP])
def test_a_signal_among_the_imports_is_one_line(hangup: None, number: signal.Signals) -> None:
    # An import that swallows whatever is raised in it: the signal must not be an exception there.
    code = BEGIN + (
        f"import os; begin(run=True)\ntry: os.kill(os.getpid(), {int(number)})\nexcept BaseException: pass\nexit(9)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
    assert ended.returncode == 3
    assert ended.stderr == f"interrupted: {number.name} before anything had begun\n"


def test_a_signal_in_the_middle_of_a_script_and_after_its_end(tmp_path: Path) -> None:
    code = BEGIN + "import os, signal; begin()\nexecute(lambda: os.kill(os.getpid(), signal.SIGTERM))"
    ended = shell(code, "", tmp_path)
    assert (ended.returncode, ended.stderr) == (130, "stopped\n")
    code = (
        BEGIN
        + "import atexit, os, signal; begin(); atexit.register(os.kill, os.getpid(), signal.SIGINT)\nexecute(lambda: 4)"
    )
    ended = shell(code, "", tmp_path)
    assert (ended.returncode, ended.stderr) == (4, "")


SCRIPTS = [
    *(ROOT / "scripts").glob("[!_]*.py"),
    *(ROOT / "dataset").glob("build_*.py"),
    *(path for path in ROOT.glob("*.py") if "__main__" in path.read_text()),
]


@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.name != "__init__.py"], ids=lambda path: path.stem)
def test_every_script_begins_before_its_slow_imports(script: Path) -> None:
    text = script.read_text()
    lines = text.splitlines()
    begun = next(number for number, line in enumerate(lines, start=1) if line.startswith("    begin("))
    before: list[str] = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import | ast.ImportFrom) and node.lineno < begun:
            before += [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    assert before
    quick = {*sys.stdlib_module_names, "engine"}
    assert {name.partition(".")[0] for name in before} <= quick
    assert {name for name in before if name.startswith("engine")} <= {"engine.cli.console", "engine.io"}
    assert lines[-1].lstrip().startswith(("execute(", "main(launch"))


def test_the_end_waits_for_exit_functions_but_takes_nothing_apart(tmp_path: Path) -> None:
    """Torn down, torch costs a second between the last line and the prompt."""
    late = "import atexit; begin(); atexit.register(print, 'exit function')\n"
    heavy = "class Heavy:\n  def __del__(self): print('torn down')\nheavy = Heavy()\n"
    ended = shell(BEGIN + late + heavy + "print('done'); execute(lambda: 7)", "| cat", tmp_path)
    assert (ended.returncode, ended.stdout) == (7, "done\nexit function\n")
    failed = shell(BEGIN + late + heavy + "raise ValueError('a bug')", "| cat", tmp_path)
    assert (failed.returncode, failed.stdout) == (1, "exit function\ntorn down\n")
