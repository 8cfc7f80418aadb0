"""The end of a sweep: the table, what failed, the same command again; the slurm launcher against a stand-in cluster."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from launcher.results import JobResult, over_seeds, publish, table
from launcher.sweep import RANKS
from tests.conftest import metrics, run_script, status_of
from tests.launcher.sweep_cases import ROOT, make_project, ran, results, start, sweep


def job(number: int, value: float | None, *, direction: str = "min", code: int = 0, lr: str = "1") -> JobResult:
    summary = {} if value is None else {"name": "eval/loss", "value": value, "goal": direction, "step": 5, "seconds": 2}
    return JobResult(
        number=number,
        overrides=[f"lr={lr}", "+debug=tiny"],
        code=code,
        seconds=3.0,
        sweep_dir="s",
        step=summary.get("step"),
        summary=summary,
    )


def test_the_best_run_comes_first_and_what_has_no_metric_last() -> None:
    jobs = [job(0, None, code=1), job(1, 0.5, lr="2"), job(2, 0.25, lr="3"), job(3, None, code=3)]
    head, rows = table(jobs)
    assert head == ["job", "lr", "state", "eval/loss", "steps", "seconds", "run directory"]
    assert [row[0] for row in rows] == ["2", "1", "0", "3"]
    assert rows[0][1:6] == ["3", "done", "0.2500", "5", "2"]
    assert rows[3][1:6] == ["1", "interrupted", "", "", "3.0"]
    _, rows = table([job(0, 0.1, direction="max"), job(1, 0.9, direction="max")])
    assert [row[0] for row in rows] == ["1", "0"]


def test_stand_in_data_are_named_below_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = [job(0, 0.5), job(1, 0.25, lr="2")]
    jobs[1].summary["stand_in"] = True
    for which in ("job 1", "all jobs"):
        publish(jobs)
        line = f"STAND-IN DATA (stand_in: true): {which}; figures are not comparable"
        assert line in capsys.readouterr().out.splitlines()
        assert (tmp_path / "s/results.md").read_text().splitlines()[-1] == line
        jobs[0].summary["stand_in"] = True


def test_a_value_given_twice_is_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = [job(0, 0.5), job(1, 0.5), job(2, 0.25, lr="2")]
    for one, place in zip(jobs, ("r/lr-1", "r/lr-1", "r/lr-2"), strict=True):
        one.run_dir = place
    publish(jobs)
    assert "warning: jobs 0, 1 have the same settings: one run (r/lr-1)" in capsys.readouterr().out.splitlines()


def seeded(number: int, lr: str, seed: int, value: float | None, direction: str = "max") -> JobResult:
    made = job(number, value, direction=direction, lr=lr, code=int(value is None))
    made.overrides.append(f"seed={seed}")
    return made


def test_runs_that_differ_in_their_seed_are_also_shown_together() -> None:
    jobs = [seeded(0, "1", 0, 0.5), seeded(1, "1", 1, 0.7), seeded(2, "2", 0, 0.9), seeded(3, "2", 1, None)]
    head, rows = over_seeds(jobs) or ([], [])
    assert head == ["lr", "eval/loss mean ± sd", "lowest", "highest", "seeds"]
    assert rows == [["2", "0.9000", "0.9000", "0.9000", "1"], ["1", "0.6000 ± 0.1414", "0.5000", "0.7000", "2"]]
    least = over_seeds([seeded(0, "1", 0, 0.5, "min"), seeded(1, "1", 1, 0.7, "min"), seeded(2, "2", 0, 0.9, "min")])
    assert least is not None
    assert [row[0] for row in least[1]] == ["1", "2"]
    alone = over_seeds([seeded(0, "1", 0, 0.5), seeded(1, "1", 1, 0.7)])
    assert alone == (head[1:], [["0.6000 ± 0.1414", "0.5000", "0.7000", "2"]])


def test_without_two_seeds_there_is_no_second_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert over_seeds([job(0, 0.5), job(1, 0.6, lr="2")]) is None
    assert over_seeds([seeded(0, "1", 0, 0.5), seeded(1, "2", 1, 0.6)]) is None
    assert over_seeds([seeded(0, "1", 0, 0.5), seeded(1, "1", 1, None)]) is None
    monkeypatch.chdir(tmp_path)
    publish([job(0, 0.5)])
    assert not (tmp_path / "s/results_over_seeds.csv").exists()
    publish([seeded(0, "1", 0, 0.5), seeded(1, "1", 1, 0.7)])
    assert (tmp_path / "s/results_over_seeds.csv").read_text().splitlines()[1] == "0.6000 ± 0.1414,0.5000,0.7000,2"
    assert "| 0.6000 ± 0.1414 | 0.5000 |" in (tmp_path / "s/results.md").read_text()


def test_a_table_without_any_metric_or_variation_still_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    publish([job(0, None, code=2)])
    printed = capsys.readouterr().out.splitlines()
    assert printed[1:] == [
        "job  state    steps  seconds  run directory",
        "0    refused         3.0",
        "1 jobs: 1 refused; table in s/results.csv, .md and .json",
        "job 0 refused, exit code 2",
        "the same command again keeps what is done and resumes the rest",
    ]
    assert (tmp_path / "s/results.md").read_text().splitlines()[2] == "| 0 | refused |  | 3.0 |  |"


def test_what_failed_is_listed_with_its_reason_and_all_of_it_is_in_the_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    failed = job(1, None, code=1)
    failed.error, failed.run_dir = "loss is not finite", str(tmp_path / "checkpoints/p/b")
    publish([job(0, 0.5, direction="max"), failed])
    assert "job 1 failed, exit code 1: loss is not finite (checkpoints/p/b)" in capsys.readouterr().out.splitlines()
    first, second = json.loads((tmp_path / "s/results.json").read_text())
    assert (first["state"], first["summary"]["value"], first["summary"]["goal"]) == ("done", 0.5, "max")
    assert (second["state"], second["error"], second["overrides"]) == ("failed", failed.error, failed.overrides)
    publish([job(0, 0.5)])
    assert "the same command" not in capsys.readouterr().out
    publish([job(0, 0.5)], complete=False)
    assert "the same command again" in capsys.readouterr().out


def test_a_table_that_cannot_be_written_does_not_hide_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s").write_text("a file where the folder should be")
    publish([job(0, 0.5)])
    assert "1 jobs: 1 done; the table could not be written to s (" in capsys.readouterr().out


# --- slurm, on a stand-in cluster: `sbatch` starts the script's tasks here, as an array of job 70 ---------------------

STAND_IN = {
    "sbatch": """#!/usr/bin/env python3
import os, pathlib, re, subprocess, sys
text = pathlib.Path(sys.argv[-1]).read_text()
pathlib.Path("submitted.sh").write_text(text)
for i in range(1 + int(re.search(r"--array=0-(\\d+)", text)[1])):
    task = {"SLURM_JOB_ID": str(70 + i), "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": str(i), "SLURM_NTASKS": "1",
            "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NUM_NODES": "1",
            "SLURM_JOB_NODELIST": "here", "SLURMD_NODENAME": "here"}
    with open("printed", "a") as out:
        subprocess.Popen(["bash", sys.argv[-1]], env=os.environ | task, stdout=out, stderr=out, start_new_session=True)
print("Submitted batch job 70")
""",
    "srun": """#!/bin/bash
while [[ "$1" == -* ]]; do case "$1" in --output|--error) shift 2;; *) shift;; esac; done
echo $$ > worker_$SLURM_ARRAY_TASK_ID
exec "$@"
""",
    "sacct": "#!/bin/bash\necho 'JobID|State|NodeList'; echo '70_0|RUNNING|here'; echo '70_1|RUNNING|here'\n",
    "scontrol": '#!/bin/bash\necho "$@" >> scontrol\n',
}


@pytest.fixture
def cluster(tmp_path: Path) -> tuple[Path, str]:
    """A project and the PATH with the stand-in commands."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    (tmp_path / "bin").mkdir()
    for name, text in STAND_IN.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return make_project(tmp_path), f"{tmp_path / 'bin'}:{os.environ['PATH']}"


def test_slurm_without_a_cluster_is_one_line(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    code, jobs, error = sweep(project, "-m", "hydra/launcher=submitit_slurm", "lr=1,2", PATH=str(tmp_path))
    assert (code, jobs) == (2, [])
    assert error == "error: hydra/launcher=submitit_slurm: there is no srun here; start it on a cluster\n"


@pytest.mark.slow
def test_slurm_jobs_are_one_array_with_what_the_user_asks_for(cluster: tuple[Path, str]) -> None:
    project, path = cluster
    code, jobs, _ = sweep(
        project,
        "-m",
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.partition=gpu",
        "hydra.launcher.gpus_per_node=1",
        "hydra.launcher.timeout_min=90",
        "lr=1,2",
        "+run_name=x",
        PATH=path,
        CUDA_VISIBLE_DEVICES="3",
    )
    assert code == 0
    script = (project / "submitted.sh").read_text()
    for line in ("--array=0-1%2", "--partition=gpu", "--gpus-per-node=1", "--time=90"):
        assert f"#SBATCH {line}\n" in script
    assert sorted((job["run_name"], job["lr"], job["gpus"]) for job in jobs) == [("x_lr-1", 1, "3"), ("x_lr-2", 2, "3")]
    assert [row["lr"] for row in results(project)] == ["2", "1"]


@pytest.mark.slow
def test_a_preempted_slurm_job_saves_itself_and_is_queued_again(cluster: tuple[Path, str]) -> None:
    project, path = cluster
    process = start(project, "tiny.py", "-m", "hydra/launcher=submitit_slurm", "fail=wait,run", PATH=path)
    deadline = time.monotonic() + 60
    while not (project / "waiting").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(int((project / "worker_0").read_text()), signal.SIGUSR2)
    while not (project / "scontrol").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert (project / "scontrol").read_text() == "requeue 70_0\n"
    assert "interrupted: stopped" in (project / "printed").read_text()


@pytest.mark.slow
def test_a_job_that_leaves_the_queue_after_its_sweep_does_nothing(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    late = "import hydra, os; from launcher import sweep\n"
    late += f"os.environ[sweep.SWEEP] = {str(tmp_path / 'gone')!r}\n"
    late += "@hydra.main(config_path='config', config_name='cfg_tiny', version_base=None)\n"
    late += "def main(config): print('CODE', sweep.run_child_if_multirun(config, 'tiny.py').code)\nmain()\n"
    (project / "late.py").write_text(late)
    process = start(project, "late.py", "-m", "seed=0")
    output, _ = process.communicate()
    assert "CODE 3" in output
    assert ran(project) == []


# --- real runs --------------------------------------------------------------------------------------------------------

TINY = ("--config-name=cfg_pretrain_sudoku_4x4", "+debug=tiny", "device=cpu", "project_name=p", "verify=off")


def test_skip_finished(workplace: Path) -> None:
    argv = (*TINY, "run_name=a")
    assert run_script("pretrain", *argv, cwd=workplace).code == 0
    again = run_script("pretrain", *argv, "skip_finished=true", cwd=workplace)
    assert (again.code, "p/a: done already (step 2)" in again.output) == (0, True)
    longer = run_script("pretrain", *argv, "skip_finished=true", "max_steps=3", cwd=workplace)
    assert "a.1" in longer.output  # another budget is another wish, though the same identity
    usual = run_script("pretrain", *argv, "max_steps=3", cwd=workplace)
    assert "a.2" in usual.output


@pytest.mark.slow
def test_four_runs_one_killed_and_the_same_command_goes_on(workplace: Path) -> None:
    argv = [*TINY, "-m", "lr=1e-4,3e-4", "seed=0,1", "run_name=s", "max_steps=60", "epochs=4", "checkpoint_interval=1"]
    process = start(workplace, str(ROOT / "pretrain.py"), *argv)
    victim, deadline = workplace / "checkpoints/p/s_lr-0.0001_seed-1", time.monotonic() + 120
    while not (victim / "checkpoints/latest").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(status_of(victim)["pid"], signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == 1
    assert "job 1 failed, exit code 1: killed by SIGKILL (checkpoints/p/s_lr-0.0001_seed-1)" in output
    assert sorted(row["state"] for row in results(workplace)) == ["done", "done", "done", "failed"]
    again = start(workplace, str(ROOT / "pretrain.py"), *argv)
    output, _ = again.communicate()
    assert again.returncode == 0
    assert output.count("done already (step 60)") == 3
    assert "checkpoints/p/s_lr-0.0001_seed-1: resuming from step_" in output
    rows = results(workplace)
    assert {(row["lr"], row["seed"], row["state"]) for row in rows} == {
        (lr, seed, "done") for lr in ("0.0001", "0.0003") for seed in "01"
    }
    names = sorted(path.name for path in (workplace / "checkpoints/p").iterdir())
    assert names == [f"s_lr-{lr}_seed-{seed}" for lr in ("0.0001", "0.0003") for seed in "01"]
    lines = [line["step"] for line in metrics(victim) if "train/loss" in line]
    assert lines == list(range(1, 61))


@pytest.mark.slow
def test_a_job_of_two_ranks_is_started_by_torchrun(workplace: Path) -> None:
    argv = [*TINY, "-m", "global_batch_size=4,3", "run_name=r"]
    process = start(workplace, str(ROOT / "pretrain.py"), *argv, **{RANKS: "2"})
    output, _ = process.communicate()
    assert "4 = 2 rows x accumulation 1 x 2 rank(s)" in output
    assert process.returncode == 2  # three rows for two ranks: torchrun says 1, status.json says 2
    assert {row["global_batch_size"]: row["state"] for row in results(workplace)} == {"4": "done", "3": "refused"}
