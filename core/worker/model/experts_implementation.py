"""Computation of a mixture's experts from weights in 4 or 16 bits, with or without adapters.

transformers looks up the function that computes the experts of a model in a table. :data:`IMPLEMENTATION` is ours: it
dequantizes the weights of one expert at a time for the tokens that chose it, keeps none of them for backward, and
dequantizes them again there. With frozen weights the gradient of a product does not need its input either, so only the
tensors of the adapters and the gate are kept.

:func:`group_by_expert` is the single place that sorts tokens by expert, and :func:`product` the single place that
multiplies them: a grouped kernel takes the same groups and parameters. A parameter with a method ``expert(number)``
returns the matrix of one expert; see :class:`core.worker.model.experts.ExpertsParams4bit`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from core.memory.sizes import experts_at_once
from core.worker.fused.experts import (
    Block,
    GroupedProducts,
    Offsets,
    UnfilledProducts,
    grouped_product,
    multiply,
    multiply_between,
    row_experts,
)
from core.worker.fused.kernels import grouped_products
from core.worker.fused.mode import apply
from core.worker.model.experts import ExpertsParams4bit, expert_count, experts_of, matrix_names, stored_shape

#: Name of the implementation in transformers' table.
IMPLEMENTATION = "localtune"
#: Attribute of an expert module with its active adapters, by the name of the matrix.
ADAPTERS = "_expert_adapters"

#: Group the products of tensors without values; None where tensors have values.
_grouped_without_values: ContextVar[bool | None] = ContextVar("grouped_without_values", default=None)


# Groups.


@dataclass(frozen=True)
class Groups:
    """The choices of a batch, sorted by expert.

    Args:
        order: Positions of the sorted choices among all, ``(tokens * chosen,)``; position p is choice ``p % chosen`` of
            token ``p // chosen``.
        inverse: The sorted position of each.
        chosen: Experts per token.
        offsets: End of each expert's part of the sorted choices, ``(experts,)``, int32, on the device.
    """

    order: torch.Tensor
    inverse: torch.Tensor
    chosen: int
    offsets: torch.Tensor

    @functools.cached_property
    def ends(self) -> Offsets:
        """The offsets on the host; the first access waits for the device, the only wait of a layer and pass."""
        if (grouped := _grouped_without_values.get()) is None:
            return Offsets(self.offsets.tolist(), self.offsets)
        choices, experts = len(self.order), len(self.offsets)
        # In a loop each expert takes as much as any other, so two stand for all.
        chosen = experts if grouped else min(experts, 2)
        ends = [choices * min(number, chosen) // chosen for number in range(1, experts + 1)]
        return Offsets(ends, self.offsets)

    def parts(self) -> Iterator[tuple[int, slice]]:
        """Chosen experts with their part of the sorted choices. It waits for the device."""
        start = 0
        for number, end in enumerate(self.ends.host):
            if end > start:
                yield number, slice(start, end)
            start = end


def group_by_expert(top_k_index: torch.Tensor, experts: int) -> Groups:
    """Sort choices by expert.

    Args:
        top_k_index: The experts of each token, ``(tokens, chosen)``.
        experts: Number of experts.
    """
    chosen = top_k_index.reshape(-1)
    numbers, order = torch.sort(chosen, stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    each = torch.arange(experts, device=chosen.device, dtype=numbers.dtype)
    offsets = torch.searchsorted(numbers, each, right=True, out_int32=True)
    return Groups(order, inverse, top_k_index.shape[-1], offsets)


class _Spread(torch.autograd.Function):
    """Tokens, ``(tokens, width)``, as a row per choice, sorted by expert. The gradient is summed in a fixed order."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, groups: Groups) -> torch.Tensor:
        ctx.groups = groups
        return tokens[groups.order // groups.chosen]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        groups: Groups = ctx.groups
        return gradient[groups.inverse].view(-1, groups.chosen, gradient.shape[-1]).sum(1), None


class _Collect(torch.autograd.Function):
    """Rows sorted by expert, back in the order of tokens and choices: ``(tokens, chosen, width)``."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, groups: Groups) -> torch.Tensor:
        ctx.groups = groups
        return rows[groups.inverse].view(-1, groups.chosen, rows.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        return gradient.reshape(-1, gradient.shape[-1])[ctx.groups.order], None


# Products.


class _FrozenProduct(torch.autograd.Function):
    """Rows times the frozen matrices of their experts, with the gradient of the rows only; it keeps just the parameter
    and the groups.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, weight: Any, bias: torch.Tensor | None, groups: Groups, transposed: bool
    ) -> torch.Tensor:
        ctx.weight, ctx.groups, ctx.transposed, ctx.dtype = weight, groups, transposed, rows.dtype
        found = _times_frozen(rows, weight, groups, transpose=not transposed)
        if bias is not None:
            found += bias.to(rows.dtype)[row_experts(groups.ends)]
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        found = _times_frozen(gradients[0].to(ctx.dtype), ctx.weight, ctx.groups, transpose=ctx.transposed)
        return found, None, None, None, None


def is_grouped(device: torch.device) -> bool:
    """True if products are grouped, as on a GPU, where a loop over experts would launch many small kernels; on a CPU
    experts are dequantized and multiplied one by one.
    """
    grouped = _grouped_without_values.get()
    return device.type == "cuda" if grouped is None else grouped


@contextlib.contextmanager
def without_values(*, grouped: bool) -> Iterator[None]:
    """A context for tensors without values, as in a measurement: choices count as evenly split.

    Args:
        grouped: Group the products, as on a GPU.
    """
    token = _grouped_without_values.set(grouped)
    try:
        yield
    finally:
        _grouped_without_values.reset(token)


def _times_frozen(rows: torch.Tensor, weight: Any, groups: Groups, *, transpose: bool) -> torch.Tensor:
    """Rows times the frozen matrices of their experts, optionally transposed."""
    _, first, second = stored_shape(weight)
    width = first if transpose else second
    if is_grouped(rows.device):
        products = _products(rows)
        if not isinstance(weight, ExpertsParams4bit):
            matrices = weight.detach().to(rows.dtype)
            return multiply(rows, matrices.transpose(1, 2) if transpose else matrices, groups.ends, products)
        together = experts_at_once(first * second, rows.element_size())
        matrices_of = functools.partial(_block, weight, rows.dtype)
        return grouped_product(rows, groups.ends, matrices_of, together, width, products, transpose=transpose)
    found = rows.new_empty((len(rows), width))
    for number, part in groups.parts():
        matrix = _matrix(weight, number, rows.dtype)
        torch.mm(rows[part], matrix.T if transpose else matrix, out=found[part])
    return found


def _products(rows: torch.Tensor) -> GroupedProducts:
    """The grouped products for rows; the memory of the kernel's where tensors have no values."""
    if _grouped_without_values.get() is not None:
        return UnfilledProducts()
    return grouped_products(rows.device, rows.dtype)


def _block(weight: ExpertsParams4bit, dtype: torch.dtype, block: Block) -> torch.Tensor:
    return weight.block(block).detach().to(dtype)


def _matrix(weight: Any, number: int, dtype: torch.dtype) -> torch.Tensor:
    matrix = weight[number] if isinstance(weight, torch.Tensor) and weight.dim() == 3 else weight.expert(number)
    return matrix.detach().to(dtype)


@dataclass(frozen=True)
class ExpertAdapter:
    """LoRA adapter of one matrix of the experts of a layer, in the shapes of PEFT's ``target_parameters``.

    Args:
        down: Matrices down, ``(rank * experts, inputs)``.
        up: Matrices up, ``(outputs, rank * experts)``; the rank comes before the experts.
        scale: Factor of the product.
        dropout: Share of dropped inputs; 0 outside of training.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    dropout: float = 0.0


class _AdapterProduct(torch.autograd.Function):
    """Rows times the adapters of their experts, with all gradients; it keeps the rows and the low-rank ones."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, down: torch.Tensor, up: torch.Tensor, groups: Groups, experts: int
    ) -> torch.Tensor:
        downs, ups = _by_expert(down, up, experts)
        if is_grouped(rows.device):
            products = _products(rows)
            narrow = multiply(rows, downs.transpose(1, 2), groups.ends, products)
            found = multiply(narrow, ups.transpose(1, 2), groups.ends, products)
        else:
            narrow = rows.new_empty((len(rows), downs.shape[1]))
            found = rows.new_empty((len(rows), ups.shape[1]))
            for number, part in groups.parts():
                torch.mm(rows[part], downs[number].T, out=narrow[part])
                torch.mm(narrow[part], ups[number].T, out=found[part])
        ctx.save_for_backward(rows, narrow, down, up)
        ctx.groups, ctx.experts = groups, experts
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        rows, narrow, down, up = ctx.saved_tensors
        gradient = gradients[0].to(rows.dtype)
        downs, ups = _by_expert(down, up, ctx.experts)
        groups: Groups = ctx.groups
        if is_grouped(rows.device):
            products = _products(rows)
            to_narrow = multiply(gradient, ups, groups.ends, products)
            to_rows = multiply(to_narrow, downs, groups.ends, products)
            to_down = multiply_between(to_narrow, rows, groups.ends, products)
            to_up = multiply_between(gradient, narrow, groups.ends, products)
        else:
            to_rows, to_narrow = torch.empty_like(rows), torch.empty_like(narrow)
            to_down, to_up = torch.zeros_like(downs), torch.zeros_like(ups)
            for number, part in groups.parts():
                torch.mm(gradient[part], ups[number], out=to_narrow[part])
                torch.mm(to_narrow[part], downs[number], out=to_rows[part])
                torch.mm(to_narrow[part].T, rows[part], out=to_down[number])
                to_up[number] = gradient[part].T @ narrow[part]
        return to_rows, to_down.view_as(down), to_up.permute(1, 2, 0).reshape(up.shape), None, None


def _by_expert(down: torch.Tensor, up: torch.Tensor, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``(experts, rank, inputs)`` and ``(experts, outputs, rank)`` of PEFT's matrices: views, except for grouped
    products, whose kernels need the numbers of an expert to be contiguous.
    """
    downs, ups = down.view(experts, -1, down.shape[1]), up.view(len(up), -1, experts).permute(2, 0, 1)
    return downs, ups.contiguous() if is_grouped(up.device) else ups


def product(module: Any, name: str, rows: torch.Tensor, groups: Groups) -> torch.Tensor:
    """Rows times a matrix of their experts, with its bias and the active adapters.

    Args:
        module: A module of experts.
        name: Name of the matrix: ``gate_up_proj``.
        rows: ``(tokens * chosen, inputs)``, sorted by expert, in the dtype of the arithmetic.
        groups: The groups of the rows.
    """
    bias = getattr(module, f"{name}_bias") if module.has_bias else None
    found = apply(_FrozenProduct, rows, getattr(module, name), bias, groups, module.is_transposed)
    adapters: Sequence[ExpertAdapter] = getattr(module, ADAPTERS, {}).get(name, ())
    for adapter in adapters:
        dtype = rows.dtype if torch.is_autocast_enabled(rows.device.type) else adapter.down.dtype
        inputs = rows.to(dtype)
        if adapter.dropout:
            inputs = torch.nn.functional.dropout(inputs, adapter.dropout)
        down, up = adapter.down.to(dtype), adapter.up.to(dtype)
        added = apply(_AdapterProduct, inputs, down, up, groups, expert_count(module))
        found = found + (added * adapter.scale).to(found.dtype)
    return found


@torch.compiler.disable  # type: ignore[untyped-decorator]  # an expert's number of tokens depends on the data
def experts_forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Forward of an expert module, with the signature of transformers' table of implementations.

    Args:
        self: The module of experts.
        hidden_states: ``(tokens, hidden)``.
        top_k_index: The experts of each token, ``(tokens, chosen)``.
        top_k_weights: Weights of their outputs, of the same shape.

    Returns:
        ``(tokens, hidden)``.
    """
    groups = group_by_expert(top_k_index, expert_count(self))
    first, second = matrix_names(self)
    dtype = _arithmetic(self, hidden_states)
    inner = product(self, first, apply(_Spread, hidden_states, groups).to(dtype), groups)
    inner = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
    rows = product(self, second, inner.to(dtype), groups)
    if self.has_post_expert_norm:
        rows = self.post_expert_norm(rows)
    outputs = apply(_Collect, rows, groups)
    return (outputs * top_k_weights.unsqueeze(-1)).sum(1).to(hidden_states.dtype)


def _arithmetic(module: Any, hidden_states: torch.Tensor) -> torch.dtype:
    """The dtype of the products: autocast's, else that of the weights."""
    kind = hidden_states.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    weight = module.down_proj
    return weight.quant_state.dtype if isinstance(weight, ExpertsParams4bit) else weight.dtype


def use_own_experts(model: Any) -> int:
    """Compute the experts of a model by :func:`experts_forward`.

    Args:
        model: A model of transformers, without adapters or beneath them.

    Returns:
        The number of expert modules.
    """
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, experts_forward)
    found = [module for _, module in experts_of(model)]
    for module in found:
        module.config._experts_implementation = IMPLEMENTATION
    return len(found)
