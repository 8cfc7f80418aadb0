"""Sweeps: one process per job with any launcher, numbered names, the worst code, signals, presets."""

from __future__ import annotations

import json
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException

import launcher.sweep
from engine.cli.explain import PLUGINS, one_line
from engine.errors import UsageError
from launcher.gpus import hold_gpus
from launcher.naming import label_of, suffixed, swept_keys
from launcher.sweep import RANKS, ranks, take_folder
from tests.launcher.sweep_cases import ROOT, make_project, ran, results, start, sweep


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path)


def test_each_job_is_a_process_of_its_own_with_its_own_name(project: Path) -> None:
    code, jobs, error = sweep(
        project, "-m", "--lr", "1,2", "--prompt", "a, b", "+run_name=x", "arch=large", "+debug=tiny"
    )
    assert (code, error) == (0, "")
    assert [(job["lr"], job["run_name"], job["prompt"], job["L_cycles"]) for job in jobs] == [
        (1, "x_lr-1", "a, b", 6),
        (2, "x_lr-2", "a, b", 6),
    ]
    assert not list((project / "multirun").glob(".sweep-*"))
    rows = results(project)  # the best first: the larger, as the run says
    assert [(row["job"], row["lr"], row["state"], row["eval/score"], row["steps"]) for row in rows] == [
        ("1", "2", "done", "2.0000", "7"),
        ("0", "1", "done", "1.0000", "7"),
    ]
    assert all((project / row["run directory"]).is_dir() for row in rows)
    assert "prompt" not in rows[0]


def test_the_worst_code_wins_and_every_job_runs(project: Path) -> None:
    code, jobs, error = sweep(project, "-m", "fail=run,usage,null")
    assert code == 2
    assert [job["fail"] for job in jobs] == [None]
    assert error.splitlines() == ["error: went wrong", "error: cannot use it"]
    assert [row["state"] for row in results(project)] == ["done", "failed", "refused"]
    assert "error" not in results(project)[0]
    (table,) = project.glob("multirun/*/results.json")
    assert [job["error"] for job in json.loads(table.read_text())] == ["went wrong", "cannot use it", ""]


def test_a_folder_that_hydra_cannot_make_is_one_line(project: Path) -> None:
    code, jobs, error = sweep(project, "-m", "lr=1,2", "hydra.sweep.dir=/proc/x")
    assert (code, jobs) == (2, [])
    where = "hydra.sweep.dir: /proc/x cannot be written (No such file or directory)"
    assert error.splitlines() == [f"error: {where}: name another folder"]


def test_a_stopped_job_ends_the_sweep_with_3(project: Path) -> None:
    code, jobs, _ = sweep(project, "-m", "fail=stop,null")
    assert (code, jobs) == (3, [])
    assert [row["state"] for row in results(project)] == ["interrupted"]


def test_only_explicit_names_get_the_label() -> None:
    assert suffixed(["lr=1", "~seed", "prompt='a,b'"], "3") == ["lr=1", "~seed", "prompt='a,b'"]
    assert suffixed(["run_name='a b'", "run_dir=out"], "3") == ["++run_name='a b_3'", "++run_dir=out_3"]
    assert suffixed(["run_name=null"], "3") == ["run_name=null"]
    assert suffixed(["lr=1"], "3", {"run_name": "named"}) == ["lr=1", "++run_name=named_3"]
    assert suffixed(["out_dir=o"], "3", {"run_dir": "o"}) == ["out_dir=o", "++run_dir=o_3"]
    assert suffixed(["++run_name=cli"], "3", {"run_name": "cli"}) == ["++run_name=cli_3"]


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        (["lr=0.001", "seed=0", "device=cpu"], "lr-0.001_seed-0"),
        (["+arch.H_cycles=3"], "H_cycles-3"),
        (["arch=trm", "seed=-1"], "arch-trm_seed--1"),
        (["data_paths=[data/a]"], "data_paths--data-a-_7"),  # a folder's name cannot say it: the number tells it apart
        (["prompt='a b'"], "prompt--a-b-_7"),
        (["prompt=" + "x" * 200], "prompt-" + "x" * 73 + "_7"),
        (["run_name=a"], "7"),
        (["device=cpu"], "7"),
    ],
)
def test_a_label_says_the_swept_values(overrides: list[str], label: str) -> None:
    swept = {"lr", "seed", "arch", "arch.H_cycles", "data_paths", "prompt", "run_name"}
    assert label_of(overrides, swept, 7) == label


def test_a_sweeper_that_may_repeat_itself_numbers_its_jobs() -> None:
    assert label_of(["lr=0.5"], {"lr"}, 7, repeats=True) == "lr-0.5_7"


def test_sweeps_of_one_second_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    assert [take_folder(tmp_path).name for _ in range(3)] == ["now", "now_2", "now_3"]


def test_which_keys_are_swept() -> None:
    words = ["-m", "--config-name=x", "lr=1,2", "seed=range(0,3)", "prompt='a,b'", "max_steps=5", "x=[1,2]"]
    assert swept_keys(words) == ["lr", "seed"]
    with pytest.raises(UsageError, match=r"^seed=range\(3,3\) holds no number, so there is no job"):  # it exited with 0
        swept_keys(["-m", "lr=1,2", "seed=range(3,3)"])


def test_presets_of_config_sweep(project: Path) -> None:
    code, _, error = sweep(project, "+sweep=seeds")
    assert (code, error) == (2, "error: a preset of config/sweep describes several jobs: add -m to run them\n")
    code, jobs, _ = sweep(project, "-m", "+sweep=lr_seed", "seed=3,4", "lr=0.5")
    assert code == 0
    assert [(job["lr"], job["seed"], job["suffix"]) for job in jobs] == [
        (0.5, 3, "_lr-0.5_seed-3"),
        (0.5, 4, "_lr-0.5_seed-4"),
    ]


@pytest.mark.slow
def test_jobs_that_the_identity_does_not_tell_apart_have_names_of_their_own(project: Path) -> None:
    _, jobs, _ = sweep(project, "-m", "log_interval=1,2")
    assert [job["suffix"] for job in jobs] == ["_log_interval-1", "_log_interval-2"]


@pytest.mark.parametrize("preset", sorted(path.stem for path in (ROOT / "config/sweep").glob("*.yaml")))
def test_presets_sweep_keys_that_exist(preset: str) -> None:
    from omegaconf import OmegaConf

    from engine.cli.keys import keys_of
    from models.animal.config import LoraConfig
    from models.recursive_reasoning.trm import TRMConfig
    from tasks.animal.args import AnimalConfig
    from tasks.recursive_reasoning.args import PretrainConfig

    known = {*keys_of(PretrainConfig), *(f"arch.{key}" for key in keys_of(TRMConfig))}
    if preset == "w_o":  # of train_animal.py
        known = {*keys_of(AnimalConfig), *(f"arch.{key}" for key in keys_of(LoraConfig)), "arch.loss"}
    swept = OmegaConf.load(ROOT / f"config/sweep/{preset}.yaml").hydra.sweeper.params
    assert set(swept) <= known
    assert swept_keys([f"{key}={value}" for key, value in swept.items()]) == list(swept)


# --- launchers --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_joblib_runs_jobs_at_once_and_gives_each_a_gpu(project: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    code, jobs, error = sweep(
        project,
        "-m",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "lr=1,2",
        "+run_name=x",
        CUDA_VISIBLE_DEVICES="4,7",
    )
    assert (code, error) == (0, "")
    assert {(job["lr"], job["run_name"], job["gpus"]) for job in jobs} == {(1, "x_lr-1", "4"), (2, "x_lr-2", "7")}
    assert [row["lr"] for row in results(project)] == ["2", "1"]


@pytest.mark.slow
def test_submitit_on_this_machine(project: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    code, jobs, _ = sweep(
        project, "-m", "hydra/launcher=submitit_local", "fail=run,null", "+run_name=x", CUDA_VISIBLE_DEVICES="4,7"
    )
    assert code == 1
    assert [(job["run_name"], job["gpus"]) for job in jobs] == [("x_fail-null", "7")]
    assert {row["state"] for row in results(project)} == {"failed", "done"}


@pytest.mark.parametrize("launcher", PLUGINS)
def test_a_missing_launcher_is_one_line_with_the_command(launcher: str) -> None:
    group = "hydra/sweeper" if launcher == "optuna" else "hydra/launcher"
    missing = MissingConfigException("long", missing_cfg_file=f"{group}/{launcher}", options=["basic"])
    line = one_line(missing, object, [ROOT / "config"], composing=True)
    assert line == f"{group}={launcher} needs a plugin: pip install -e '.[{PLUGINS[launcher]}]'"
    assert f"\n{PLUGINS[launcher]} = [" in (ROOT / "pyproject.toml").read_text()


def test_each_job_gets_a_free_gpu_else_one_by_its_number(tmp_path: Path) -> None:
    with ExitStack() as first, ExitStack() as second:
        assert hold_gpus(["a", "b", "c"], 0, 1, tmp_path, first) == ["a"]
        assert hold_gpus(["a", "b", "c"], 3, 1, tmp_path, second) == ["b"]  # a is taken
        assert hold_gpus(["a", "b", "c"], 1, 2, tmp_path, second) == ["c", "a"]  # one is free, one is shared
        assert hold_gpus(["a", "b", "c"], 1, 1, tmp_path, second) == ["b"]
    with ExitStack() as third:
        assert hold_gpus(["a", "b", "c"], 3, 1, tmp_path, third) == ["a"]


def test_the_metric_reaches_the_sweeper(project: Path) -> None:
    plugin = project / "hydra_plugins" / "asking.py"
    plugin.parent.mkdir()
    plugin.write_text(
        "from hydra.core.config_store import ConfigStore\n"
        "from hydra.core.plugins import Plugins\n"
        "from hydra.plugins.sweeper import Sweeper\n"
        "class Asking(Sweeper):\n"
        "    def setup(self, *, hydra_context, task_function, config):\n"
        "        self.launcher = Plugins.instance().instantiate_launcher(\n"
        "            hydra_context=hydra_context, task_function=task_function, config=config)\n"
        "    def sweep(self, arguments):\n"
        "        first = self.launcher.launch([['lr=0.5']], initial_job_idx=0)[0].return_value\n"
        "        second = self.launcher.launch([[f'lr={first / 2}']], initial_job_idx=1)[0].return_value\n"
        "        failed = self.launcher.launch([['fail=run']], initial_job_idx=2)[0].return_value\n"
        "        open('told', 'w').write(repr((first, second, failed)))\n"
        "ConfigStore.instance().store(group='hydra/sweeper', name='asking', node={'_target_': 'hydra_plugins.asking.Asking'})\n"
    )
    code, _, _ = sweep(project, "-m", "hydra/sweeper=asking")
    assert code == 1
    assert (project / "told").read_text() == "(0.5, 0.25, None)"


@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=pytest.mark.slow)])
def test_a_signal_to_the_sweep_stops_its_jobs_well(project: Path, launcher: str) -> None:
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    one_at_a_time = ["hydra.launcher.n_jobs=1"] if launcher == "joblib" else []
    process = start(project, "tiny.py", "-m", f"hydra/launcher={launcher}", "fail=wait,null", *one_at_a_time)
    deadline = time.monotonic() + 60
    while not (project / "waiting").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 3
    assert ran(project) == []
    assert [row["state"] for row in results(project)] == ["interrupted"]
    assert not list((project / "multirun").glob(".sweep-*"))


def test_a_number_of_ranks_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks() == 1
    monkeypatch.setenv(RANKS, "two")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="LOOPFORGE_RANKS=two"), launcher.sweep.sweep():
        pass
    assert not list(tmp_path.iterdir())


def test_a_sweep_where_nothing_can_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "multirun").write_text("a file where the folder of sweeps would be")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="multirun cannot be written"), launcher.sweep.sweep():
        pass
