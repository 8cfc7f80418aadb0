"""Text data under bad luck and at size: kill -9, builds at once, files larger than memory, resumes at any step."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from dataset.build_text_dataset import main
from dataset.catalog import ensure_text
from dataset.text import build as building
from dataset.text.batches import EvalBatches, TrainBatches
from dataset.text.build import content_hash, describe_text
from dataset.text.generated import GENERATED
from dataset.text.mixture import Mixture
from dataset.text.stream import TokenStream
from tests.conftest import finish, run_forked, start_forked
from tests.dataset.test_text_batches import counting, written

MIB = 1 << 20


# --- builds -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("dataset.text.corpus.PIECE", 2000)
    path = tmp_path / "in.txt"
    path.write_text("".join(f"line {number} of a text\n" for number in range(2000)))
    return path


def argv(text: Path, out: Path, *more: str) -> list[str]:
    return ["mine", "--input", str(text), "--output-dir", str(out), "--workers", "2", *more]


def killed_while_writing(arguments: list[str], marker: Path) -> None:
    """Start the command, kill -9 it when a part of train.bin is written, wait until its workers are gone as well."""
    whole = building._write

    def slow(stream, results):
        stream.write(np.ascontiguousarray(next(results)[0]).data)
        stream.flush()
        marker.touch()
        time.sleep(60)
        return whole(stream, results)

    alive, held = os.pipe()  # held by the build and its workers alone: end of file when all of them are dead
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "_write", slow)
        process, connection = start_forked(main, arguments)
    os.close(held)
    while not marker.exists():
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    finish(process, connection)
    assert select.select([alive], [], [], 20)[0], "a worker outlives its build"
    os.close(alive)


@pytest.mark.parametrize("before", [False, True])
def test_a_killed_build_leaves_nothing_half_written(tmp_path: Path, text: Path, before: bool) -> None:
    out, folder = tmp_path / "site" / "out", tmp_path / "site"
    if before:
        assert main(argv(text, out, "--tokenizer", "byte")) == 0
        old = content_hash(out)
    overwrite = ["--overwrite"] if before else []
    killed_while_writing(argv(text, out, "--tokenizer", "char", *overwrite), tmp_path / "marker")
    assert any(".tmp" in path.name for path in folder.iterdir())  # the kill came in the middle
    if before:
        assert content_hash(out) == old
    else:
        assert not out.exists()
    assert main(argv(text, out, "--tokenizer", "char", *overwrite)) == 0
    assert sorted(path.name for path in folder.iterdir()) == [".out.lock", "out"]
    assert main(argv(text, tmp_path / "clean", "--tokenizer", "char")) == 0
    assert content_hash(out) == content_hash(tmp_path / "clean")


def test_ranks_may_need_the_same_missing_data_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(folder: Path) -> dict:
        time.sleep(0.3)
        (folder / "input.txt").write_text("def f(x):\n    return x\n" * 100)
        return {"generator": "test"}

    monkeypatch.setitem(GENERATED, "stdlib_char", slow)
    root = tmp_path / "stdlib_char"
    ranks = [start_forked(ensure_text, root) for _ in range(3)]
    results = [finish(*rank) for rank in ranks]
    assert [result.code for result in results] == [0, 0, 0], results
    assert "stdlib_char is missing: building it now (char tokens)" in results[0].output
    assert describe_text(root)["counts"]["train"]["tokens"] == int(2300 * 0.9)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".stdlib_char.lock", "stdlib_char"]


def _grown(work) -> int:
    """Bytes by which the process's peak memory grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def _build_large(text: Path, out: Path) -> None:
    grown = _grown(
        lambda: main(["mine", "--input", str(text), "--tokenizer", "byte", "--output-dir", str(out), "--workers", "1"])
    )
    assert grown < 32 * MIB, f"{grown / MIB:.0f} MiB for {text.stat().st_size / MIB:.0f} MiB of text"


def test_a_build_holds_pieces_not_the_corpus(tmp_path: Path) -> None:
    with open(tmp_path / "large.txt", "w") as out:
        for _ in range(48):
            out.write("a line of sixteen" * (MIB // 17) + "\n")
    result = run_forked(_build_large, tmp_path / "large.txt", tmp_path / "out")
    assert result.code == 0, result.output
    assert len(TokenStream(tmp_path / "out", "train")) > 40 * MIB


# --- reading ----------------------------------------------------------------------------------------------------------


def _read_huge(root: Path, count: int, far: int) -> None:
    def read() -> None:
        streams = [TokenStream(root, "train")]
        options = {"batch_size": 8, "block_size": 64}
        sequential = TrainBatches(streams, seed=0, method="sequential", **options)
        step = far // (8 * 64)
        assert sequential.rows(step, 0, 8)["tokens"].ravel().tolist() == list(range(1, 8 * 64 + 1))
        for method in ("random", "without_replacement"):
            batches = TrainBatches(streams, seed=0, method=method, **options)
            offsets = np.concatenate([batches.offsets(step) for step in range(200)])
            assert 0 <= offsets.min() < count / 20
            assert count * 0.95 < offsets.max() < count - 64
            batches.rows(7, 0, 8)
        sweep = EvalBatches(streams, seed=0, max_batches=2, **options)
        assert not any(sweep.rows(index, 0, 8)["tokens"].any() for index in range(2))

    grown = _grown(read)
    assert grown < 64 * MIB, f"{grown / MIB:.0f} MiB"


def test_a_stream_larger_than_memory_is_read_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataset.text.stream.CHECKED", 1 << 22)  # reading holes costs seconds on some file systems
    count = 1 << 37  # 256 GiB, nearly all of it a hole
    far = count // 3 - count // 3 % (8 * 64)
    root = tmp_path / "huge"
    written(root, np.zeros(1, dtype=np.int64), 60_000)
    try:
        with open(root / "train.bin", "r+b") as stream:
            stream.truncate(count * 2)
            stream.seek(far * 2)
            stream.write(np.arange(1, 8 * 64 + 1, dtype="<u2").tobytes())
    except OSError as error:
        pytest.skip(f"no sparse files of this size here: {error}")
    result = run_forked(_read_huge, root, count, far)
    assert result.code == 0, result.output


@pytest.mark.parametrize("method", ["random", "without_replacement", "sequential"])
@pytest.mark.parametrize("mode", ["single", "multidataset", "multicontext"])
def test_a_resume_needs_the_step_alone(tmp_path: Path, mode: str, method: str) -> None:
    streams = [counting(tmp_path / "a", 1003), written(tmp_path / "b", np.arange(1003) % 50, vocab_size=50)]

    def opened() -> TrainBatches:
        mixture = None
        if mode == "multidataset":
            mixture = Mixture("ab", seed=4, max_steps=600, probs=(0.7, 0.3), probs_final=(0.2, 0.8))
        used = streams[:1] if mode == "single" else streams
        return TrainBatches(
            used, seed=4, batch_size=8, block_size=16, method=method, mixture=mixture, contexts=mode == "multicontext"
        )

    def content(batches: TrainBatches, step: int) -> str:
        rows = batches.rows(step, 0, 8)
        return json.dumps([rows["tokens"].tolist(), rows["targets"].tolist(), batches.progress(step)])

    whole = opened()
    run = [content(whole, step) for step in range(560)]
    for start in (1, 255, 256, 513):
        resumed = opened()
        assert [content(resumed, step) for step in range(start, start + 40)] == run[start : start + 40]
    assert len(set(run)) == len(run)
