"""Fused LoRA: frozen linear layers of one input and their adapters as one autograd function.

``y = x W' + b + s (x A') B'``, with gradients for ``x``, ``A`` and ``B`` only. Besides ``x`` only ``x A'`` is kept for
backward, and no copy of ``x`` in fp32 is made. The adapter's product, which is small to compute, is written first, and
the large product adds to it while it is computed: the other order would read and write the large one once more, and
would round it twice. Layers of one input read it once for all their ``A``, and their products add up its gradient.

Source: LoRA, arXiv 2106.09685; QLoRA, arXiv 2305.14314.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import bitsandbytes as bnb
import torch
from peft.tuners.lora import LoraLayer
from torch.autograd.function import once_differentiable

from core.worker.fused.frozen_weight import FrozenWeight
from core.worker.fused.mode import apply, apply_to_several, is_fused

#: Rows up to which bitsandbytes multiplies by a 4-bit matrix without dequantizing all of it, on CUDA. Its own limit is
#: 64 to 128 for most matrices of 7B models; above it bitsandbytes dequantizes like the fused layer.
SMALL_PRODUCT = 64


@dataclass(frozen=True)
class AdaptedLayer:
    """A frozen layer and the matrices of its adapter, as a pass uses them."""

    weight: FrozenWeight
    """``W`` and ``b``."""
    down: torch.Tensor
    """``A``, ``(rank, inputs)``."""
    up: torch.Tensor
    """``B``, ``(outputs, rank)``."""
    scale: float
    """``s``."""
    dropout: float = 0.0
    """Share of the adapter's inputs that is dropped in the current pass."""

    def output(self, flat: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        """The layer's output, ``(rows, outputs)``, in the dtype of the input.

        Args:
            flat: ``x``, ``(rows, inputs)``.
            low: The adapter's intermediate ``x A'``, ``(rows, rank)``, of the same dtype.
        """
        dtype = flat.dtype
        matrix, bias = self.matrix(dtype), self.weight.bias(dtype)
        if self.weight.file_type is not None:
            return torch.nn.functional.linear(flat, matrix, bias)
        up = self.scaled_up(dtype).T
        out = low @ up if bias is None else torch.addmm(bias, low, up)
        return out.addmm_(flat, matrix.T)

    def matrix(self, dtype: torch.dtype) -> torch.Tensor:
        """``W``, with its adapter where it is trained for a file."""
        return self.weight.merged(self.down, self.up, self.scale, dtype)

    def scaled_up(self, dtype: torch.dtype) -> torch.Tensor:
        """``s B``."""
        return (self.up * self.scale).to(dtype)


def input_gradient(
    layers: Sequence[AdaptedLayer], gradients: Sequence[torch.Tensor], low_gradient: torch.Tensor | None
) -> torch.Tensor:
    """The gradient of the input of some layers, ``(rows, inputs)``, in the dtype of the gradients.

    Args:
        layers: The layers.
        gradients: Of their outputs, ``(rows, outputs)``.
        low_gradient: Of their adapters' intermediates, side by side; None if the adapters' part is not in it, as it is
            elsewhere or in the layers' matrices.
    """
    dtype = gradients[0].dtype
    products = list(zip(gradients, layers, strict=True))
    if low_gradient is not None:
        total = low_gradient @ stacked_down(layers, dtype)
    else:
        gradient, layer = products.pop(0)
        total = gradient @ layer.matrix(dtype)
    for gradient, layer in products:
        total.addmm_(gradient, layer.matrix(dtype))
    return total


@dataclass(frozen=True)
class Factors:
    """Factors of the gradients of some layers' adapters, in the dtype of the arithmetic."""

    layers: Sequence[AdaptedLayer]
    gradients: Sequence[torch.Tensor]
    """Of the layers' outputs, ``(rows, outputs)``."""
    low_gradient: torch.Tensor
    """Of the adapters' intermediates, side by side: ``(rows, ranks)``."""
    seen: torch.Tensor
    """The input of the adapters, ``(rows, inputs)``."""
    low: torch.Tensor
    """The intermediates, side by side."""

    def by_layer(self) -> Iterator[tuple[AdaptedLayer, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Each layer with the gradients of its output and of its intermediate, and the intermediate."""
        ranks = [len(layer.down) for layer in self.layers]
        low_gradients, lows = (torch.split(joined, ranks, dim=1) for joined in (self.low_gradient, self.low))
        return zip(self.layers, self.gradients, low_gradients, lows, strict=True)


_receivers: list[Callable[[Factors], None]] = []


@contextlib.contextmanager
def factors_to(receiver: Callable[[Factors], None]) -> Iterator[None]:
    """A context in which backward passes the factors of the adapters' gradients to a receiver, and computes no
    gradients of adapters.

    The gradient of a single row of a batch is a product of the row's part of the factors.

    Args:
        receiver: Called once for the layers of each fused function.
    """
    _receivers.append(receiver)
    try:
        yield
    finally:
        _receivers.pop()


def adapter_gradients(factors: Factors) -> Iterator[torch.Tensor | None]:
    """Gradients of ``A`` and ``B`` of each layer in turn, in their dtypes; None inside :func:`factors_to`."""
    if _receivers:
        _receivers[-1](factors)
        yield from [None] * (2 * len(factors.layers))
        return
    # One product for all layers, as their input is the same.
    to_downs = torch.split(factors.low_gradient.T @ factors.seen, [len(layer.down) for layer in factors.layers])
    for (layer, gradient, _, low), to_down in zip(factors.by_layer(), to_downs, strict=True):
        yield to_down.to(layer.down.dtype)
        yield (gradient.T @ low).to(layer.up.dtype).mul_(layer.scale)


def stacked_down(layers: Sequence[AdaptedLayer], dtype: torch.dtype) -> torch.Tensor:
    """``A`` of some layers one below the other: ``(ranks, inputs)``."""
    return _joined([layer.down for layer in layers], dim=0).to(dtype)


def _joined(tensors: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def shaped_as(flat: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Rows in the shape of an input but for the last dimension. To autograd the result is not a view, so a model may
    change it in place as it may the output of torch's own linear layers (Llama 4 adds its experts' output to it).
    """
    shaped: torch.Tensor = torch.ops.aten._unsafe_view(flat, (*like.shape[:-1], flat.shape[-1]))
    return shaped


class LoraLinear(torch.autograd.Function):
    """LoRA of one or several layers as an autograd function; products are in the dtype of the arithmetic, the adapters'
    gradients in their own."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        weights: Sequence[FrozenWeight],
        scales: Sequence[float],
        dtype: torch.dtype,
        *matrices: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """The layers' outputs.

        Args:
            ctx: The autograd context.
            x: ``(..., inputs)``.
            dropped: The adapters' input where it differs: ``x`` after dropout.
            weights: ``W`` and ``b`` of each layer. All of them are trained for a file, or none is.
            scales: ``s`` of each layer.
            dtype: The dtype of the arithmetic, and of the outputs.
            matrices: ``A`` and ``B`` of each layer in turn.
        """
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        seen = flat if dropped is None else dropped.reshape(flat.shape).to(dtype)
        layers = _layers(weights, scales, matrices)
        low = seen @ stacked_down(layers, dtype).T
        lows = torch.split(low, [len(layer.down) for layer in layers], dim=1)
        ctx.save_for_backward(seen, low, *matrices)
        ctx.weights, ctx.scales, ctx.dtype = weights, scales, dtype
        ctx.shape, ctx.separate = x.shape, dropped is not None
        ctx.input_dtype = x.dtype
        return tuple(shaped_as(layer.output(flat, own), x) for layer, own in zip(layers, lows, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of ``x``, ``dropped``, and each ``A`` and ``B``."""
        seen, low, *matrices = ctx.saved_tensors
        dtype, layers = ctx.dtype, _layers(ctx.weights, ctx.scales, matrices)
        gradients = [output.reshape(-1, output.shape[-1]).to(dtype) for output in outputs]
        pairs = zip(gradients, layers, strict=True)
        low_gradient = _joined([gradient @ layer.scaled_up(dtype) for gradient, layer in pairs], dim=1)
        to_x = to_dropped = None
        if ctx.needs_input_grad[0]:
            elsewhere = ctx.separate or layers[0].weight.file_type is not None
            to_x = input_gradient(layers, gradients, None if elsewhere else low_gradient)
            to_x = to_x.reshape(ctx.shape).to(ctx.input_dtype)
        if ctx.separate and ctx.needs_input_grad[1]:
            to_dropped = (low_gradient @ stacked_down(layers, dtype)).reshape(ctx.shape).to(ctx.input_dtype)
        to_adapters = adapter_gradients(Factors(layers, gradients, low_gradient, seen, low))
        return to_x, to_dropped, None, None, None, *to_adapters


def _layers(
    weights: Sequence[FrozenWeight], scales: Sequence[float], matrices: Sequence[torch.Tensor]
) -> list[AdaptedLayer]:
    parts = zip(weights, matrices[::2], matrices[1::2], scales, strict=True)
    return [AdaptedLayer(*part) for part in parts]


def add_adapters(
    x: torch.Tensor, dropped: torch.Tensor | None, layers: Sequence[AdaptedLayer], dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """Outputs of layers of one input by :class:`LoraLinear`.

    Args:
        x: As there.
        dropped: As there.
        layers: The layers.
        dtype: As there.
    """
    weights, scales = tuple(layer.weight for layer in layers), tuple(layer.scale for layer in layers)
    matrices = [matrix for layer in layers for matrix in (layer.down, layer.up)]
    return apply_to_several(LoraLinear, x, dropped, weights, scales, dtype, *matrices)


class FrozenLinear(torch.autograd.Function):
    """A frozen linear layer alone, rounded as :class:`LoraLinear` rounds it; backward dequantizes its matrix again."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: FrozenWeight, dtype: torch.dtype) -> torch.Tensor:
        """The layer's output.

        Args:
            ctx: The autograd context.
            x: ``(..., inputs)``.
            weight: The layer's matrix and bias.
            dtype: The dtype of the arithmetic, and of the output.
        """
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        ctx.weight, ctx.dtype, ctx.input_dtype = weight, dtype, x.dtype
        matrix, bias = weight.matrix(dtype), weight.bias(dtype)
        # Added to zeros like to an adapter without effect: a product that does not add may be by another kernel.
        out = flat.new_zeros(len(flat), len(matrix))
        return shaped_as((out if bias is None else out.add_(bias)).addmm_(flat, matrix.T), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradient of ``x``."""
        return (outputs[0].to(ctx.dtype) @ ctx.weight.matrix(ctx.dtype)).to(ctx.input_dtype), None, None


class FusedLora:
    """The forward of a LoRA layer in training.

    Args:
        layer: A layer that :func:`can_fuse` accepts.
        adapter: The name of its adapter.
    """

    def __init__(self, layer: Any, adapter: str) -> None:
        self._layer = layer
        self._adapter = adapter
        self._usual = layer.forward
        self.weight = FrozenWeight(layer.get_base_layer())
        self.shared_input: SharedInput | None = None
        """The input that it shares with other layers of its module."""

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The layer's output; by the layer's own forward where adapters are merged or it is faster
        (:func:`has_faster_kernel`)."""
        layer, weight = self._layer, self.weight
        if args or kwargs or layer.merged or self._has_faster_kernel(x):
            return self._as_usual(x, *args, **kwargs)
        if layer.disable_adapters:
            if not weight.is_kept and not is_fused():
                return self._as_usual(x)
            return apply(FrozenLinear, x, weight, arithmetic_of(x))
        adapted = self.applied()
        if adapted is None:
            return self._as_usual(x)
        made = None if self.shared_input is None else self.shared_input.take(self, x)
        if made is not None:
            return made
        dropped = torch.nn.functional.dropout(x, adapted.dropout) if adapted.dropout else None
        return add_adapters(x, dropped, [adapted], arithmetic_of(x))[0]

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The parameters of the layer, its adapter's among them."""
        found: Iterator[torch.nn.Parameter] = self._layer.parameters()
        return found

    def applied(self) -> AdaptedLayer | None:
        """The layer with the adapter of the current pass; None if it is off, merged, or not the only active one."""
        layer, name = self._layer, self._adapter
        if layer.disable_adapters or layer.merged or layer.active_adapters != [name]:
            return None
        dropout = layer.lora_dropout[name]
        drops = isinstance(dropout, torch.nn.Dropout) and layer.training and self.weight.file_type is None
        return AdaptedLayer(
            self.weight,
            layer.lora_A[name].weight,
            layer.lora_B[name].weight,
            float(layer.scaling[name]),
            dropout.p if drops else 0.0,
        )

    def applied_without_dropout(self, x: torch.Tensor) -> AdaptedLayer | None:
        """The same, if the whole input goes through the fused function.

        Args:
            x: The input.
        """
        adapted = None if self._has_faster_kernel(x) else self.applied()
        return None if adapted is None or adapted.dropout else adapted

    def _has_faster_kernel(self, x: torch.Tensor) -> bool:
        weight, rows = self.weight, x.numel() // max(x.shape[-1], 1)
        faster = has_faster_kernel(rows, x.device.type, quantized=weight.is_quantized, kept=weight.is_kept)
        return faster and not is_fused() and weight.file_type is None

    def _as_usual(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        output: torch.Tensor = self._usual(x, *args, **kwargs)
        return output


class SharedInput:
    """The forward of a module some of whose layers have the same input, like an attention's queries, keys and values.
    The call of the first of them makes the outputs of all by one function, and the others take theirs.

    Args:
        usual: The module's forward.
        layers: Its layers, of the same number of inputs.
    """

    def __init__(self, usual: Callable[..., Any], layers: Sequence[FusedLora]) -> None:
        self.usual = usual
        self._layers = layers
        self._is_called = False
        self._is_shared = True
        self._input: torch.Tensor | None = None
        self._version = 0
        self._outputs: dict[FusedLora, torch.Tensor] = {}
        for layer in layers:
            layer.shared_input = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output."""
        self._is_called = True
        try:
            made = self.usual(*args, **kwargs)
            # Cross-attention's keys and values have another input.
            self._is_shared = self._is_shared and not self._outputs
            return made
        finally:
            # A pass that lacks memory, or recomputation that has all it needs, ends anywhere in it.
            self._is_called, self._input, self._outputs = False, None, {}

    def take(self, layer: FusedLora, x: torch.Tensor) -> torch.Tensor | None:
        """The output of a layer; None if it is to be made alone, as its input is another, or dropped in part.

        Args:
            layer: One of the layers, whose adapter is applied.
            x: Its input.
        """
        # A tensor made in inference mode has no version.
        version = 0 if x.is_inference() else x._version
        if self._is_called and self._is_shared and self._input is None:
            self._input, self._version, self._outputs = x, version, self._make(layer, x)
        return self._outputs.pop(layer, None) if x is self._input and version == self._version else None

    def _make(self, first: FusedLora, x: torch.Tensor) -> dict[FusedLora, torch.Tensor]:
        of_one_file = [layer for layer in self._layers if layer.weight.file_type == first.weight.file_type]
        applied = {layer: layer.applied_without_dropout(x) for layer in of_one_file}
        adapted = {layer: found for layer, found in applied.items() if found is not None}
        if len(adapted) < 2:
            return {}
        return dict(zip(adapted, add_adapters(x, None, list(adapted.values()), arithmetic_of(x)), strict=True))


def arithmetic_of(x: torch.Tensor) -> torch.dtype:
    """The dtype of products with a tensor: autocast's where it is on.

    Args:
        x: The tensor.
    """
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def has_faster_kernel(rows: int, device: str, *, quantized: bool, kept: bool) -> bool:
    """True if a layer's own forward is faster for so few rows: a single one, and, on CUDA, as many as bitsandbytes'
    kernel for 4-bit matrices takes.

    Args:
        rows: Rows of the input.
        device: Type of the device.
        quantized: Whether the matrix is stored in 4 bits.
        kept: Whether a dequantized copy of it is kept.
    """
    if kept:
        return False
    return rows <= (SMALL_PRODUCT if device == "cuda" and quantized else 1)


def can_fuse(layer: Any, adapter: str) -> bool:
    """True if :class:`FusedLora` computes the same as a module: a single plain adapter on a frozen linear layer.

    Args:
        layer: Any module.
        adapter: The name of the adapter.
    """
    if not isinstance(layer, LoraLayer) or list(getattr(layer, "lora_A", ())) != [adapter]:
        return False
    base = layer.get_base_layer()
    if type(base) not in (torch.nn.Linear, bnb.nn.Linear4bit) or any(p.requires_grad for p in base.parameters()):
        return False
    plain = not layer.lora_variant and not getattr(layer, "fan_in_fan_out", False) and not layer.lora_bias[adapter]
    return plain and not base._forward_hooks and not base._forward_pre_hooks
