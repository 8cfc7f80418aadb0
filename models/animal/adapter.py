"""A causal language model from transformers with LoRA adapters from peft. Only the adapters are registered parameters.

The frozen base, with adapters disabled, is also the reference model, so it is loaded only once. Checkpoints hold only
the adapters, under the names of peft's adapter_model.safetensors.
"""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from engine.errors import UsageError
from models.animal.config import LoraConfig
from models.animal.operations import sizes_of
from models.dtypes import compute_dtype

INSTALL = "pip install -e '.[animal]'"
LINEAR = ("Linear", "Conv1D")
"""Classes of layers to adapt; transformers' Conv1D is GPT-2's linear layer with a transposed weight."""


@dataclass(frozen=True)
class Base:
    """A loaded pretrained model and its path."""

    path: str
    model: Any
    """A causal language model from transformers."""
    tokenizer: Any


class LoraLM(nn.Module):
    """`base` with adapters, always in eval mode: with dropout, the pass with gradients would give samples other
    probabilities than those the loss was computed from."""

    Config: ClassVar = LoraConfig
    FAMILY: ClassVar = "animal"
    DATA_MODE: ClassVar = "prompt"

    def __init__(self, config: LoraConfig, base: Base, *, auto_dtype: torch.dtype, attention: str = "auto") -> None:
        """Raises: UsageError if peft is not installed; ValueError if the base has no layer of a given name."""
        super().__init__()
        try:
            import peft
        except ImportError:
            raise UsageError(f"adapters need the peft library: {INSTALL}") from None
        self.config, self.base = config, base
        self.lengths = (1, 1)
        """(prompt tokens, maximum completion tokens), for `flops`; set by the run."""
        self.replayed = 0.0
        """Replayed samples of a step per new one (objective tb), for `flops`; set by the run."""
        dtype = compute_dtype(config.forward_dtype, auto_dtype)
        # raised within peft
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        targets = lora_targets(base.model, config.lora_target_modules)
        alpha: Any = config.lora_alpha  # peft annotates an int
        self.wrapped: Any = _Unregistered(
            peft.get_peft_model(
                base.model.to(dtype),
                peft.LoraConfig(
                    r=config.lora_r,
                    lora_alpha=alpha,
                    lora_dropout=config.lora_dropout,
                    target_modules=targets,
                    fan_in_fan_out=_kind(base.model, targets) == "Conv1D",
                    bias="none",
                    task_type="CAUSAL_LM",
                ),
            )
        )
        [adapter] = self.peft.peft_config.values()
        adapter.base_model_name_or_path = portable_path(base.path)  # peft stored the path as typed
        for name, param in self.peft.named_parameters():
            if param.requires_grad:
                self._register(name.replace(".default.", "."), param)
        self.peft.eval()

    @property
    def peft(self) -> Any:
        """The PeftModel."""
        return self.wrapped.module

    def _register(self, name: str, param: nn.Parameter) -> None:
        """Register `param` under its dotted name, creating the modules on the way."""
        *parts, last = name.split(".")
        module: nn.Module = self
        for part in parts:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]  # type: ignore[assignment]
        module.register_parameter(last, param)

    def forward(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        """Output of the transformers model for input_ids int64 [B, T]; `inputs` are passed to its forward."""
        return self.language_model(input_ids, **inputs)

    @property
    def language_model(self) -> Any:
        """The causal language model, including the adapters."""
        return self.peft.get_base_model()

    def without_adapters(self) -> AbstractContextManager[None]:
        """Context in which the adapters are disabled."""
        context: AbstractContextManager[None] = self.peft.disable_adapter()
        return context

    def files(self) -> dict[str, bytes]:
        """Contents by file name, in peft's format: adapter_config.json, adapter_model.safetensors, the tokenizer.

        Raises: OSError if the folder for temporary files cannot hold them.
        """
        with tempfile.TemporaryDirectory() as name:
            try:
                self.peft.save_pretrained(name, save_embedding_layers=False)
                self.base.tokenizer.save_pretrained(name)
            except Exception as error:  # safetensors and tokenizers have the operating system's error only in the text
                if (number := re.search(r"\(os error (\d+)\)", str(error))) is None:
                    raise
                raise OSError(int(number[1]), os.strerror(int(number[1])), name) from error
            files = sorted(path for path in Path(name).iterdir() if path.name != "README.md")  # an empty model card
            return {path.name: path.read_bytes() for path in files}

    def param_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """One group: all adapters."""
        return {"adapter": dict(self.named_parameters())}

    def blocks(self) -> list[nn.Module]:
        """Compile units: the transformer blocks of the base, including the adapters."""
        lists = [module for module in self.language_model.modules() if isinstance(module, nn.ModuleList)]
        return list(max(lists, key=lambda each: sum(p.numel() for p in each.parameters()), default=[]))

    def flops(self, rows: int) -> dict[str, float]:
        """FLOPs for `rows` new completions of maximum length (`lengths`): `train`, one step (sampling, scores under
        model and base, the pass with gradients, its backward pass; all but the sampling with the `replayed` rows of tb,
        too); `eval`, one evaluation (sampling, scores under both). The alternatives of kl_exact are not counted."""
        sizes, (before, tokens) = sizes_of(self.language_model, self.blocks()), self.lengths

        def scores(count: int) -> float:
            return sum(sizes.scoring(count, tokens, before, adapted=adapted) for adapted in (True, False))

        sampled, trained = sizes.sampling(rows, tokens, before), rows + round(self.replayed * rows)
        train = sampled + scores(trained) + sizes.training(trained, tokens, before)
        return {"train": train, "eval": sampled + scores(rows)}

    @property
    def positions(self) -> int | None:
        """Maximum context length of the base in tokens; None if its config has no limit."""
        config = self.base.model.config
        return getattr(config, "max_position_embeddings", None)


class _Unregistered:
    """Wrapper that hides a module from registration in its parent."""

    def __init__(self, module: Any) -> None:
        self.module = module


def portable_path(path: str) -> str:
    """Path of the base for an adapter's config: absolute for a folder, unchanged for a Hub name."""
    folder = os.path.abspath(os.path.expanduser(path))
    return folder if os.path.isdir(folder) else path


def lora_targets(model: Any, chosen: list[str] | None = None) -> list[str]:
    """Name suffixes of the layers to adapt: `chosen`, else all linear layers of attention blocks.

    GPT-2: attn.c_attn, attn.c_proj. Llama, Mistral, Qwen: self_attn.q_proj, k_proj, v_proj, o_proj.
    Raises: ValueError that lists the linear layers.
    """
    names = [name for name, module in model.named_modules() if type(module).__name__ in LINEAR]
    ends = sorted({".".join(name.split(".")[-2:]) for name in names})
    if chosen is None:
        targets = [end for end in ends if "att" in end.partition(".")[0].lower()]
        if not targets:
            raise ValueError(
                f"{type(model).__name__} has no attention block with linear layers: choose arch.lora_target_modules "
                f"from {', '.join(ends)}"
            )
        return targets
    for end in chosen:
        if not any(f".{name}".endswith(f".{end}") for name in names):
            raise ValueError(f"arch.lora_target_modules: no layer's name ends in {end}; there are {', '.join(ends)}")
    return list(chosen)


def _kind(model: Any, targets: list[str]) -> str:
    """Class of the adapted layers; a model uses only one."""
    kinds = {
        type(module).__name__
        for name, module in model.named_modules()
        if type(module).__name__ in LINEAR and any(f".{name}".endswith(f".{end}") for end in targets)
    }
    return "Conv1D" if kinds == {"Conv1D"} else "Linear"
