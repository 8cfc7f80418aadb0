"""The pretrained base of the adapters: loaded from a folder, identified by a fingerprint of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from engine.errors import UsageError
from engine.io import print_rank0
from models.animal.adapter import INSTALL, Base

FIRST = 4096
"""How many numbers of each weight the fingerprint covers: enough to distinguish two models, and fast to read."""


def load_base(name: str, folder: str, dtype: torch.dtype) -> Base:
    """Load the model in `folder`; `name` is for messages.

    Raises: UsageError without transformers, for no model, or for weights that do not fit its config.json (transformers
    would initialise them randomly).
    """
    try:
        import transformers
    except ImportError:
        raise UsageError(f"train_animal.py needs transformers, peft and scikit-learn: {INSTALL}") from None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        transformers.utils.logging.disable_progress_bar()
        how: dict[str, Any] = {"local_files_only": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **how)
        model, report = loaded
    except Exception as error:  # whatever is missing or wrong in the folder
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UsageError(f"model_name_or_path={name} cannot be loaded by transformers: {first}") from None
    if wrong := sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}):
        raise UsageError(
            f"model_name_or_path={name}: {len(wrong)} weight(s) that its config.json asks for are missing or have "
            f"another shape (e.g. {wrong[0]}): expected the config.json and the weights of one causal language model"
        )
    if unused := sorted(report["unexpected_keys"]):
        print_rank0(
            f"warning: model_name_or_path={name}: its config.json has no place for {len(unused)} of the weights "
            f"(e.g. {unused[0]}): they are not used"
        )
    if bad := next((key for key, weight in model.named_parameters() if not weight.isfinite().all()), None):
        raise UsageError(f"model_name_or_path={name}: weight {bad} holds numbers that are not finite")
    size = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > size:
        raise UsageError(f"model_name_or_path={name}: its tokenizer has {len(tokenizer)} tokens, its model {size}")
    return Base(folder, model, tokenizer)


def fingerprint(model: Any) -> str:
    """sha256 of names, shapes and dtypes of all weights and the first FIRST numbers of each."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(f"{name} {list(weight.shape)} {weight.dtype}".encode())
        first = weight.detach().flatten()[:FIRST].contiguous().cpu()
        digest.update(first.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def require_base(stored: Mapping[str, str], own: Mapping[str, str]) -> None:
    """Raise UsageError if adapters of the base `stored` would be used on another base."""
    if stored["sha256"] != own["sha256"]:
        raise UsageError(
            f"model_name_or_path: {own['path']} is another base (sha256 {own['sha256'][:12]}) than the one that this "
            f"run was trained on ({stored['path']}, sha256 {stored['sha256'][:12]}): give that one"
        )
