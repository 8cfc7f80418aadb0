"""Hyper-parameters of the adapters that train_animal.py trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from engine.fields import Inert, Range, check_fields


def _always(config: Mapping[str, Any]) -> bool:
    return True


@dataclass(kw_only=True)
class LoraConfig:
    """Low-rank adapters (LoRA, arXiv 2106.09685) for linear layers of a frozen language model."""

    lora_r: Annotated[int, Range(1)] = 16
    """Rank of each adapter."""
    lora_alpha: Annotated[float, Range(above=0)] = 32
    """An adapter's output is multiplied by lora_alpha / lora_r."""
    lora_dropout: Annotated[float, Range(0, below=1), Inert(_always, "training has no dropout, as here")] = 0.05
    """Written to adapter_config.json for later training with peft."""
    lora_target_modules: list[str] | None = None
    """Adapted layers, given by the ends of their names (q_proj); null or auto: the linear layers of all attention
    blocks."""
    forward_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Dtype of the base's weights and activations; auto: the run's choice for the device. Adapters are float32."""

    def __post_init__(self) -> None:
        check_fields(self, "arch")
        if self.lora_target_modules == ["auto"]:
            self.lora_target_modules = None
        if self.lora_target_modules == []:
            raise ValueError("arch.lora_target_modules=[]: name layers, e.g. [q_proj,v_proj], or null")
