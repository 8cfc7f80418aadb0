"""Runs of train_animal.py on a tiny base with random weights: files, resume bit for bit, kill, ranks, guards, refusals."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from engine.checkpoint.manifest import load_checkpoint
from engine.errors import Interrupted
from engine.loop import compiling
from engine.task import Evaluation
from tasks.animal.loading import open_animal_run
from tests.animal.conftest import SHORT, attempt
from tests.conftest import _entry, files_of_at_most, finish, metrics, run_ranks, run_script, start_forked

STEP = """
    total_loss concept_loss open_block_loss learning_rate ref_kl valid_fraction options_seen option_share/cat
    concept_entropy cluster_entropy/dog mean_length epoch grad_norm skipped_steps
""".split()


def same(left: Path, right: Path, step: int = 6) -> None:
    """Adapters, optimizer, buffer and clusters of two runs are equal bit for bit, and so are the metrics."""
    ours, theirs = (load_checkpoint(run / f"checkpoints/step_{step}") for run in (left, right))
    assert ours.model.keys() == theirs.model.keys()
    assert all((ours.model[name] == theirs.model[name]).all() for name in ours.model)
    trees = [json.dumps(_plain(each.state(rank=0, world_size=1)), sort_keys=True) for each in (ours, theirs)]
    assert trees[0] == trees[1]
    assert metrics(left) == metrics(right)


def _plain(tree):
    if isinstance(tree, dict):
        return {str(key): _plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_plain(value) for value in tree]
    return tree.tolist() if hasattr(tree, "tolist") else tree


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A finished run, to look at."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "base").symlink_to(base)
    result = attempt(folder)
    assert result.code == 0, result.output
    (folder / "output.txt").write_text(result.output)
    return folder


def test_what_a_run_leaves(whole: Path) -> None:
    run, output = whole / "run", (whole / "output.txt").read_text()
    assert output.startswith("loss        0.8 concept + 0.2 open block + 0.5 KL to the base; animal: cat, dog")
    names = {path.name for path in run.iterdir()}
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "samples.json",
        "metrics.jsonl",
    } <= names
    rows = metrics(run)
    steps = [row for row in rows if "train/total_loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert {f"train/{name}" for name in STEP} <= steps[0].keys()
    assert next(row["train/learning_rate"] for row in steps) == pytest.approx(0.01)
    timed = [row for line in (run / "metrics.jsonl").open() if "time/step_ms" in (row := json.loads(line))]
    for row in timed:
        assert row["time/tokens_per_s"] == pytest.approx(row["time/examples_per_s"] * row["train/mean_length"])
    evaluated = [row for row in rows if "samples" in row]
    assert [row["step"] for row in evaluated] == [0, 3, 6]
    assert "eval/avg_epoch_loss" in evaluated[1]
    assert evaluated[1]["eval/avg_epoch_loss"] == pytest.approx(sum(r["train/total_loss"] for r in steps[:3]) / 3)
    assert set(evaluated[2]["samples"][0]) == {"sample", "option", "cluster", "open_text", "logp", "ref_logp"}
    stored = load_checkpoint(run / "checkpoints/step_6")
    assert all("lora_" in name for name in stored.model)
    assert len(stored.state(rank=0, world_size=1)["task"]["base"]["sha256"]) == 64


def test_the_adapter_loads_with_peft(whole: Path, base: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), whole / "run")
    stored = load_checkpoint(whole / "run/checkpoints/step_6").model
    loaded = peft.get_peft_model_state_dict(model)
    assert all((loaded[name] == stored[name]).all() for name in stored)
    assert any(stored[name].any() for name in stored if "lora_B" in name)
    named = json.loads((whole / "run/adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(whole / "base")  # given as `base`, found from anywhere


@pytest.mark.parametrize("objective", ["kl", "tb", "kl_exact"])
def test_resume_is_exact(place: Path, whole: Path, objective: str) -> None:
    """6 steps at once, and 2 and 4: weights, optimizer, buffer, clusters and metrics."""
    words = ("--objective", objective)
    if objective == "kl_exact":
        words += ("embedder=hash", "cluster_selection=silhouette", "max_n_clusters=4")
    else:
        words += several(place) * (objective == "tb")
    if objective == "kl":
        left = whole / "run"
    else:
        assert attempt(place, *words, "output_dir=left").code == 0
        left = place / "left"
    assert attempt(place, *words, "max_steps=2").code == 0
    result = attempt(place, *words, "resume=true", "max_steps=null")
    assert result.code == 0, result.output
    assert "step_2" in result.output
    same_after(left, place / "run")


def several(place: Path) -> tuple[str, ...]:
    """A second concept, and clusters that all options have in common: none has enough samples for its own."""
    link = {"the": ["they", "because", "i"], "and": ["are", "run", "nap", "love"]}
    concepts = {"animal": {"cat": ["kitten"], "dog": ["animal", "wild"]}, "link": link}
    (place / "concepts.json").write_text(json.dumps(concepts))
    return (
        "concept_file=concepts.json",
        "further_concepts=[link]",
        "pool_clusters=true",
        "min_samples_for_clustering=17",
    )


def same_after(left: Path, right: Path) -> None:
    """`same`, but for the evaluation that the end of the first part had."""
    ours, theirs = (load_checkpoint(run / "checkpoints/step_6") for run in (left, right))
    assert all((ours.model[name] == theirs.model[name]).all() for name in ours.model)
    trees = [_plain(each.state(rank=0, world_size=1)) for each in (ours, theirs)]
    assert json.dumps(trees[0]["task"], sort_keys=True) == json.dumps(trees[1]["task"], sort_keys=True)
    assert json.dumps(trees[0]["optimizers"], sort_keys=True) == json.dumps(trees[1]["optimizers"], sort_keys=True)
    rows = [[row for row in metrics(run) if row["step"] > 2 and "train/total_loss" in row] for run in (left, right)]
    assert rows[0] == rows[1]


def test_killed_and_resumed_it_is_the_same_run(place: Path, whole: Path) -> None:
    """kill -9 in the middle of an epoch; the same command resumes from the newest checkpoint."""
    words = [*SHORT, "checkpoint_interval=1"]
    process, connection = start_forked(_entry, "train_animal", words, cwd=place)
    deadline = time.monotonic() + 60
    while not (place / "run/checkpoints/step_2").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    finish(process, connection)
    result = attempt(place, "checkpoint_interval=1")
    assert result.code == 0, result.output
    assert "resum" in result.output
    same(whole / "run", place / "run")


def test_a_signal_lets_a_step_finish_and_leaves_an_evaluation(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step has begun is not saved: stopped in the middle of it, all steps since the last checkpoint are lost."""
    monkeypatch.chdir(whole)
    task = open_animal_run(whole / "run", device="cpu").plan.task
    task.sampler.runtime = replace(task.sampler.runtime, stop_requested=lambda: True)
    assert task.micro_batches(7)
    with pytest.raises(Interrupted, match="stopped while sampling"):
        task.evaluate(final=True)


@pytest.mark.parametrize("most", [0, 400, 1500])
def test_a_full_disk_for_temporary_files_is_a_warning(whole: Path, most: int, monkeypatch, capsys) -> None:
    """safetensors and tokenizers do not raise an OSError: it was a traceback."""
    monkeypatch.chdir(whole)
    report = open_animal_run(whole / "run", device="cpu").plan.report
    with files_of_at_most(most):
        files = report(Evaluation(step=7, results={}, best=None, step_ms=None))
    assert files.keys() == {"samples.json"}
    assert (
        "warning: the adapter and its tokenizer could not be written (File too large); training"
        in capsys.readouterr().out
    )


def test_ranks_and_parts_change_nothing(place: Path) -> None:
    for name, parts in (("one", 1), ("parts", 4)):
        assert attempt(place, f"accumulation={parts}", f"output_dir={name}").code == 0
    results = run_ranks("train_animal", *SHORT, "output_dir=ranks", cwd=place)
    assert [result.code for result in results] == [0, 0], results[0].output
    one = load_checkpoint(place / "one/checkpoints/step_6").model
    for name in ("parts", "ranks"):
        other = load_checkpoint(place / name / "checkpoints/step_6").model
        assert all((one[key] - other[key]).abs().max() < 1e-5 for key in one), name
        for left, right in zip(metrics(place / "one"), metrics(place / name), strict=True):
            left, right = ({k: v for k, v in row.items() if v is not None and k != "samples"} for row in (left, right))
            assert left == pytest.approx(right, rel=1e-3, abs=1e-5)


def test_steps_without_enough_valid_samples_are_called_off(place: Path) -> None:
    result = attempt(place, "min_valid_fraction=0.99", "max_skipped_steps=2")
    assert result.code == 1
    assert "warning: step 1 is skipped" in result.output
    assert "in 3 steps in a row (max_skipped_steps=2)" in result.output
    assert "choose another prompt" in result.output
    rows = [row for row in metrics(place / "run") if "train/skipped_steps" in row]
    assert [row["train/skipped_steps"] for row in rows] == [1, 2]
    assert (place / "run/adapter_model.safetensors").exists()  # of step 0


def test_a_run_in_which_nothing_was_trained_has_failed(place: Path) -> None:
    nobody = ("min_valid_fraction=0", "concept_options=[zebra,yak]")
    result = attempt(place, *nobody, "max_skipped_steps=9", "num_epochs=1", "eval_samples=8")
    assert result.code == 1
    assert " samples name zebra or yak and continue, in every step" in result.output.splitlines()[-1]
    assert result.output.splitlines()[-1].startswith("error: step 3: ")
    assert "in every step: nothing was trained; the base hardly ever does" in result.output.splitlines()[-1]
    assert "warning: eval_samples=8 is too few for utility_10 and distinct_10" in result.output


def test_settings_of_sampling_change_what_is_trained_on(place: Path, whole: Path) -> None:
    first = next(row for row in metrics(whole / "run") if row["step"] == 3)
    for number, word in enumerate(("temperature=0.5", "top_k=5", "top_p=0.5")):
        assert attempt(place, word, "max_steps=3", f"output_dir={number}").code == 0
        other = next(row for row in metrics(place / str(number)) if row["step"] == 3)
        assert other["train/grad_norm"] != first["train/grad_norm"], word


@pytest.mark.slow
def test_several_concepts_and_borrowed_clusters(place: Path) -> None:
    words = several(place)
    result = attempt(place, *words, "max_steps=3")
    assert result.code == 0, result.output
    assert "animal: cat, dog; link: the, and" in result.output.splitlines()[0]
    line = next(words for words in result.output.splitlines() if words.startswith("base  "))
    cat, dog, the, and_ = (int(count) for count in re.findall(r"(?:cat|dog|the|and) (\d+)", line))
    assert cat + dog == the + and_ == int(line.split()[1])  # a valid sample names one of each
    rows = [row for row in metrics(place / "run") if "train/total_loss" in row]
    assert all(row["train/option_share/the"] + row["train/option_share/and"] == pytest.approx(1) for row in rows)
    assert all(row["train/options_pooled"] == 2 and row["train/open_block_loss"] is not None for row in rows)
    figures = json.loads((place / "run/eval_before.json").read_text())
    assert figures["option_share_the"] + figures["option_share_and"] == pytest.approx(1)
    assert figures["concept_kl_of_link"] >= 0
    losses = [rows[0]["train/concept_loss"]]
    for number, without in enumerate(("further_concepts=[]", "pool_clusters=false")):
        assert attempt(place, *words, without, "max_steps=1", f"output_dir={number}").code == 0
        row = next(row for row in metrics(place / str(number)) if "train/total_loss" in row)
        losses.append(row["train/concept_loss"])
        assert (row["train/open_block_loss"] is None) == (without == "pool_clusters=false")
        assert "train/options_pooled" in row or without == "pool_clusters=false"
    assert losses[1] != losses[0] == losses[2]


@pytest.mark.slow
def test_compiled_blocks_train_the_same(place: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "eager")  # without code generation, which takes a minute
    result = attempt(place, "compile=block")
    assert result.code == 0, result.output
    assert "compile     2 block(s)" in result.output
    assert "training continues uncompiled" not in result.output
    ours, theirs = (load_checkpoint(run / "checkpoints/step_6").model for run in (place / "run", whole / "run"))
    assert all((ours[name] - theirs[name]).abs().max() < 1e-5 for name in ours)
    result = attempt(place, "compile=full", "output_dir=other")
    assert result.code == 2
    assert "compile" in result.output


def test_only_epochs_that_measure_count_for_early_stopping(place: Path) -> None:
    """Of epochs of one step every second one measures; nothing is better by 9 than the base, at step 0."""
    words = ("--num_steps_per_epoch", "1", "--num_epochs", "6", "eval_every_epochs=2", "early_stop_min_delta=9")
    result = attempt(place, *words, "early_stop_patience=2")
    assert result.code == 0, result.output
    assert json.loads((place / "run/summary.json").read_text())["step"] == 4
    measured = [row for row in metrics(place / "run") if "eval/utility_10" in row]
    assert [row["step"] for row in measured] == [0, 2, 4, 4]
    assert measured[-1]["eval/utility_10"] == measured[-2]["eval/utility_10"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            ["early_stop_patience=2"],
            "early_stop_patience=2 counts evaluations of eval/utility_10, and this run makes none",
        ),
        (["--model_name_or_path", "gpt2"], "python train_animal.py --model_name_or_path data/animal_lm"),
        (["--model_name_or_path", "/nowhere/x"], "there is no such folder"),
        (["--max_new_tokens", "60"], "max_new_tokens=60 behind a prompt of 2 tokens is more than the 48"),
        (["lora_target_modules=[q_proj]"], "no layer's name ends in q_proj; there are attn.c_attn, attn.c_proj"),
        (["--concept_name", "plant"], "concept_name=plant is not in config/concepts.json"),
        (["--embedder", "nowhere"], "embedder=nowhere"),
        (["--batch_size", "7", "accumulation=2"], "batch_size=7"),
    ],
)
def test_unusable_commands(place: Path, argv: list[str], expected: str) -> None:
    result = attempt(place, *argv, env={"HF_HUB_OFFLINE": "1"})
    assert result.code == 2, result.output
    assert expected in next(line for line in result.output.splitlines() if line.startswith("error: "))
    assert not (place / "run").exists()


def test_tb_says_which_option_has_no_clusters(place: Path) -> None:
    """They are fixed before the first step, so it stays without."""
    result = attempt(place, "objective=tb", "--num_samples", "3", "max_steps=1")
    assert "warning: cat, dog: too few different samples for clusters" in result.output, result.output
    assert "raise num_samples=3, or lower min_samples_for_clustering=4" in result.output
    assert all(row["train/open_block_loss"] is None for row in metrics(place / "run") if "train/total_loss" in row)
    assert "too few different samples" not in attempt(place, "objective=kl", "max_steps=1", "output_dir=kl").output


def test_another_base_is_refused(place: Path, base: Path) -> None:
    from tests.animal import tiny

    assert attempt(place, "max_steps=1").code == 0
    (place / "base").unlink()
    tiny.write(place / "base", "gpt2", seed=4)
    result = attempt(place, "resume=true", "max_steps=2")
    assert result.code == 2
    assert "model_name_or_path: base is another base" in result.output


def test_wandb_gets_the_metrics_and_the_samples(place: Path) -> None:
    pytest.importorskip("wandb")
    env = {"WANDB_MODE": "offline", "WANDB_DIR": str(place)}
    result = attempt(place, "--use_wandb", "--wandb_project", "p", "max_steps=1", env=env)
    assert result.code == 0, result.output
    assert "offline" in result.output
    tables = [*place.glob("wandb/offline-run-*/files/media/table/samples_*.json")]
    assert tables
    assert json.loads(tables[0].read_text())["columns"][0] == "sample"


def test_no_library_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra: one line with the command that installs it."""
    try:
        import peft  # noqa: F401
    except ImportError:
        (tmp_path / "base").mkdir()
        (tmp_path / "base/config.json").write_text("{}")
        result = run_script("train_animal", *SHORT, cwd=tmp_path)
        assert result.code == 2
        assert "pip install -e '.[animal]'" in result.output
    else:
        pytest.skip("the extra is installed")


def test_a_stored_run_has_its_embedder(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is chosen again, and no line advises on the choice."""
    monkeypatch.chdir(whole)
    opened = open_animal_run("run", device="cpu", overrides={"embedder": "auto"})
    assert opened.plan.task.embedder.name == "tfidf"
    assert "embedder" not in capsys.readouterr().out


# --- commands on a stored run -----------------------------------------------------------------------------------------


def test_samples_are_printed_as_they_are_drawn(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first rows are those of a smaller number of samples; 10^8 of them no longer fill the memory."""
    from scripts.sample import parse
    from tasks.animal import sampling

    def texts(count: int) -> list[str]:
        sampling.sample_run(parse([str(whole / "run"), "--num-samples", str(count), "--device", "cpu"]))
        return capsys.readouterr().out.split("--- ")[1:]

    monkeypatch.chdir(whole)
    monkeypatch.setattr(sampling, "AT_ONCE", 3)
    three, seven = texts(3), texts(7)
    assert (len(seven), seven[:3]) == (7, three)
    assert len({text.partition(":")[2] for text in seven}) > 3


def test_evaluate_repeats_the_evaluation_and_sample_writes_text(whole: Path) -> None:
    """evaluate.py gives the figures of the end bit for bit, sample.py completions of the run's prompt or another."""
    last = {name: value for name, value in metrics(whole / "run")[-1].items() if name.startswith("eval/")}
    result = run_script("scripts/evaluate", "run", "--device", "cpu", cwd=whole)
    assert result.code == 0, result.output
    assert json.loads((whole / "run/evaluation_step_6.json").read_text())["results"] == last
    assert last["eval/ref_kl"] != 0.0
    words = ("run", "--checkpoint", "latest", "--device", "cpu")
    text = run_script("scripts/sample", *words, "--num-samples", "3", cwd=whole)
    assert text.code == 0, text.output
    assert [line.startswith(" the animal") for line in text.output.splitlines()[-5::2]] == [True] * 3
    assert sum(line.startswith("--- step 6 sample ") for line in text.output.splitlines()) == 3
    other = run_script("scripts/sample", *words, "--prompt", " I love", "--temperature", "0", cwd=whole)
    assert len({line for line in other.output.splitlines() if line.startswith(" I love")}) == 1
    for flag in ("--min-p", "--feedback-every"):
        refused = run_script("scripts/sample", *words, flag, "1", cwd=whole)
        assert (refused.code, f"{flag} has no meaning for a run of train_animal.py" in refused.output) == (2, True)
    drawn = run_script("scripts/visualize", "run", cwd=whole)
    assert (drawn.code, "has drawn before_after.png, report.html itself" in drawn.output) == (2, True)
