"""Experts of a mixture: their modules and matrices in transformers, and their weights in 4 bits.

transformers marks the classes of experts with ``use_experts_implementation``; their computation is in
:mod:`core.worker.model.experts_implementation`.

It keeps the experts of a layer in one tensor per matrix, ``(experts, rows, columns)``, which bitsandbytes does not
quantize. Here every expert is quantized as bitsandbytes quantizes a linear layer of its shape, NF4 with double
quantization, and the results are stacked. An expert thus has its own blocks, scales and offset, can be copied from the
host alone, and sits at a constant stride for a grouped kernel.

Source: NF4 and double quantization, QLoRA, arXiv 2305.14314.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import bitsandbytes as bnb
import torch

from core.worker.fused.experts import Block
from core.worker.model.nf4 import whole_blocks

#: Weights per scale, and scales per second-level scale, as in bitsandbytes.
BLOCK, NESTED_BLOCK = 64, 256
#: Scales of an expert that are dequantized by one number: their count need not be a multiple of :data:`NESTED_BLOCK`.
_SCALES = 64


@dataclass
class ExpertsQuantState:
    """Quantization state of packed experts: bitsandbytes' ``QuantState`` of every expert, stacked.

    Args:
        shape: ``(experts, rows, columns)`` of the weights, as transformers stores them.
        dtype: Dtype of dequantized weights.
        absmax: Scales of the blocks, themselves quantized: ``(experts, blocks)``, uint8.
        offset: Mean subtracted from the scales of an expert: ``(experts,)``, fp32.
        nested_absmax: Scales of the scales: ``(experts, nested blocks)``, fp32.
        code: The values of NF4: ``(16,)``, fp32.
        nested_code: The quantization levels of the scales: ``(256,)``, fp32.
        source: Returns packed weights and ``absmax`` where they are offloaded; the parameter and the table of that
            name then have only their shapes.
    """

    shape: torch.Size
    dtype: torch.dtype
    absmax: torch.Tensor
    offset: torch.Tensor
    nested_absmax: torch.Tensor
    code: torch.Tensor
    nested_code: torch.Tensor
    source: Callable[[], tuple[torch.Tensor, torch.Tensor]] | None = None

    def tensors(self) -> list[torch.Tensor]:
        """The tables."""
        return [value for field in fields(self) if isinstance(value := getattr(self, field.name), torch.Tensor)]

    def to(self, device: Any) -> None:
        """Move the tables to a device, in place, as bitsandbytes' state does."""
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), torch.Tensor):
                setattr(self, field.name, value.to(device))

    def of(self, number: int, absmax: torch.Tensor) -> bnb.functional.QuantState:
        """The state of a single expert; its tensors are views.

        Args:
            number: The expert.
            absmax: The scales of all experts; see :meth:`ExpertsParams4bit.packed`.
        """
        nested = bnb.functional.QuantState(
            absmax=self.nested_absmax[number], code=self.nested_code, blocksize=NESTED_BLOCK, dtype=torch.float32
        )
        return bnb.functional.QuantState(
            absmax=absmax[number],
            shape=whole_blocks(self.shape[1:].numel(), BLOCK),
            code=self.code,
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=self.dtype,
            offset=self.offset[number],
            state2=nested,
        )


class ExpertsParams4bit(torch.nn.Parameter):
    """Parameter with the packed weights of the experts of a layer, ``(experts, bytes)``, uint8; never trained.

    Attributes:
        quant_state: Its quantization tables.
    """

    quant_state: ExpertsQuantState

    def __new__(cls, data: torch.Tensor, quant_state: ExpertsQuantState) -> ExpertsParams4bit:
        """The parameter; see :func:`quantize_experts`.

        Args:
            data: Packed weights.
            quant_state: The tables.
        """
        made: ExpertsParams4bit = torch.Tensor._make_subclass(cls, data, False)
        made.quant_state = quant_state
        return made

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move it to a device, with its tables; a dtype is ignored, as the data is packed."""
        parsed: tuple[Any, ...] = torch._C._nn._parse_to(*args, **kwargs)
        device, _, non_blocking, _ = parsed
        if device is None:
            return self
        self.quant_state.to(device)
        return ExpertsParams4bit(self.data.to(device, non_blocking=non_blocking), self.quant_state)

    def __deepcopy__(self, memo: dict[int, Any]) -> ExpertsParams4bit:
        """A copy with tables of its own."""
        memo[id(self)] = made = ExpertsParams4bit(self.data.clone(), copy.deepcopy(self.quant_state, memo))
        return made

    def expert(self, number: int) -> torch.Tensor:
        """The dequantized matrix of a single expert, ``(rows, columns)``.

        Args:
            number: The expert.
        """
        data, absmax = self.packed()
        matrix: torch.Tensor = bnb.functional.dequantize_4bit(
            data[number].view(-1, 1), self.quant_state.of(number, absmax)
        )
        return matrix.view(self.quant_state.shape[1:])

    def packed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Packed weights and quantized scales from the device or the host; to be used at once."""
        state = self.quant_state
        return (self.data, state.absmax) if state.source is None else state.source()

    def block(self, block: Block) -> torch.Tensor:
        """The matrices of a block of experts, dequantized together: ``(experts, rows, columns)``, with the same values
        as one by one.

        Args:
            block: The experts.
        """
        state = self.quant_state
        _, rows, columns = state.shape
        if rows * columns % (BLOCK * _SCALES):
            # An expert ends inside a block, of weights or of their scales, in which the next one would start.
            return torch.stack([self.expert(number) for number in block.numbers])
        data, absmax = self.packed()
        chosen, number = block.index, len(block.numbers)
        nested = state.nested_absmax[chosen].repeat_interleave(NESTED_BLOCK // _SCALES, 1)
        scales = bnb.functional.dequantize_blockwise(
            absmax[chosen].flatten(),
            absmax=nested[:, : absmax.shape[1] // _SCALES].contiguous(),
            code=state.nested_code,
            blocksize=_SCALES,
        )
        scales.view(number, -1).add_(state.offset[chosen].unsqueeze(1))
        together = bnb.functional.QuantState(
            absmax=scales,
            shape=whole_blocks(number * rows * columns, BLOCK),
            code=state.code,
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=state.dtype,
        )
        matrices: torch.Tensor = bnb.functional.dequantize_4bit(data[chosen].reshape(-1, 1), together)
        return matrices.view(number, rows, columns)

    def bytes(self) -> int:
        """Bytes of the weights and their tables."""
        tensors = [self.data, *self.quant_state.tensors()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def quantize_experts(matrices: Iterable[torch.Tensor], shape: torch.Size | tuple[int, ...]) -> ExpertsParams4bit:
    """Quantize the experts of a layer one by one.

    Args:
        matrices: Their matrices in order, ``(rows, columns)``, on the target device; consumed lazily, so a generator
            that reads from a file holds a single matrix in memory.
        shape: ``(experts, rows, columns)``.

    Raises:
        ValueError: If their number or a shape is different.
    """
    shape = torch.Size(shape)
    packed: list[torch.Tensor] = []
    states: list[bnb.functional.QuantState] = []
    stacked: torch.Tensor | None = None
    for number, matrix in enumerate(matrices):
        if matrix.shape != shape[1:] or number >= shape[0]:
            raise ValueError(f"expert {number} is {tuple(matrix.shape)}, and the layer is {tuple(shape)}")
        data, state = bnb.functional.quantize_4bit(
            matrix.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )
        if stacked is None:
            stacked = data.new_empty((shape[0], data.numel()))
        stacked[number] = data.view(-1)
        packed.append(stacked[number])
        states.append(state)
    if stacked is None or len(states) != shape[0]:
        raise ValueError(f"there are {len(states)} experts, and the layer has {shape[0]}")
    return ExpertsParams4bit(
        stacked,
        ExpertsQuantState(
            shape=shape,
            dtype=states[0].dtype,
            absmax=torch.stack([state.absmax for state in states]),
            offset=torch.stack([state.offset for state in states]),
            nested_absmax=torch.stack([state.state2.absmax for state in states]),
            code=states[0].code,
            nested_code=states[0].state2.code,
        ),
    )


def dequantized(parameter: torch.Tensor) -> torch.Tensor:
    """All experts of a layer as one tensor, ``(experts, rows, columns)``; an unquantized one is returned as it is.

    Args:
        parameter: A :class:`ExpertsParams4bit`, or a tensor of that shape.
    """
    if not isinstance(parameter, ExpertsParams4bit):
        return parameter
    return torch.stack([parameter.expert(number) for number in range(len(parameter))])


# Modules.


def is_experts(module: Any) -> bool:
    """True if a module has the fused experts of a layer, whatever the family calls its class: transformers' decorator
    ``use_experts_implementation`` has marked it.
    """
    return isinstance(module, torch.nn.Module) and all(
        name in module.__dict__ for name in ("has_gate", "has_bias", "is_transposed", "is_concatenated")
    )


def experts_of(model: Any) -> Iterator[tuple[str, Any]]:
    """Modules of experts with their names in the model.

    Args:
        model: A model of transformers, without adapters or beneath them.
    """
    for name, module in model.named_modules():
        if is_experts(module):
            yield name, module


def bare_experts(model: Any) -> int:
    """Number of elements of experts whose class transformers does not mark, as in Llama 4, DBRX and JetMoE.

    They are computed by their family's own code: they stay in 16 bits, and get no adapters.

    Args:
        model: A model of transformers, or a part of one, without adapters or beneath them.
    """
    return sum(
        parameter.numel()
        for module in model.modules()
        if "Expert" in type(module).__name__ and not is_experts(module) and not isinstance(module, torch.nn.Linear)
        for parameter in module.parameters(recurse=False)
        if parameter.dim() > 1
    )


def matrix_names(module: Any) -> tuple[str, str]:
    """Names of the matrices of experts, in the order of computation.

    Args:
        module: A module of experts.
    """
    return ("gate_up_proj" if module.has_gate else "up_proj", "down_proj")


def stored_shape(parameter: torch.Tensor) -> torch.Size:
    """Shape of the weights of the experts of a layer as transformers stores them: ``(experts, rows, columns)``."""
    return parameter.quant_state.shape if isinstance(parameter, ExpertsParams4bit) else parameter.shape


def matrix_shapes(module: Any) -> tuple[tuple[int, int], ...]:
    """Outputs and inputs of the matrices of an expert.

    Args:
        module: A module of experts.
    """
    shapes = [stored_shape(getattr(module, name))[1:] for name in matrix_names(module)]
    return tuple((int(b), int(a)) if module.is_transposed else (int(a), int(b)) for a, b in shapes)


def expert_count(module: Any) -> int:
    """Number of experts.

    Args:
        module: A module of experts.
    """
    return int(stored_shape(module.down_proj)[0])
