"""A tiny model that 4 bits hurt: its answers are sharp, and one layer is worse to quantize than the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from core.worker.data.encode import TokenizedRow
from tests.families.tiny import write_family


def write_hurt(directory: Path, family: str = "smollm3", layer: int = 1) -> Path:
    """A random model whose logits are large, and of which one layer says more than the others.

    Args:
        directory: Where it goes.
        family: Of :data:`tests.families.tiny.FAMILIES`.
        layer: The layer.
    """
    write_family(family, directory)
    path = directory / "model.safetensors"
    tensors = load_file(path)
    for name in tensors:
        if name in ("lm_head.weight", "model.norm.weight"):
            tensors[name] *= 25.0
        elif f"layers.{layer}." in name and "norm" not in name:
            tensors[name] *= 6.0
    save_file(tensors, path, {"format": "pt"})
    return directory


def write_rows(*lengths: int) -> list[TokenizedRow]:
    """Rows of random tokens, the second half of each supervised."""
    dice = np.random.default_rng(0)
    return [
        TokenizedRow(dice.integers(5, 300, length).astype(np.int32), np.arange(length) > length // 2)
        for length in lengths
    ]
