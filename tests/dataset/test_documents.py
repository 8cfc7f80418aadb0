"""Documents of a text data set: templates and lines, pieces, batches by step, evaluation batches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dataset.build_text_dataset import main
from dataset.text.build import TextBuild, build
from dataset.text.documents import DocumentBatches, Documents, EvalDocuments, rows_of_others
from dataset.text.meta import load_tokenizer
from engine.io import UsageError

LINES = ["one", "", "  two words ", "x" * 23, "y" * 16]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("documents")
    (root / "train.txt").write_text("\n".join(LINES))
    (root / "valid.txt").write_text("held\nout\n")
    build(TextBuild(output_dir=root / "d", inputs=(root,), source="made up", tokenizer="byte", lines=True))
    return root / "d"


def test_lines_are_documents_in_pieces(folder: Path) -> None:
    documents = Documents(folder, "train", block_size=16)
    tokenizer = load_tokenizer(folder)
    texts = [tokenizer.decode(documents.document(number)) for number in range(documents.count)]
    assert texts == ["one", "two words", "x" * 23, "y" * 16]
    assert documents.lengths.tolist() == [4, 10, 16, 8, 16, 1]  # the end token is a token: 24 = 16 + 8, 17 = 16 + 1
    assert len(documents) == 6
    rows = documents.rows(np.array([0, 3]), pad=300, length=documents.length_of(np.array([0, 3])))
    assert rows.shape == (2, 8)
    assert rows[0].tolist() == [*b"one", 256, 300, 300, 300, 300]
    assert rows[1].tolist() == [*b"xxxxxxx", 256]


def test_a_template_makes_documents(tmp_path: Path) -> None:
    problems = [{"question": f"{n} {{answer}}?", "answer": f"#### {n}"} for n in range(4)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, problems)))
    words = ("mine", "--input", str(tmp_path / "p.jsonl"), "--output-dir", str(tmp_path / "d"), "--tokenizer", "byte")
    assert main([*words, "--json-key", "question", "answer", "--template", "Q: {question}\nA: {answer}"]) == 0
    documents = Documents(tmp_path / "d", "train", block_size=64)
    text = load_tokenizer(tmp_path / "d").decode(documents.document(0))
    assert text == "Q: 0 {answer}?\nA: #### 0"
    assert json.loads((tmp_path / "d/card.json").read_text())["template"] == "Q: {question}\nA: {answer}"
    with pytest.raises(UsageError, match="has the fields question, --json-key names text"):
        build(TextBuild(output_dir=tmp_path / "e", inputs=(tmp_path / "p.jsonl",), source="", template="{question}"))


def test_a_text_without_documents_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("words " * 100)
    build(TextBuild(output_dir=tmp_path / "d", inputs=(tmp_path / "t.txt",), source="", tokenizer="byte"))
    with pytest.raises(UsageError, match=r"without documents.*--lines"):
        Documents(tmp_path / "d", "train", block_size=16)


def test_each_piece_once_an_epoch(folder: Path) -> None:
    documents = Documents(folder, "train", block_size=16)
    batches = DocumentBatches(documents, seed=1, batch_size=2, pad=257)
    assert batches.steps_per_epoch == 3
    epochs = [np.concatenate([batches.pieces(3 * epoch + step) for step in range(3)]) for epoch in range(4)]
    assert all(sorted(epoch.tolist()) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    again = DocumentBatches(documents, seed=1, batch_size=2, pad=257)
    assert (again.pieces(7) == batches.pieces(7)).all()  # by step alone
    whole = batches.rows(4, 0, 2)
    assert (np.concatenate([batches.rows(4, 0, 1), batches.rows(4, 1, 2)]) == whole).all()  # ranks: equal lengths
    with pytest.raises(UsageError, match="fewer than the batch of 7"):
        DocumentBatches(documents, seed=1, batch_size=7, pad=257)


def test_documents_are_held_back(folder: Path) -> None:
    documents = Documents(folder, "train", block_size=16)
    others, held = documents.hold_back(seed=0)
    texts = [{part.document(n).tobytes() for n in range(part.count)} for part in (others, held, documents)]
    assert (others.count, held.count) == (3, 1)
    assert texts[0] | texts[1] == texts[2]
    assert len(others) + len(held) == len(documents)
    assert (documents.hold_back(seed=0)[1].first == held.first).all()
    assert EvalDocuments(held, seed=0, batch_size=4, pad=257).covers.endswith("of train, held back")


def test_evaluation_batches(folder: Path) -> None:
    documents = Documents(folder, "train", block_size=16)
    every = EvalDocuments(documents, seed=0, batch_size=4, pad=257)
    assert [len(every.batch(number)[0]) for number in range(len(every))] == [4, 2]
    assert sorted(np.concatenate([every.batch(0)[0], every.batch(1)[0]]).tolist()) == list(range(6))
    assert every.covers == "6 of 6 pieces of train"
    parts = [every.batch(0, part, 2) for part in range(2)]
    assert {rows.shape for _, rows in parts} == {(2, 16)}
    some = EvalDocuments(documents, seed=0, batch_size=4, pad=257, limit=3)
    assert len(some.taken) == 3
    assert set(some.taken.tolist()) < set(range(6))


@pytest.mark.parametrize("batch_size", [1, 2, 4, 5, 6])
def test_every_row_has_one_of_another_document(folder: Path, batch_size: int) -> None:
    """A last batch of one row, and one of a single document, too."""
    documents = Documents(folder, "train", block_size=8)  # four documents; the third and the fourth have three pieces
    every = EvalDocuments(documents, seed=0, batch_size=batch_size, pad=257)
    for index in range(len(every)):
        own = every.batch(index)[0]
        pieces, rows, others = every.batch_with_others(index)
        assert pieces[: len(own)].tolist() == own.tolist()
        assert len(rows) == len(pieces) <= len(own) + 1
        owners = documents.owners[pieces]
        assert (owners[others] != owners).all()


def test_rows_of_others_are_a_permutation_where_they_can_be() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        owners = random.integers(0, 5, random.integers(2, 12))
        others = rows_of_others(owners)
        if len(set(owners.tolist())) > 1:
            assert (owners[others] != owners).all()
        if 2 * np.bincount(owners).max() <= len(owners):
            assert sorted(others.tolist()) == list(range(len(owners)))
    assert rows_of_others(np.array([7, 7, 7])).tolist() == [2, 0, 1]  # of a single document: other pieces of it
    assert rows_of_others(np.array([7])).tolist() == [0]
