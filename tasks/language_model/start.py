"""Initial weights of a `train.py` run that does not start at random: OpenAI's GPT-2, or another run of ours.

Bad sources are refused before the run directory is touched; a resumed run has its own weights and loads nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from dataset.text.loading import separate_vocabularies
from dataset.text.meta import read_meta
from dataset.text.vocabulary import require_same_vocabulary
from engine.checkpoint.manifest import load_checkpoint
from engine.checkpoint.state_tree import load_weights
from engine.checkpoint.store import CheckpointStore, followed
from engine.errors import UsageError
from engine.io import print_rank0, user_path
from engine.run.identity import what_changed
from models.language_models.gpt2_config import GPT2_SIZES
from models.language_models.gpt2_folder import WEIGHTS, gpt2_folder, read_gpt2
from models.language_models.gpt2_weights import from_gpt2
from models.language_models.nanogpt import from_nanogpt, read_nanogpt
from tasks.language_model.args import TrainConfig
from tasks.loading import near_run, shape_mismatch, stored_weights

HUB = "openai-community/"
GPT2_VOCAB_SIZE = 50257


def initial_weights(config: TrainConfig, model: nn.Module, folders: Sequence[Path]) -> Callable[[], None] | None:
    """A function that loads the initial weights, to be called if the run does not resume; None for random weights."""
    if config.init_from == "gpt2":
        return partial(load_gpt2, config, model, folders)
    if config.init_from == "prev_run":
        return partial(load_previous, config, model, folders)
    return None


# --- GPT-2 ------------------------------------------------------------------------------------------------------------


def load_gpt2(config: TrainConfig, model: Any, folders: Sequence[Path]) -> None:
    """Load OpenAI's weights into `model`; a position table longer than arch.block_size is truncated.

    Raises: UsageError for data of another tokenizer, missing weights, or an architecture that they do not fit.
    """
    require_gpt2_tokens(folders)
    folder = find_gpt2(config.gpt2_type)
    try:
        theirs = read_gpt2(folder)
        mapped = from_gpt2(theirs, model.config, model.shape)
    except ValueError as error:
        raise UsageError(f"init_from=gpt2 gpt2_type={config.gpt2_type}: {error}") from None
    model.load_state_dict(mapped, strict=True)
    there = next(len(table) for name, table in theirs.items() if name.endswith("wpe.weight"))
    size = model.config.block_size
    cut = f", positions cut to {size} of {there}" if size < there else ""
    print_rank0(f"weights     GPT-2 from {folder}{cut}")


def require_gpt2_tokens(folders: Sequence[Path]) -> None:
    """Raise UsageError for data of another tokenizer, whose ids stand for other tokens in GPT-2."""
    for folder in folders:
        meta = read_meta(folder)
        if meta.tokenizer != "gpt2" or meta.vocab_size != GPT2_VOCAB_SIZE:
            raise UsageError(
                f"init_from=gpt2 needs data in GPT-2's own tokens, but {folder} has {meta.vocab_size} of "
                f"'{meta.tokenizer}': python -m dataset.build_text_dataset NAME --tokenizer gpt2 builds such a set"
            )


def find_gpt2(kind: str) -> Path:
    """The folder with config.json and weights: `kind` itself, else its snapshot in the Hub cache, else a download.

    Raises: UsageError that says how to get it.
    """
    if (folder := gpt2_folder(kind)) is not None or (user_path(kind).is_dir() and kind not in GPT2_SIZES):
        return folder or user_path(kind)
    there = (
        f" (the folder {kind} here is in the way of the name and holds no GPT-2)" if user_path(kind).exists() else ""
    )
    try:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
    except ImportError:
        raise UsageError(
            f"init_from=gpt2 gpt2_type={kind} reads the Hub cache: pip install -e '.[lm]', or give a folder{there}"
        ) from None
    for repository in (kind, HUB + kind):
        parts = [try_to_load_from_cache(repository, name) for name in ("config.json", *WEIGHTS)]
        if isinstance(parts[0], str) and any(isinstance(path, str) for path in parts[1:]):
            return Path(parts[0]).parent
    try:
        hf_hub_download(HUB + kind, WEIGHTS[0])
        return Path(hf_hub_download(HUB + kind, "config.json")).parent
    except Exception as error:  # it raises a different class for each kind of network failure
        raise UsageError(
            f"GPT-2's weights are not in the Hub cache and cannot be fetched ({type(error).__name__}): on a machine "
            f"with network `hf download {HUB}{kind}`, then copy the folder and set gpt2_type=FOLDER{there}"
        ) from None


# --- another run of ours ----------------------------------------------------------------------------------------------


def load_previous(config: TrainConfig, model: nn.Module, folders: Sequence[Path]) -> None:
    """Load the weights of another run's checkpoint, or of a nanoGPT ckpt.pt, but no optimizer state, step or best loss.

    Raises: UsageError for a missing checkpoint, or weights of another architecture or vocabulary.
    """
    path = str(config.prev_run_ckpt)
    folder = followed(user_path(path))
    if gpt2_folder(path) is not None or (path in GPT2_SIZES and not folder.exists()):
        raise UsageError(f"prev_run_ckpt={path} is a GPT-2, not a run: set init_from=gpt2 gpt2_type={path}")
    if folder.is_file():
        return load_nanogpt(folder, model)
    if not folder.is_dir():
        raise UsageError(f"prev_run_ckpt={path}: no such run or checkpoint{near_run(path)}")
    store = CheckpointStore(folder, "train")
    source = store.best() or store.latest() or folder
    checkpoint = load_checkpoint(source, resuming=False)
    separate = separate_vocabularies(config)
    require_same_vocabulary(source.resolve().parent.parent, folders, separate=separate, key=f"prev_run_ckpt={source}")
    if mismatch := shape_mismatch(checkpoint.model, model.state_dict()):
        raise UsageError(
            f"prev_run_ckpt={source}: {what_changed(checkpoint.config, config) or mismatch}: "
            "the same arch.* and a data set of the same vocabulary are needed"
        )
    weights, kind = stored_weights(checkpoint)  # if a run keeps averages, those were evaluated
    load_weights(model, weights)
    print_rank0(f"weights     {source} (step {checkpoint.step}{', averaged' if kind == 'ema' else ''})")


def load_nanogpt(path: Path, model: Any) -> None:
    """Load a nanoGPT checkpoint file. Raises: UsageError for another kind of file or another architecture."""
    try:
        model.load_state_dict(from_nanogpt(read_nanogpt(path), model.config, model.shape), strict=True)
    except ValueError as error:
        raise UsageError(f"prev_run_ckpt={path}: {error}") from None
    print_rank0(f"weights     nanoGPT's, from {path}")
