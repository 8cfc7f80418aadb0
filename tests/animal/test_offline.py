"""What train_animal.py works with where nothing can be downloaded: corpus, tiny model, embedder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from dataset.text.pets import PROMPTS, QUESTION, REASONS, answer, in_grammar
from engine.checkpoint.state_tree import join_tree, split_tree
from engine.distributed import keyed_numpy
from engine.errors import RunFailure, UsageError
from tasks.animal import offline
from tasks.animal.embedder import HashEmbedder, TfidfEmbedder, _ngrams, make_embedder

# --- the grammar ------------------------------------------------------------------------------------------------------


def test_every_answer_is_in_the_grammar_and_both_animals_occur() -> None:
    random = keyed_numpy(3, "test")
    answers = [answer(random, prompt) for prompt in PROMPTS for _ in range(300)]
    assert all(map(in_grammar, answers))
    cats = sum("cat" in text for text in answers) / len(answers)
    assert 0.08 < cats < 0.17


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I love dogs",
        "I love dogs because they will guard the house at night",  # cut off
        "I love dogs because they will purr softly on my lap.",  # a cat's reason
        "I love dog because it will guard the house at night.",
        "I love dogs because they will guard the house at night. I",
        "dogs love I because they will guard the house at night.",
    ],
)
def test_what_is_not(text: str) -> None:
    assert not in_grammar(text)


def test_reasons_share_no_word_that_would_tell_the_animals_apart_wrongly() -> None:
    assert len({reason for of in REASONS.values() for reason in of}) == 12
    assert not any("dog" in reason or "cat " in reason for of in REASONS.values() for reason in of)


# --- the embedder -----------------------------------------------------------------------------------------------------


def test_hashed_vectors_are_unit_rows_that_do_not_depend_on_company() -> None:
    texts = ["because they will guard the house", "because they will purr", "", "a", "Ünïcode ½"]
    embedder = HashEmbedder()
    rows = embedder.encode(texts)
    assert rows.dtype == np.float32
    assert rows.shape == (5, 512)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [1, 1, 0, 1, 1], atol=1e-6)
    np.testing.assert_array_equal(embedder.encode(texts[1:2]), rows[1:2])
    alike = rows @ rows.T
    assert alike[0, 1] > alike[0, 4] + 0.2
    assert embedder.encode([]).shape == (0, 512)


def test_hashed_ngrams_are_those_of_scikit_learn() -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text", reason="pip install -e '.[animal]'")

    analyzer = text.CountVectorizer(analyzer="char_wb", ngram_range=(3, 5)).build_analyzer()
    for sample in ("because they will purr softly", "a bc def", "x"):
        assert sorted(_ngrams(sample).elements()) == sorted(analyzer(sample))


def test_latent_semantic_analysis_is_that_of_its_formula() -> None:
    """Weights, projection and length by hand in float64; what it has learned goes through a checkpoint."""
    pytest.importorskip("sklearn", reason="pip install -e '.[animal]'")
    texts = [f"because they will {reason}" for reasons in REASONS.values() for reason in reasons]
    made, again = TfidfEmbedder(), TfidfEmbedder()
    assert (made.encode(["dogs"]).tolist(), made.state_dict()) == ([[0.0]], {})
    made.fit(texts)
    terms = {term: column for column, term in enumerate(made.terms)}

    def weighted(text: str) -> np.ndarray:
        row = np.zeros(len(terms))
        for gram, count in _ngrams(text).items():
            documents = sum(gram in _ngrams(other) for other in texts)
            if gram in terms:
                row[terms[gram]] = (1 + np.log(count)) * (np.log((1 + len(texts)) / (1 + documents)) + 1)
        return row / np.linalg.norm(row)

    table = np.stack(list(map(weighted, texts)))
    leading = np.linalg.svd(table)[2][: len(texts) - 1]
    strange = ["they will guard the zoo zoo", texts[3]]
    rows = np.stack(list(map(weighted, strange))) @ leading.T
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    vectors = made.encode(strange)
    np.testing.assert_allclose(vectors @ vectors.T, rows @ rows.T, atol=1e-5)
    assert made.encode(["qqq xxx", ""]).tolist() == [[0.0] * 11] * 2  # nothing of them was seen
    np.testing.assert_array_equal(made.encode(strange[1:]), vectors[1:])
    tensors, tree = split_tree(made.state_dict())
    again.load_state_dict(join_tree(tree, tensors))
    np.testing.assert_array_equal(again.encode(strange), vectors)


def test_auto_says_what_it_took(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.animal.embedder._missing", lambda name: "it is not here")
    assert make_embedder("auto").name == "tfidf"
    assert "embedder    tfidf (it is not here;" in capsys.readouterr().out


def test_a_folder_that_is_no_sentence_transformer(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"embedder=.*or embedder=tfidf"):
        make_embedder(str(tmp_path))


def test_a_real_sentence_transformer_from_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="pip install -e '.[animal]'")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dogs", "cats", "purr", "guard", "the", "house"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=32, **sizes)).save_pretrained(tmp_path / "bert")
    SentenceTransformer(modules=[Transformer(str(tmp_path / "bert")), Pooling(16), Normalize()]).save(
        str(tmp_path / "st")
    )
    embedder = make_embedder(str(tmp_path / "st"))
    rows = embedder.encode(["dogs guard the house", "cats purr"])
    assert rows.dtype == np.float32
    assert rows.shape == (2, 16)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(embedder.encode(["cats purr"]), rows[1:], atol=1e-6)


# --- the tiny model ---------------------------------------------------------------------------------------------------


def test_only_the_tiny_model_has_a_checker() -> None:
    assert offline.checker_of(offline.TINY) is in_grammar
    assert offline.checker_of("gpt2") is None


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.json"):
        offline.ensure_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert offline.ensure_model(str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize("name", ["/path/to/model", "some/deep/place", "./model", "~nobody-of-that-name/x"])
def test_a_missing_folder_names_the_command_that_works(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["train_animal.py", "--model_name_or_path", name, "--prompt", "dog, or cat;", "--use_wandb"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(UsageError) as error:
        offline.ensure_model(name)
    command = "python train_animal.py --model_name_or_path data/animal_lm --prompt 'dog, or cat;' --use_wandb"
    assert str(error.value).endswith(command)
    assert "there is no such folder" in str(error.value)
    monkeypatch.setattr(sys, "argv", ["scripts/sample.py", "run", "--num-samples", "1"])  # a stored run's base is gone
    with pytest.raises(UsageError, match=r"there is no such folder; put it there, or a symbolic link to it$"):
        offline.ensure_model(name)


def test_a_model_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub", reason="pip install -e '.[animal]'")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["train_animal.py"])
    with pytest.raises(UsageError, match=r"python train_animal\.py --model_name_or_path data/animal_lm$"):
        offline.ensure_model("no-such-model-gpt2")


def test_the_tiny_model_is_made_by_train_py_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained for 2 steps: that it speaks the grammar is for tests/animal/test_acceptance.py."""
    pytest.importorskip("tokenizers", reason="pip install -e '.[animal]'")
    build = offline.build_model
    short = ("max_iters=2", "lr_decay_iters=2", "warmup_iters=0", "eval_iters=1")
    monkeypatch.setattr(offline, "build_model", lambda folder: build(folder, *short))
    monkeypatch.setenv("RANK", "1")  # as under torchrun: the child is not a rank
    monkeypatch.setenv("WORLD_SIZE", "2")
    folder = tmp_path / offline.NAME
    assert offline.ensure_model(str(folder)) == str(folder)
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    }
    assert json.loads((folder / "config.json").read_text())["model_type"] == "gpt2"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [offline.NAME]  # nothing is left beside it
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert offline.ensure_model(str(folder)) == str(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    capsys.readouterr()
    monkeypatch.undo()
    with pytest.raises(RunFailure, match=r"train\.py could not make the tiny model \(exit code 2\)"):
        build(tmp_path / "other", "no_such_key=1")
    assert not (tmp_path / "other").exists()
    assert "is missing: training it now" in capsys.readouterr().out
    assert QUESTION.endswith("Answer:")
