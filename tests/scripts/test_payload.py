"""A module beside a downloaded run is never imported, whatever the run's files say (SECURITY.md)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from engine.checkpoint.store import CheckpointStore
from engine.errors import UsageError
from engine.run.stored import stored_text
from tests.conftest import ROOT, run_forked
from verification.rules.stored import command_of

PAYLOAD = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass SCHEMA: ...\nclass Payload: ...\n"


@pytest.fixture
def download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as it may be unpacked: a run whose files name the payloads beside it, also as one of our packages."""
    for name in ("payload.py", "losses/__init__.py", "losses/heads.py", "models/__init__.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(PAYLOAD)
    CheckpointStore(tmp_path / "run", "payload").save(
        1, model={"w": torch.zeros(1)}, state={}, config={"arch": {"name": "payload@Payload"}}
    )
    (tmp_path / "run/environment.json").write_text(json.dumps({"working_directory": str(tmp_path)}))
    header = '# composed from {"config_name": "cfg_pretrain", "choices": {}}\n'
    (tmp_path / "run/config.yaml").write_text(header + "script: payload.py\n")
    return tmp_path


def _command(script: str, words: list[str]) -> None:
    import runpy

    sys.path.insert(0, "")  # the working directory comes first, as with python -c
    sys.argv = [script, *words]
    runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("evaluate.py", ["run"]),
        ("visualize.py", ["run"]),
        ("sample.py", ["run"]),
        ("export_gpt2.py", ["run", "exported"]),
        ("export.py", ["run", "--format", "export", "--out", "exported"]),
        ("verify_path.py", ["--checkpoint", "run"]),
        ("estimate.py", ["--entry", "payload", "device=cpu"]),
    ],
)
def test_no_command_runs_it(download: Path, script: str, words: list[str]) -> None:
    result = run_forked(_command, script, words, cwd=download)
    assert result.code == 2, result.output
    assert "payload" in result.output
    assert "expected a" in result.output
    assert not list(download.rglob("ran"))


@pytest.mark.parametrize(
    "line", ["--config-dir=/tmp", "hydra.searchpath=[file:///tmp]", "+hydra.launcher._target_=os.x"]
)
def test_a_stored_command_holds_values_only(tmp_path: Path, line: str) -> None:
    header = '# composed from {"config_name": "cfg_pretrain", "choices": {}}\n'
    (tmp_path / "config.yaml").write_text(header + "script: pretrain.py\n")
    assert command_of(tmp_path)[1] == "pretrain.py"
    (tmp_path / "overrides.txt").write_text(f"seed=1\n{line}\n")
    with pytest.raises(UsageError, match="is not the value of a key"):
        command_of(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "a: &a [1,1]\nb: &b [*a,*a]\n"
            + "".join(f"k{n}: &k{n} [{','.join(['*b' if n == 0 else f'*k{n - 1}'] * 9)}]\n" for n in range(9)),
            "stands for more",
        ),
        ("a: ${b}\nb: ${a}\n", "refers to itself"),
        ("x0: aaaaaaaa\n" + "".join(f"x{n}: '${{x{n - 1}}}${{x{n - 1}}}'\n" for n in range(1, 40)), "stands for more"),
        ("a: !!python/object/apply:os.system [touch ran]\n", "is not a config"),
        ("- 1\n", "is not a block of keys"),
        ("3\n", "is not a config"),
        ("1: 2\n", "not text"),
        ("# composed from {\nseed: 1\n", "damaged first line"),
        ('# composed from {"config_name": 3}\nseed: 1\n', "damaged first line"),
        ("[" * 90_000, "nest"),
        ("\x00", "not YAML"),
    ],
)
def test_a_broken_stored_config_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        stored_text(tmp_path)
    assert "config.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)
