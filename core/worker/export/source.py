"""The base's weights as an adapter is merged into them: its own, or rounded to 4 bit as they were in training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import bitsandbytes as bnb
import torch

from core.config.schema import Config
from core.config.targets import kept_patterns
from core.errors import UserError
from core.models.tensors import Tensor
from core.worker.export.layout import ExpertPart, Layout, rounded_layers
from core.worker.model.device import choose_device
from core.worker.model.model import choose_dtype
from core.worker.model.nf4 import dequantize_rightly, quantize_quickly
from core.worker.model.safetensors_io import DTYPES, TensorSpec


class Source:
    """The tensors of a base, one at a time; quantized ones are decoded.

    Args:
        layout: The layout of its files.
        config: The configuration of the run.
        rounded: Whether linear layers are rounded to 4 bit, and back. Weights that the training used as they are saved
            are so in any case.

    Raises:
        UserError: If a weight is of a type that is not known.
    """

    def __init__(self, layout: Layout, config: Config, *, rounded: bool) -> None:
        self._checkpoint = layout.checkpoint
        self.files: dict[Path, dict[str, Tensor]] = layout.files
        self._places = {key: path for path, tensors in layout.files.items() for key in tensors}
        quantization = layout.checkpoint.quantization
        self._is_saved = quantization is not None and quantization.is_used_as_saved(config.method.name)
        self._device, self._dtype = _arithmetic(config)
        self._rounded: set[str] = set()
        self._parts: dict[str, ExpertPart] = {}
        if rounded and not self._is_saved:
            names = rounded_layers(layout, kept_patterns(config.model.keep_16bit))
            self._rounded = {layout.keys[name] for name in names if name in layout.keys}
            self._parts = {key: part for key, part in layout.expert_parts.items() if part.parameter in names}
            if self._device.type == "cpu":
                quantize_quickly()
                dequantize_rightly()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the training, as far as this machine has it."""
        return self._dtype

    def is_packed(self, key: str) -> bool:
        """Whether the training used a tensor in the 4 bits that it is saved in."""
        return self._is_saved and key in self._checkpoint.encoded

    def keys(self, path: Path) -> Sequence[str]:
        """The tensors of a file, once decoded."""
        return list(self.files[path])

    def spec(self, key: str) -> TensorSpec:
        """Dtype and shape of a tensor, as :meth:`read` gives it.

        Raises:
            UserError: If its type is not known.
        """
        found = self.files[self._places[key]][key]
        if found.dtype not in DTYPES:
            raise UserError(
                f"{self._places[key]} has weights of the type {found.dtype}, which are not merged.",
                "Use a base in 16 bit, or export the adapter.",
            )
        return TensorSpec(DTYPES[found.dtype], found.shape)

    def read(self, key: str) -> torch.Tensor:
        """A tensor, on the CPU.

        Raises:
            UserError: If it cannot be read or decoded.
        """
        stored = self._checkpoint.read(key)
        if (part := self._parts.get(key)) is not None:
            together = [stored if name == key else self._checkpoint.read(name) for name in part.parts]
            begin = sum(len(tensor) for tensor in together[: part.place])
            return self._round(torch.cat(together))[begin : begin + len(stored)].clone()
        if key in self._rounded:
            # Experts are rounded one by one.
            return torch.stack([self._round(expert) for expert in stored]) if stored.dim() == 3 else self._round(stored)
        return stored

    def _round(self, weight: torch.Tensor) -> torch.Tensor:
        """What NF4 with double quantization leaves of a matrix, in the arithmetic of the training."""
        given = weight.to(self._device, self._dtype)
        packed, state = bnb.functional.quantize_4bit(given, quant_type="nf4", compress_statistics=True)
        restored: torch.Tensor = bnb.functional.dequantize_4bit(packed, state).cpu()
        return restored


def _arithmetic(config: Config) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of the training, as far as this machine has them."""
    try:
        device = choose_device(config.hardware.device)
        return device, choose_dtype(config.train.precision, device, config.method.name)
    except UserError:  # the card is not here any more
        return torch.device("cpu"), torch.float32
