"""Building text data sets: splits, determinism, cards, refusals, names and stand-ins; real corpora where they are here."""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from dataset.build_text_dataset import main
from dataset.catalog import build_command, describe, ensure, ensure_text
from dataset.text import corpus, named
from dataset.text.build import TextBuild, build, content_hash, describe_text
from dataset.text.generated import GENERATED, pairings
from dataset.text.meta import load_tokenizer, read_meta
from dataset.text.stream import TokenStream
from engine.io import UsageError
from tests.conftest import SHARED

PROSE = "".join(f"Line {n}: the quick brown fox, No. {n * 37},  jumps\n\n over “naïve” 日本 dogs. " for n in range(400))


def made(root: Path, *inputs: Path, **options) -> dict:
    return build(TextBuild(output_dir=root, inputs=inputs, source="test", **options))


def tokens(root: Path, split: str) -> np.ndarray:
    return np.array(TokenStream(root, split).tokens)


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    path = tmp_path / "prose.txt"
    path.write_text(PROSE, encoding="utf-8")
    return path


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    path = tmp_path / "docs.jsonl"
    lines = [json.dumps({"title": f"T{n}", "body": f"body of {n}é\nend"}) for n in range(100)]
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return path


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "PIECE", 700)
    monkeypatch.setattr(corpus, "WINDOW", 60)


def test_a_text_is_cut_where_nanogpt_cuts_it(tmp_path: Path, prose: Path) -> None:
    card = made(tmp_path / "out", prose, tokenizer="char")
    stoi = {char: number for number, char in enumerate(sorted(set(PROSE)))}
    cut = int(len(PROSE) * 0.9)
    for split, text in (("train", PROSE[:cut]), ("val", PROSE[cut:])):
        # as nanoGPT's train.py reads it
        data = np.memmap(tmp_path / "out" / f"{split}.bin", dtype=np.uint16, mode="r")
        assert data.tolist() == [stoi[char] for char in text]
        assert card["counts"][split] == {"tokens": len(text), "bytes": len(text.encode()), "characters": len(text)}
    assert card["stand_in"] is False
    assert card["dtype"] == "uint16"
    assert TokenStream(tmp_path / "out", "val").bytes_per_token == len(PROSE[cut:].encode()) / len(PROSE[cut:])


@pytest.mark.parametrize("kind", ["char", "bpe", "sentencepiece"])
def test_pieces_and_workers_change_nothing(tmp_path: Path, prose: Path, small_pieces: None, kind: str) -> None:
    if kind != "char":
        pytest.importorskip({"bpe": "tokenizers"}.get(kind, kind))
    hashes = []
    for workers in (1, 3):
        card = made(tmp_path / f"w{workers}", prose, tokenizer=kind, workers=workers)
        hashes.append(card["content_hash"])
        assert card["content_hash"] == content_hash(tmp_path / f"w{workers}")
    assert len(set(hashes)) == 1
    tokenizer = load_tokenizer(tmp_path / "w1")
    cut = int(len(PROSE) * 0.9)
    assert np.array_equal(tokens(tmp_path / "w1", "train"), tokenizer.encode(PROSE[:cut]))  # as in one go
    assert tokenizer.decode(tokens(tmp_path / "w1", "val")) == PROSE[cut:]


def test_pieces_of_a_script_without_spaces_are_whole_characters(tmp_path: Path, small_pieces: None) -> None:
    (tmp_path / "a.txt").write_text("日本語" * 1000, encoding="utf-8")
    made(tmp_path / "out", tmp_path / "a.txt", tokenizer="byte")
    assert load_tokenizer(tmp_path / "out").decode(tokens(tmp_path / "out", "train")) == "日本語" * 900


def test_several_files_are_one_text(tmp_path: Path) -> None:
    for name, text in (("b.txt", "bb" * 20), ("a.txt", "aé" * 30)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    made(tmp_path / "out", tmp_path, tokenizer="byte", val_fraction=0.5)
    tokenizer = load_tokenizer(tmp_path / "out")
    texts = [tokenizer.decode(tokens(tmp_path / "out", split)) for split in ("train", "val")]
    assert texts == ["aé" * 25, "aé" * 5 + "bb" * 20]


def test_documents_end_with_a_token_and_are_held_out_whole(tmp_path: Path, documents: Path, small_pieces: None) -> None:
    options = {"tokenizer": "byte", "keys": ("title", "body"), "val_fraction": 0.2}
    card = made(tmp_path / "out", documents, **options)
    assert [card["counts"][split]["documents"] for split in ("train", "val")] == [80, 20]
    tokenizer = load_tokenizer(tmp_path / "out")
    parts = []
    for split in ("train", "val"):
        *texts, rest = tokenizer.decode(tokens(tmp_path / "out", split)).split("<|endoftext|>")
        assert rest == ""
        assert texts == sorted(texts, key=lambda text: int(text.split("\n")[0][1:]))  # in the order of the file
        parts += texts
    assert sorted(parts) == sorted(f"T{n}\nbody of {n}é\nend" for n in range(100))
    assert made(tmp_path / "again", documents, **options, workers=3)["content_hash"] == card["content_hash"]
    assert made(tmp_path / "other", documents, **options, seed=2)["content_hash"] != card["content_hash"]


def test_splits_by_file_name_are_said_in_the_card(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("valid", "test"):
        (folder / f"wiki.{name}.raw").write_text(f"{name} " * 50)
    with pytest.raises(UsageError, match=r"no split 'train', it holds wiki.test.raw, wiki.valid.raw"):
        made(tmp_path / "out", folder, tokenizer="byte", train_split="train", val_split="valid")
    with pytest.raises(UsageError, match="same file"):
        made(tmp_path / "out", folder, tokenizer="byte", train_split="valid", val_split="valid")
    card = made(tmp_path / "out", folder, tokenizer="byte", train_split="valid", val_split="test")
    assert card["split"] == {"rule": "that of the files", "train": "valid", "val": "test"}
    assert load_tokenizer(tmp_path / "out").decode(tokens(tmp_path / "out", "val")) == "test " * 50


def test_a_tokenizer_can_be_shared(tmp_path: Path, prose: Path) -> None:
    made(tmp_path / "a", prose, tokenizer="char")
    (tmp_path / "b.txt").write_text("the dogs jump over " * 20)
    card = made(tmp_path / "b", tmp_path / "b.txt", tokenizer_from=tmp_path / "a")
    assert card["tokenizer"] == describe_text(tmp_path / "a")["tokenizer"]
    (tmp_path / "c.txt").write_text("ж" * 50, encoding="utf-8")
    with pytest.raises(UsageError, match=r"'ж' \(U\+0436\) is not among"):
        made(tmp_path / "c", tmp_path / "c.txt", tokenizer_from=tmp_path / "a")
    assert not (tmp_path / "c").exists()


def test_classes_have_no_bits_per_byte(tmp_path: Path, prose: Path) -> None:
    card = made(tmp_path / "out", prose, tokenizer="char_class")
    assert card["counts"]["train"]["tokens"] == int(len(PROSE) * 0.9)
    assert TokenStream(tmp_path / "out", "train").bytes_per_token is None


def test_a_vocabulary_that_the_corpus_cannot_fill_is_said(
    tmp_path: Path, prose: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tokenizers")
    size = made(tmp_path / "out", prose, tokenizer="bpe", vocab_size=60_000)["tokenizer"]["vocab_size"]
    assert f"note: this corpus gives {size:,} tokens, fewer than --vocab-size 60000" in capsys.readouterr().out


def test_large_vocabularies_are_written_wide(tmp_path: Path, prose: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = types.SimpleNamespace(encode_ordinary=lambda text: [100276] * len(text))
    monkeypatch.setitem(sys.modules, "tiktoken", types.SimpleNamespace(get_encoding=lambda name: table))
    card = made(tmp_path / "out", prose, tokenizer="cl100k_base")
    assert card["dtype"] == "uint32"
    assert read_meta(tmp_path / "out").dtype.itemsize == 4
    assert set(tokens(tmp_path / "out", "val").tolist()) == {100276}


def test_bad_input_leaves_nothing(tmp_path: Path, prose: Path, documents: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"abc \xe9 def" * 10)
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "one.json").write_text('{"data": [{"text": "a"}, {"text": "b"}]}\n')
    (tmp_path / "one.jsonl").write_text('{"text": "a"}\n')
    os.mkfifo(tmp_path / "pipe")
    made(tmp_path / "narrow", prose, tokenizer="char")
    (tmp_path / "greek.txt").write_text("αβγ" * 99, encoding="utf-8")
    (tmp_path / "blank.jsonl").write_text('{"text": ""}\n' * 20)
    (tmp_path / "half.jsonl").write_text('{"text": "a"}\n{"text": "ab \\ud83d"}\n' * 9)
    for inputs, options, words in (
        ([tmp_path / "latin.txt"], {}, r"latin.txt is not UTF-8: byte 4"),
        ([tmp_path / "broken.jsonl"], {}, r"broken.jsonl:2 is not JSONL: Expecting value in"),
        ([documents], {}, r"without text under 'text' \(--json-key\)"),
        ([documents, prose], {}, "mixes plain text and JSONL"),
        ([tmp_path / "empty.txt"], {}, "empty.txt is empty"),
        ([tmp_path / "gone.txt"], {}, "gone.txt does not exist"),
        ([tmp_path / "one.json"], {}, r"one.json:1 is a document without text under 'text' .*: choose one of data"),
        ([tmp_path / "one.jsonl"], {}, r"one.jsonl holds 1 document\(s\): nothing can be held out"),
        ([tmp_path / "blank.jsonl"], {}, "all documents of the (train|val) split are empty"),
        ([tmp_path / "pipe"], {}, "pipe is neither a file nor a folder"),
        ([tmp_path / "greek.txt"], {"tokenizer_from": tmp_path / "narrow"}, "greek.txt: the character 'α'"),
        ([prose], {"val_fraction": 1.5}, "--val-fraction 1.5 must be between 0 and 1"),
        ([prose], {"val_fraction": 1e-6}, r"val split would have [01] token"),
        ([prose], {"train_split": "train"}, "give that folder"),
        ([tmp_path / "half.jsonl"], {}, r"half.jsonl:\d+ has half a character .* in 'ab \\ud83d'"),
    ):
        with pytest.raises(UsageError, match=words):
            made(tmp_path / "out" / "x", *inputs, **{"tokenizer": "byte", **options})
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".x.lock"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ('{"txet": "c"}', r"{}:42 is a document without text under 'text' \(--json-key\): did you mean 'txet'\?"),
        ('{"text": null}', r"{}:42 is a document without text .* it is null, not a string"),
        ('{"text": "c', r"{}:42 is not JSONL: Unterminated string starting at in"),
        ('{"text": "a"} {"text": "b"}', r"{}:42 is not JSONL: Extra data in"),
    ],
)
def test_a_fault_in_a_document_names_its_line(
    tmp_path: Path, fault: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dataset.text.corpus.PIECE", 100)  # the fault is in a later piece of the file
    lines = ['{"text": "abc"}'] * 40 + ["", fault] + ['{"text": "abc"}'] * 9
    (tmp_path / "docs.jsonl").write_text("\n".join(lines))
    with pytest.raises(UsageError, match=words.format("docs.jsonl")):
        made(tmp_path / "out", tmp_path / "docs.jsonl", tokenizer="byte")
    if fault.startswith('{"t') and fault.endswith("}") and "} {" not in fault:
        (tmp_path / "docs.json").write_text(json.dumps([*({"text": "abc"},) * 40, json.loads(fault)]))
        with pytest.raises(UsageError, match=words.format("docs.json").replace(":42", ": document 41")):
            made(tmp_path / "out", tmp_path / "docs.json", tokenizer="byte")


def test_a_path_that_is_not_utf8_is_no_obstacle(tmp_path: Path) -> None:
    source = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))  # as an old archive unpacks it
    source.write_text("hello world " * 20)
    card = made(tmp_path / "out", source, tokenizer="char", card={"input": [str(source)]})
    assert describe(tmp_path / "out")["content_hash"] == card["content_hash"]
    assert json.loads((tmp_path / "out" / "card.json").read_text())["files"][0]["name"] == "caf\ufffd.txt"


def test_nothing_is_overwritten_unasked(tmp_path: Path, prose: Path) -> None:
    made(tmp_path / "out", prose, tokenizer="char")
    with pytest.raises(UsageError, match="exists already: pass --overwrite"):
        made(tmp_path / "out", prose, tokenizer="byte")
    assert made(tmp_path / "out", prose, tokenizer="byte", overwrite=True)["tokenizer"]["type"] == "byte"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"mine holds thesis\.tex, which is not part"):
        made(tmp_path / "mine", prose, tokenizer="byte", overwrite=True)
    with pytest.raises(UsageError, match=r"prose\.txt is a file"):
        made(prose, prose, tokenizer="byte", overwrite=True)
    source = tmp_path / "out" / "input.txt"  # nanoGPT keeps the text beside its token files
    source.write_text(PROSE, encoding="utf-8")
    with pytest.raises(UsageError, match=r"out holds input\.txt"):
        made(tmp_path / "out", source, tokenizer="byte", overwrite=True)
    assert source.read_text(encoding="utf-8") == PROSE


def test_a_changed_file_is_noticed(tmp_path: Path, prose: Path) -> None:
    made(tmp_path / "out", prose, tokenizer="char")
    assert "modified" not in describe(tmp_path / "out")
    with open(tmp_path / "out" / "val.bin", "ab") as stream:
        stream.write(b"\0\0")
    assert describe(tmp_path / "out")["modified"] is True


# --- names, stand-ins, the command ------------------------------------------------------------------------------------


@pytest.fixture
def short_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(folder: Path) -> dict:
        (folder / "input.txt").write_text(PROSE, encoding="utf-8")
        return {"generator": "test"}

    monkeypatch.setitem(GENERATED, "stdlib_char", short)


def test_a_stand_in_is_built_and_says_so(
    tmp_path: Path, short_stand_in: None, prose: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "shakespeare_char"
    with pytest.raises(UsageError, match=r"stdlib_char is forbidden by offline=error: .* shakespeare_char --download"):
        ensure_text(root, offline="error")
    for _ in range(2):
        card = ensure_text(root)
        assert card["stand_in"] is True
        assert card["stand_in_for"] == "shakespeare_char"
        line = capsys.readouterr().out.splitlines()[-1]
        assert line.startswith(f"STAND-IN DATA: {root} is stdlib_char")
        assert "shakespeare_char --download" in line
    with pytest.raises(UsageError, match=r"is a stand-in .* offline=error forbids"):
        ensure_text(root, offline="error")
    assert main(["shakespeare_char", "--input", str(prose), "--output-dir", str(root)]) == 2
    assert "is a stand-in" in capsys.readouterr().err
    assert main(["shakespeare_char", "--input", str(prose), "--output-dir", str(root), "--overwrite"]) == 0
    card = ensure_text(root, offline="error")
    assert card["stand_in"] is False
    assert card["source"] == "local files, not the published tiny-shakespeare"


def test_names_without_a_stand_in_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"shakespeare --download"):
        ensure_text(tmp_path / "shakespeare")
    with pytest.raises(UsageError, match=r"shakespear_char --input FILE.*did you mean 'shakespeare_char'"):
        ensure_text(tmp_path / "shakespear_char")
    with pytest.raises(UsageError, match="would hold text, not puzzles"):
        ensure(tmp_path / "gsm8k")
    assert build_command("data/gsm8k") == "python -m dataset.build_text_dataset gsm8k --download"


def test_the_command(tmp_path: Path, documents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    argv = ["data/mine", "--input", str(documents), "--json_key", "title", "body", "--tokenizer", "byte"]
    assert main([*argv, "--output-dir", out]) == 0
    total = sum(len(f"T{n}\nbody of {n}é\nend".encode()) + 1 for n in range(100))
    train, val = (len(tokens(tmp_path / "out", split)) for split in ("train", "val"))
    assert train + val == total
    assert f"train {train:,} tokens, val {val:,}; byte with 257 (uint16)" in capsys.readouterr().out
    for mistake, words in (
        (["shakespeare_char"], "needs its text: --input FILE|FOLDER, or --download"),
        (["shakespeare_cha"], "did you mean 'shakespeare_char'?"),
        (["mine", "--input", "x", "--download"], "exclude each other"),
        (["mine", "--download"], "--download knows"),
        (["mine", "--input", out, "--tokenizer", "chr"], "did you mean 'char'?"),
        (["mine", "--inputs", out], "there is no flag --inputs: did you mean '--input'?"),
        (["../mine", "--input", out], "NAME is the name of a data set, not a path"),
        (["mine", "--input", str(documents), "--train-split", "train"], "give that folder as --input"),
    ):
        assert main([*mistake, "--output-dir", str(tmp_path / "no")]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert not (tmp_path / "no").exists()


def test_a_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(repository: str, config: str | None = None) -> dict:
        assert (repository, config) == ("openai/gsm8k", "main")
        rows = [{"question": f"Q{n}?", "answer": f"#### {n}"} for n in range(30)]
        return {"train": rows[:25], "test": rows[25:]}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load))
    assert main(["gsm8k", "--download", "--tokenizer", "byte", "--output-dir", str(tmp_path / "out")]) == 0
    card = describe(tmp_path / "out")
    assert card["origin"] == "Hugging Face Hub, openai/gsm8k:main"
    assert card["split"] == {"rule": "that of the files", "train": "train", "val": "test"}
    text = load_tokenizer(tmp_path / "out").decode(tokens(tmp_path / "out", "val"))
    assert text.startswith("Q25?\n#### 25<|endoftext|>Q26?")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match="needs the datasets library"):
        named.download("gsm8k", None, tmp_path)


def test_the_standard_library_is_the_same_every_time(tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        GENERATED["stdlib_char"](tmp_path / name)
        contents.append((tmp_path / name / "input.txt").read_bytes())
    assert contents[0] == contents[1]
    assert contents[0].isascii()
    assert 1_000_000 < len(contents[0]) <= 1_200_000


def test_word_problems_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataset.text.generated.TRAIN_PROBLEMS", 200)
    monkeypatch.setattr("dataset.text.generated.TEST_PROBLEMS", 50)
    GENERATED["arithmetic"](tmp_path)
    splits = [[json.loads(line) for line in (tmp_path / f"{s}.jsonl").open()] for s in ("train", "test")]
    assert [len(split) for split in splits] == [200, 50]
    assert not {p["question"] for p in splits[0]} & {p["question"] for p in splits[1]}
    for problem in splits[0] + splits[1]:
        *steps, last = problem["answer"].split("\n")
        for step in steps:
            formula, result = step.split("<<")[1].split(">>")[0].split("=")
            assert eval(formula) == int(result)
        assert last == f"#### {result}"


def test_copies_and_their_permutations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataset.text.generated.TRAIN_COPIES", 300)
    rounds = pairings(8)
    assert len(rounds) == 7
    for letter in range(8):
        assert sorted(partner[letter] for partner in rounds) == [n for n in range(8) if n != letter]
    assert all(partner[partner[n]] == n for partner in rounds for n in range(8))
    texts = {}
    for name in ("copies", "permuted_copies"):
        (tmp_path / name).mkdir()
        GENERATED[name](tmp_path / name)
        texts[name] = (tmp_path / name / "train.txt").read_text().splitlines()
    used = set()
    for plain, permuted in zip(*texts.values(), strict=True):
        assert plain[:32] == plain[32:] == permuted[:32]
        pairs = {("abcdefgh".index(a), "abcdefgh".index(b)) for a, b in zip(plain, permuted[32:], strict=False)}
        used |= {n for n, partner in enumerate(rounds) if all(partner[a] == b for a, b in pairs)}
    assert used == set(range(7))


# --- public corpora, where they are here ------------------------------------------------------------------------------


def public(name: str) -> Path:
    path = SHARED / "data" / name
    if not path.exists():
        pytest.skip(f"the public corpus is not here: {path}")
    return path


def test_tiny_shakespeare(tmp_path: Path) -> None:
    public("tinyshakespeare/input.txt")
    out = tmp_path / "out"
    assert main(["shakespeare_char", "--input", str(SHARED / "data"), "--output-dir", str(out)]) == 0
    card = describe(out)
    assert card["tokenizer"]["vocab_size"] == 65
    assert card["stand_in"] is False
    assert [card["counts"][split]["tokens"] for split in ("train", "val")] == [1_003_854, 111_540]
    assert card["files"][0]["sha256"] == named.NAMED["shakespeare_char"].sha256[0]
    # the first eight ids that nanoGPT's prepare.py gives to "First Ci"
    assert tokens(out, "train")[:8].tolist() == [18, 47, 56, 57, 58, 1, 15, 47]


def test_gsm8k(tmp_path: Path) -> None:
    out, folder = tmp_path / "out", public("gsm8k")
    assert main(["gsm8k", "--input", str(folder), "--tokenizer", "byte", "--output-dir", str(out)]) == 0
    assert [describe(out)["counts"][split]["documents"] for split in ("train", "val")] == [7473, 1319]


def test_wikitext_trains_on_valid_where_train_is_missing(tmp_path: Path) -> None:
    out, folder = tmp_path / "out", public("wikitext-2")
    argv = ["wikitext", "--input", str(folder), "--tokenizer", "char", "--output-dir", str(out)]
    assert main(argv) == 2
    assert main([*argv, "--train-split", "valid", "--val-split", "test"]) == 0
    card = describe(out)
    assert (card["split"]["train"], card["split"]["val"]) == ("valid", "test")
    assert load_tokenizer(out).decode(tokens(out, "val")) == (folder / "test.txt").read_text(encoding="utf-8")
