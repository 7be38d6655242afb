"""The weight matrix of a frozen linear layer, in the dtype of the arithmetic."""

from __future__ import annotations

import copy
from typing import Any

import bitsandbytes as bnb
import torch

from core.worker.fused.ggml_quant import GgmlType, fake_quantize

#: Elements of a matrix merged at a time, by type of device: keeps temporaries small, and in cache on a CPU.
AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 24}


class FrozenWeight:
    """A frozen linear layer's weight, ``(outputs, inputs)``, in the dtype of the arithmetic.

    A 4-bit matrix is dequantized at each use, or once, if it is kept. A weight that is trained for a file is merged
    with its adapter and quantized as in that file: at each use, or once for each update, if it is kept.

    Args:
        layer: A ``torch.nn.Linear`` or a ``bitsandbytes.nn.Linear4bit``.
    """

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._kept: torch.Tensor | None = None
        self._keeps: torch.dtype | None = None
        self.file_type: GgmlType | None = None
        """The file type that it is trained for; None where it is used as it is."""
        self._merged_from: torch.dtype | None = None

    @property
    def is_quantized(self) -> bool:
        """True if it is stored in 4 bits."""
        return isinstance(self._layer, bnb.nn.Linear4bit)

    @property
    def is_kept(self) -> bool:
        """True if a copy is kept in the dtype of the arithmetic."""
        return self._keeps is not None

    def keep(self, dtype: torch.dtype) -> None:
        """Dequantize it once, or merge it once for a file, and keep the copy. A matrix that is used as it is stored
        is left alone."""
        if self.is_quantized or self.file_type is not None:
            self._keeps = dtype
            self._kept = self._dequantized().to(dtype) if self.file_type is None else None

    def drop(self) -> None:
        """Drop the copy of :meth:`keep`."""
        self._kept = self._keeps = None

    @property
    def shape(self) -> torch.Size:
        """Outputs and inputs."""
        return torch.Size((self._layer.out_features, self._layer.in_features))

    def train_for(self, kind: GgmlType | None, stored: torch.dtype | None = None) -> None:
        """Use it from now on as a file of this type holds it; None for as it is.

        Args:
            kind: The type.
            stored: The dtype that it is rounded to before it is merged; None for its own.
        """
        if kind == self.file_type:
            return
        kept = self._keeps
        self.file_type, self._merged_from = kind, stored
        self.drop()
        if kept is not None:
            self.keep(kept)

    def forget_merged(self) -> None:
        """Drop the merged copy: the adapter has changed."""
        if self.file_type is not None:
            self._kept = None

    def matrix(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix, without a gradient and without its adapter.

        Args:
            dtype: The dtype of the arithmetic.
        """
        if self.file_type is None and self._kept is not None and self._kept.dtype == dtype:
            return self._kept
        return self._stored().to(dtype)

    def merged(self, down: torch.Tensor, up: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
        """The matrix with its adapter, as a file of the type that it is trained for holds it; without a gradient. The
        matrix alone where it is trained for none.

        Args:
            down: The adapter's ``A``, ``(rank, inputs)``.
            up: Its ``B``, ``(outputs, rank)``.
            scale: Its factor.
            dtype: The dtype of the arithmetic.
        """
        if self.file_type is None:
            return self.matrix(dtype)
        if self._kept is not None and self._kept.dtype == dtype:
            return self._kept
        stored, down, up = self._stored(self._merged_from), down.detach(), up.detach()
        values = torch.empty(stored.shape, dtype=dtype, device=stored.device)
        rows = max(1, AT_ONCE.get(stored.device.type, AT_ONCE["cuda"]) // stored.shape[1])
        for out, weight, part in zip(*(torch.split(tensor, rows) for tensor in (values, stored, up)), strict=True):
            out.copy_(fake_quantize(merge_exactly(weight, down, part, scale), self.file_type, dtype))
        if self._keeps == dtype:
            self._kept = values
        return values

    def bias(self, dtype: torch.dtype) -> torch.Tensor | None:
        """The bias ``(outputs,)``, if there is one."""
        return None if self._layer.bias is None else self._layer.bias.detach().to(dtype)

    def _stored(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The matrix as it is stored, or in a dtype."""
        if self.is_quantized:
            return self._dequantized(dtype)
        weight: torch.Tensor = self._layer.weight.detach()
        return weight if dtype is None else weight.to(dtype)

    def _dequantized(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        weight = self._layer.weight
        # A sharded weight is a plain tensor after the gather.
        state = getattr(weight, "quant_state", None) or self._layer.quant_state
        if dtype is not None and state.dtype != dtype:
            state = copy.copy(state)
            state.dtype = dtype
        dequantized: torch.Tensor = bnb.functional.dequantize_4bit(weight.data, state)
        return dequantized


def merge_exactly(weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
    """A weight with its adapter in fp32, ``W + s B A``. It is computed in fp64 and rounded once, so that the order of
    the sums, which differs between devices, has no effect.

    Args:
        weight: ``W``, ``(outputs, inputs)``.
        down: ``A``, ``(rank, inputs)``.
        up: ``B``, ``(outputs, rank)``.
        scale: ``s``.
    """
    return torch.addmm(weight.double(), up.double(), down.double(), alpha=scale).float()
