"""A causal language model of transformers with LoRA adapters of peft, of which only the adapters are its parameters.

The base is frozen and shared: without its adapters it is the reference, so nothing is loaded twice, and a checkpoint
holds the adapters alone, under the names of peft's adapter_model.safetensors.
"""

from __future__ import annotations

import os
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

INSTALL = "pip install -e '.[animal]'"
LINEAR = ("Linear", "Conv1D")
"""Classes that LoRA adapts; transformers' Conv1D is GPT-2's linear layer, with its matrix transposed."""


@dataclass(frozen=True)
class Base:
    """A pretrained model, loaded, and where it came from."""

    path: str
    model: Any
    """transformers' causal language model."""
    tokenizer: Any


class LoraLM(nn.Module):
    """`base` with adapters. Base and adapters are always in evaluation mode: with dropout the pass that gradients flow
    through would give the samples other probabilities than those that the loss is made of."""

    Config: ClassVar = LoraConfig
    FAMILY: ClassVar = "animal"
    DATA_MODE: ClassVar = "prompt"

    def __init__(self, config: LoraConfig, base: Base, *, auto_dtype: torch.dtype, attention: str = "auto") -> None:
        """Raises: UsageError: peft is not installed. ValueError: the base has no layer of the wanted name."""
        super().__init__()
        try:
            import peft
        except ImportError:
            raise UsageError(f"adapters need the peft library: {INSTALL}") from None
        self.config, self.base = config, base
        self.lengths = (1, 1)
        """Tokens of the prompt, and of a completion at most: what `flops` counts. The run sets them."""
        dtype = auto_dtype if config.forward_dtype == "auto" else getattr(torch, config.forward_dtype)
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)  # peft's use
        targets = lora_targets(base.model, config.lora_target_modules)
        self.wrapped: Any = _Unregistered(
            peft.get_peft_model(
                base.model.to(dtype),
                peft.LoraConfig(
                    r=config.lora_r,
                    lora_alpha=config.lora_alpha,
                    lora_dropout=config.lora_dropout,
                    target_modules=targets,
                    fan_in_fan_out=_kind(base.model, targets) == "Conv1D",
                    bias="none",
                    task_type="CAUSAL_LM",
                ),
            )
        )
        [adapter] = self.peft.peft_config.values()
        adapter.base_model_name_or_path = found_from_anywhere(base.path)  # which peft has set as it was typed
        for name, param in self.peft.named_parameters():
            if param.requires_grad:
                self._register(name.replace(".default.", "."), param)
        self.peft.eval()

    @property
    def peft(self) -> Any:
        """The PeftModel."""
        return self.wrapped.module

    def _register(self, name: str, param: nn.Parameter) -> None:
        """Put `param` under its dotted name: a module for each part of it."""
        *parts, last = name.split(".")
        place: nn.Module = self
        for part in parts:
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place._modules[part]  # type: ignore[assignment]
        place.register_parameter(last, param)

    def forward(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        """transformers' output for input_ids int64 [B, T]; `inputs` are its forward's."""
        return self.language_model(input_ids, **inputs)

    @property
    def language_model(self) -> Any:
        """The causal language model, with the adapters in it."""
        return self.peft.get_base_model()

    def without_adapters(self) -> AbstractContextManager[None]:
        """Inside, the model is its base."""
        context: AbstractContextManager[None] = self.peft.disable_adapter()
        return context

    def files(self) -> dict[str, bytes]:
        """adapter_config.json, adapter_model.safetensors and the tokenizer's files, in peft's format."""
        with tempfile.TemporaryDirectory() as name:
            self.peft.save_pretrained(name, save_embedding_layers=False)
            self.base.tokenizer.save_pretrained(name)
            files = sorted(path for path in Path(name).iterdir() if path.name != "README.md")  # a card without content
            return {path.name: path.read_bytes() for path in files}

    def param_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """One group: all adapters."""
        return {"adapter": dict(self.named_parameters())}

    def blocks(self) -> list[nn.Module]:
        """Compile units: the transformer blocks of the base, with the adapters in them."""
        lists = [module for module in self.language_model.modules() if isinstance(module, nn.ModuleList)]
        return list(max(lists, key=lambda each: sum(p.numel() for p in each.parameters()), default=[]))

    def flops(self, rows: int) -> dict[str, float]:
        """Operations for `rows` completions, all as long as they may be (`lengths`): `train` one step (sampling, scores
        under model and base, the pass that gradients flow through, its backward pass), `eval` one evaluation (sampling,
        scores under both). Rows that tb replays and the alternatives of kl_exact are not counted."""
        sizes, (before, tokens) = sizes_of(self.language_model, self.blocks()), self.lengths
        scores = [sizes.scoring(rows, tokens, before, adapted=adapted) for adapted in (True, False)]
        measured = sizes.sampling(rows, tokens, before) + sum(scores)
        return {"train": measured + sizes.training(rows, tokens, before), "eval": measured}

    @property
    def positions(self) -> int | None:
        """The longest text that the base reads, in tokens; None where its config gives no limit."""
        config = self.base.model.config
        return getattr(config, "max_position_embeddings", None)


class _Unregistered:
    """Holds a module so that the one that has it does not count it among its own."""

    def __init__(self, module: Any) -> None:
        self.module = module


def found_from_anywhere(path: str) -> str:
    """The base as an adapter's config names it: a folder by its absolute path, a name of the Hub as it is."""
    folder = os.path.abspath(os.path.expanduser(path))
    return folder if os.path.isdir(folder) else path


def lora_targets(model: Any, chosen: list[str] | None = None) -> list[str]:
    """Ends of the names of the layers to adapt: those `wanted`, else every linear layer inside an attention block.

    GPT-2: attn.c_attn, attn.c_proj. Llama, Mistral, Qwen: self_attn.q_proj, k_proj, v_proj, o_proj.
    Raises: ValueError naming the linear layers that there are.
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
    """The class of the adapted layers: linear layers of a model are all of one."""
    kinds = {
        type(module).__name__
        for name, module in model.named_modules()
        if type(module).__name__ in LINEAR and any(f".{name}".endswith(f".{end}") for end in targets)
    }
    return "Conv1D" if kinds == {"Conv1D"} else "Linear"
