"""The pretrained model that adapters are trained for: loaded from a folder, known by a fingerprint of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from engine.errors import UsageError
from models.animal.adapter import INSTALL, Base

FIRST = 4096
"""Numbers of each weight that the fingerprint is of: enough to distinguish two models, and read in a moment."""


def load_base(name: str, folder: str, dtype: torch.dtype) -> Base:
    """The model in `folder`, asked for as `name`. Raises: UsageError: no library, or no such model."""
    try:
        import transformers
    except ImportError:
        raise UsageError(f"train_animal.py needs transformers, peft and scikit-learn: {INSTALL}") from None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        transformers.utils.logging.disable_progress_bar()
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=dtype)
    except (OSError, ValueError, KeyError, ImportError) as error:  # whatever is missing or wrong in the folder
        first = str(error).strip().partition("\n")[0]
        raise UsageError(f"model_name_or_path={name} cannot be loaded by transformers: {first}") from None
    words = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > words:
        raise UsageError(f"model_name_or_path={name}: its tokenizer has {len(tokenizer)} tokens, its model {words}")
    return Base(folder, model, tokenizer)


def fingerprint(model: Any) -> str:
    """sha256 of the names and shapes of all weights and of the first numbers of each, in the dtype they have."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(f"{name} {list(weight.shape)} {weight.dtype}".encode())
        first = weight.detach().flatten()[:FIRST].contiguous().cpu()
        digest.update(first.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def require_base(stored: Mapping[str, str], own: Mapping[str, str]) -> None:
    """Raises: UsageError where adapters of the base `stored` would be used on another one."""
    if stored["sha256"] != own["sha256"]:
        raise UsageError(
            f"model_name_or_path: {own['path']} is another base (sha256 {own['sha256'][:12]}) than the one that this "
            f"run was trained on ({stored['path']}, sha256 {stored['sha256'][:12]}): give that one"
        )
