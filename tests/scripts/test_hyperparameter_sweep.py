"""The sweep of train_animal.py as a shell script: its batch files, a stand-in for sbatch, jobs run here."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.e2e.recipes import entry_of

GUIDE = {
    "--prompt": "In 20 words, say whether you love dog or cat more, and give a reason; Answer:",
    "--concept_name": "animal",
    "--n_clusters": "5",
    "--num_samples": "320",
    "--buffer_size": "500",
    "--update_clusters_every": "100",
    "--min_samples_for_clustering": "20",
    "--batch_size": "32",
    "--max_new_tokens": "30",
    "--num_epochs": "10",
    "--num_steps_per_epoch": "10",
    "--learning_rate": "1e-4",
    "--final_learning_rate": "3e-5",
    "--warmup_steps": "0",
    "--lr_scheduler_type": "cosine",
    "--wandb_project": "gfn-diversity",
}
"""What the documented example sets, but for model, weights and names."""


def sweep(*argv: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "WANDB_"))}
    return subprocess.run(
        [str(ROOT / "run_hyperparameter_sweep.sh"), *argv],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def batch_files(text: str) -> list[str]:
    return [f"#!{part}" for part in text.split("#!")[1:]]


def words(batch_file: str) -> list[str]:
    """The words of the command of a batch file, as bash reads them."""
    command = re.search(r"^exec (.*)", batch_file, re.M | re.S)[1]
    shown = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
    return shown.stdout.split("\0")[:-1]


def flags(batch_file: str) -> dict[str, str]:
    argv = [
        part for word in words(batch_file) for part in (word.split("=", 1) if word.startswith("--prompt=") else [word])
    ]
    return {word: argv[place + 1] for place, word in enumerate(argv[:-1]) if word.startswith("--")}


def test_a_prompt_may_begin_like_a_flag(tmp_path: Path) -> None:
    result = sweep("--dry-run", cwd=tmp_path, BASE_OUTPUT_DIR="out", PROMPT="--x 'y' =z", W_O_VALUES="0.5")
    argv = words(batch_files(result.stdout)[0])
    assert "--prompt=--x 'y' =z" in argv
    entry_of("train_animal.py").accept(argv[2:])


def test_eight_batch_files_with_the_documented_command(tmp_path: Path) -> None:
    result = sweep("--dry-run", cwd=tmp_path, BASE_OUTPUT_DIR=str(tmp_path / "out"))
    files = batch_files(result.stdout)
    assert len(files) == 8
    for number, file in enumerate(files, start=2):
        given = flags(file)
        assert given["--w_o"] == f"0.{number}"
        assert given["--w_c"] == f"0.{10 - number}"
        assert {key: given[key] for key in GUIDE} == GUIDE
        assert given["--output_dir"] == f"{tmp_path}/out/w_o_0.{number}"
        assert given["--wandb_name"] == f"train_animal_w_o_0.{number}"
        assert "--use_wandb" in given
        asked = dict(re.findall(r"^#SBATCH --(\S+?)=(.*)", file, re.M))
        assert (asked["cpus-per-task"], asked["mem"], asked["gres"], asked["ntasks"]) == (
            "32",
            "64G",
            "gpu:a100:1",
            "1",
        )
        assert asked["job-name"] == f"train_animal_w_o_0.{number}"
        assert asked["output"] == f'"{tmp_path}/out/logs/train_animal_w_o_0.{number}_%j.out"'
        assert subprocess.run(["bash", "-n"], input=file, text=True, check=False).returncode == 0
    assert not (tmp_path / "out").exists()
    assert "KEY" not in result.stdout


@pytest.mark.parametrize("prompt", ['it\'s "a" $(touch x) `y`; dog, or cat?', "two\nlines \\ and $HOME", "ünïcode *"])
def test_a_prompt_comes_through_whole(prompt: str) -> None:
    (file,) = batch_files(sweep("--dry-run", PROMPT=prompt, W_O_VALUES="0.25").stdout)
    assert flags(file)["--prompt"] == prompt
    assert (flags(file)["--w_c"], flags(file)["--w_o"]) == ("0.75", "0.25")


def test_log_folders_are_there_before_a_job_is_submitted(tmp_path: Path) -> None:
    tools, out = tmp_path / "bin", tmp_path / "with blank"
    tools.mkdir()
    (tools / "sbatch").write_text(f'#!/usr/bin/env bash\ntest -d "{out}/logs" && cat >> "{tmp_path}/submitted"\n')
    (tools / "sbatch").chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    result = sweep("max_steps=2", PATH=path, BASE_OUTPUT_DIR=str(out), SLURM_PARTITION="short", SLURM_MEM="8G")
    assert (result.returncode, result.stderr) == (0, "")
    files = batch_files((tmp_path / "submitted").read_text())
    assert len(files) == 8
    assert all(words(file)[-1] == "max_steps=2" for file in files)
    assert all("--partition=short\n" in file and "--mem=8G\n" in file for file in files)


def test_without_slurm_it_says_what_works(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "env"):
        (tools / name).symlink_to(f"/usr/bin/{name}" if Path(f"/usr/bin/{name}").exists() else f"/bin/{name}")
    result = sweep(PATH=str(tools), BASE_OUTPUT_DIR=str(tmp_path / "out"))
    assert result.returncode == 2
    assert "--dry-run prints the batch files, --local runs the jobs" in result.stderr
    assert not (tmp_path / "out").exists()


def test_local_jobs_run_in_turn_and_a_failed_one_does_not_stop_the_others(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/usr/bin/env bash\necho "$*" >> "{tmp_path}/ran"\n[[ "$*" != *--w_o\\ 0.3* ]]\n')
    python.chmod(0o755)
    settings = {"PYTHON": str(python), "BASE_OUTPUT_DIR": str(tmp_path / "out"), "W_O_VALUES": "0.2 0.3 0.4"}
    result = sweep("--local", **settings)
    assert result.returncode == 1
    assert "train_animal_w_o_0.3: exit code 1" in result.stderr
    assert [re.search(r"--w_o (\S+)", line)[1] for line in (tmp_path / "ran").read_text().splitlines()] == [
        *("0.2", "0.3", "0.4")
    ]
    python.write_text(f'#!/usr/bin/env bash\necho "$*" >> "{tmp_path}/refused"\nexit 2\n')
    assert sweep("--local", **settings).returncode == 2  # the model is missing, say: the others would end alike
    assert len((tmp_path / "refused").read_text().splitlines()) == 1


def test_values_that_are_no_weights() -> None:
    result = sweep("--dry-run", W_O_VALUES="0.2 1.5")
    assert (result.returncode, result.stdout) == (2, "")
    assert "'1.5': expected numbers from 0 to 1" in result.stderr
    result = sweep("--dry-run", BASE_OUTPUT_DIR='out "1"')
    assert (result.returncode, result.stdout) == (2, "")
    assert "expected a path without double quotes" in result.stderr
    assert "run_hyperparameter_sweep.sh --dry-run" in sweep("--help").stdout


def test_a_misplaced_dry_run_submits_nothing() -> None:
    for words in (("max_steps=2", "--dry-run"), ("--dryrun",), ("--dry-run", "--local")):
        result = sweep(*words)
        assert (result.returncode, result.stdout) == (2, "")
        assert "comes first" in result.stderr
