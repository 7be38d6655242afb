"""The weight matrix of a frozen linear layer, in the dtype of the arithmetic."""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import torch


class FrozenWeight:
    """A frozen linear layer's weight, ``(outputs, inputs)``, in the dtype of the arithmetic.

    A 4-bit matrix is dequantized at each use, or once, if it is kept.

    Args:
        layer: A ``torch.nn.Linear`` or a ``bitsandbytes.nn.Linear4bit``.
    """

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._kept: torch.Tensor | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether it is stored in 4 bits."""
        return isinstance(self._layer.weight, bnb.nn.Params4bit)

    @property
    def is_kept(self) -> bool:
        """Whether a dequantized copy is kept."""
        return self._kept is not None

    def keep(self, dtype: torch.dtype) -> None:
        """Dequantize it once and keep the copy; a matrix that is not quantized is left alone."""
        if self.is_quantized:
            self._kept = self._dequantized().to(dtype)

    def drop(self) -> None:
        """Drop the copy of :meth:`keep`."""
        self._kept = None

    def matrix(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix, without a gradient.

        Args:
            dtype: The dtype of the arithmetic.
        """
        if self._kept is not None and self._kept.dtype == dtype:
            return self._kept
        weight = self._dequantized() if self.is_quantized else self._layer.weight.detach()
        return weight.to(dtype)

    def bias(self, dtype: torch.dtype) -> torch.Tensor | None:
        """The bias ``(outputs,)``, if there is one."""
        return None if self._layer.bias is None else self._layer.bias.detach().to(dtype)

    def _dequantized(self) -> torch.Tensor:
        weight = self._layer.weight
        dequantized: torch.Tensor = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
        return dequantized
