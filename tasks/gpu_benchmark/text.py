"""Rows of train.py, against nanoGPT's loop."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from engine.loop import compiling
from tasks.gpu_benchmark.case import PLAIN, Bench, Case
from tasks.gpu_benchmark.timing import Work
from tasks.language_model.nanogpt_baseline import NanoGPT, Sizes, batch, optimizer_of

LOG_INTERVAL = 10  # iterations between reads of the loss in nanoGPT's recipe
TOKENS = {"train": 1_000_000, "val": 100_000}


class TextCase(Case):
    """A language model."""

    script: ClassVar[str] = "train.py"
    compile: ClassVar[str] = "full"

    def write(self, folder: Path) -> None:
        """Write random tokens."""
        draw = np.random.default_rng(0)
        for split, count in TOKENS.items():
            draw.integers(0, self.vocab_size, count).astype(np.uint16).tofile(folder / f"{split}.bin")
        (folder / "meta.json").write_text(json.dumps({"vocab_size": self.vocab_size, "dtype": "uint16"}))

    def overrides(self, folder: Path) -> tuple[str, ...]:
        """The data, the batch size, and a million iterations."""
        sizes = (f"batch_size={self.rows}", f"arch.block_size={self.tokens}", "max_iters=1000000")
        return (f"dataset={folder}", f"out_dir={folder}/run", *sizes)

    def public(self, bench: Bench, *, compiled: bool) -> Work:
        """nanoGPT's loop: autocast, the next batch loaded while the device computes, the loss read every tenth step."""
        device, config = bench.device, bench.trainer(*PLAIN).config
        arch = config.arch  # type: ignore[attr-defined]
        sizes = Sizes(
            vocab=self.vocab_size,
            layers=arch["n_layer"],
            heads=arch["n_head"],
            width=arch["n_embd"],
            length=self.tokens,
            rows=self.rows,
            dropout=arch["dropout"],
        )
        model = NanoGPT(sizes).to(device)
        optimizer = optimizer_of(model)
        forward: Any = torch.compile(model, backend=compiling.BACKEND) if compiled else model

        def fetch() -> list[torch.Tensor]:
            pair = batch(bench.folder, "train", sizes)
            if device.type != "cuda":
                return list(pair)
            return [tensor.pin_memory().to(device, non_blocking=True) for tensor in pair]

        ready, iterations = fetch(), itertools.count()

        def steps(count: int) -> None:
            nonlocal ready
            for _ in range(count):
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    loss = forward(*ready)
                ready = fetch()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if next(iterations) % LOG_INTERVAL == 0:
                    loss.item()

        return steps
