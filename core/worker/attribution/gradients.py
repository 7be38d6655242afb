"""Gradients of single rows with respect to a model's adapters, in Adam's metric, as sketches of a few thousand numbers.

The metric divides by the square root of the length of Adam's step: a gradient ``g`` becomes ``g / sqrt(sqrt(v) + eps)``
with the optimizer's second moment ``v``, so that a dot product of two of them is the effect of an Adam step on one row
on the loss of the other.

A sketch is a count sketch (Charikar et al. 2002): each number gets a random sign and is added to one of the sketch's
places. The dot product of two sketches is that of the gradients in expectation. Gradients exist for one fused function
and a few rows at a time; a sketch is the sum over all layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import bitsandbytes.functional as bnb
import torch

from core.errors import UserError
from core.worker.fused.lora import Factors
from core.worker.optim.paged import settle

#: Numbers of a sketch. A prime, so that rows of a matrix, whose lengths are round, fall on other places each.
SIZE = 4093
#: Seed of the signs and places.
SEED = 30


def metric_of(optimizer: Any) -> dict[torch.nn.Parameter, torch.Tensor]:
    """Factor of each number of a gradient, ``1 / sqrt(sqrt(v) + eps)`` with the bias-corrected second moment ``v``.

    Adafactor's ``v`` is the product of its row and column means (arXiv 1804.04235). An optimizer without a second
    moment, Lion, has the factor 1.

    Args:
        optimizer: An optimizer of :func:`core.worker.optim.optim.make_optimizer`, its states restored.

    Returns:
        fp32 tensors in the shapes of the parameters.
    """
    settle(optimizer)
    found: dict[torch.nn.Parameter, torch.Tensor] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            moment = _second_moment(optimizer.state.get(parameter, {}), group, parameter)
            eps = group.get("eps", 0.0)
            # Adafactor has a pair: of the squared gradient, and of the step relative to the weight.
            eps = eps[0] ** 0.5 if isinstance(eps, tuple | list) else eps
            found[parameter] = (
                torch.ones_like(parameter, dtype=torch.float32) if moment is None else _factor(moment, eps)
            )
    return found


def _factor(moment: torch.Tensor, eps: float) -> torch.Tensor:
    # Numbers that have never had a gradient have no step either.
    return torch.where(moment > 0, moment.sqrt().add(eps).rsqrt(), 0.0)


def _second_moment(
    state: Mapping[str, Any], group: Mapping[str, Any], parameter: torch.nn.Parameter
) -> torch.Tensor | None:
    """The bias-corrected second moment in fp32; None if the optimizer keeps none."""
    if "exp_avg_sq_row" in state:
        rows, columns = state["exp_avg_sq_row"].float(), state["exp_avg_sq_col"].float()
        product: torch.Tensor = rows[:, None] * columns[None, :] / rows.mean().clamp_min(1e-30)
        return product
    moment = state.get("exp_avg_sq", state.get("state2"))
    if moment is None:
        return None
    if moment.dtype == torch.uint8:
        moment = _dequantized(moment, state)
    moment = moment.to(parameter.device).float().view(parameter.shape)
    beta = group["betas"][1] if "betas" in group else 0.0
    corrected: torch.Tensor = moment / (1 - beta ** float(state["step"]))
    return corrected


def _dequantized(moment: torch.Tensor, state: Mapping[str, Any]) -> torch.Tensor:
    """A second moment of 8 bits. Zero stands for all that is smaller than half the smallest code of a block: such
    numbers get half that code, as their true size is unknown, and a factor from zero would outweigh all others."""
    scales, codes = state["absmax2"], state["qmap2"]
    values = bnb.dequantize_blockwise(moment, absmax=scales, code=codes, blocksize=256)
    least = float(codes[codes > 0].min()) / 2
    floors = scales.repeat_interleave(256)[: values.numel()].view(values.shape) * least
    return torch.maximum(values, floors)


def refuse_routed(factors: Factors, rows: int, width: int) -> None:
    """Refuse the factors of a layer that some tokens of a batch go through and others do not, as in a mixture.

    Args:
        factors: The factors.
        rows: Rows of the padded batch.
        width: Tokens of a row.

    Raises:
        UserError: If so.
    """
    if len(factors.seen) != rows * width:
        raise UserError(
            "An adapter is on a layer that only some tokens go through, so that the rows' shares of its gradient are "
            "not known, and an answer cannot be traced to rows.",
            "Restrict method.target_modules to the attention.",
        )


def row_gradients(rows: int, factors: Factors) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Gradients of each row of a padded batch, matrix by matrix.

    Args:
        rows: Rows of the batch; each has as many tokens.
        factors: The factors.

    Yields:
        ``A`` or ``B`` of a layer, and its gradients in fp32, ``(rows, *matrix.shape)``.
    """
    seen = _by_row(factors.seen, rows)
    for layer, gradient, low_gradient, low in factors.by_layer():
        yield layer.down, torch.bmm(_by_row(low_gradient, rows).mT, seen)
        yield layer.up, torch.bmm(_by_row(gradient, rows).mT, _by_row(low, rows)).mul_(layer.scale)


def _by_row(flat: torch.Tensor, rows: int) -> torch.Tensor:
    return flat.reshape(rows, -1, flat.shape[-1]).float()


@dataclass(frozen=True)
class _Place:
    """The part of a matrix in a sketch."""

    factor: torch.Tensor
    """Signs times the metric, in the shape of the matrix, fp32."""
    start: int
    """Place of the first number; the others follow, and begin anew at the end."""


class Projection:
    """The projection of adapters' gradients to sketches.

    Args:
        metric: Factor of each number of each adapter's matrix, fp32, in the order of the model.
        size: Numbers of a sketch.
        seed: Seed of signs and places.
    """

    def __init__(
        self, metric: Mapping[torch.nn.Parameter, torch.Tensor], *, size: int = SIZE, seed: int = SEED
    ) -> None:
        self.size = size
        # By address: recomputed activations come with other tensor objects of the same memory.
        self._places: dict[int, _Place] = {}
        generator = torch.Generator().manual_seed(seed)
        for matrix, factor in metric.items():
            signs = torch.randint(0, 2, matrix.shape, generator=generator, dtype=torch.int8).mul_(2).sub_(1)
            start = int(torch.randint(0, size, (), generator=generator))
            self._places[matrix.data_ptr()] = _Place(factor.to(matrix.device) * signs.to(matrix.device), start)

    @property
    def bytes(self) -> int:
        """Bytes of the factors."""
        return sum(place.factor.nbytes for place in self._places.values())

    def sketches(self, matrix: torch.Tensor, gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The part of a matrix in the sketches of some rows, ``(rows, size)``, and in their squared norms, ``(rows,)``.

        Args:
            matrix: The matrix.
            gradients: ``(rows, *matrix.shape)``, fp32; overwritten.
        """
        place = self._places[matrix.data_ptr()]
        flat = gradients.mul_(place.factor).flatten(1)
        tail = -(place.start + flat.shape[1]) % self.size
        padded = torch.nn.functional.pad(flat, (place.start, tail))
        return padded.view(len(flat), -1, self.size).sum(dim=1), flat.square().sum(dim=1)

    def direction_of(self, matrix: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        """The gradient, in the shape of a matrix, whose dot product with any other is that of the sketch with a
        direction: the transposed projection.

        Args:
            matrix: The matrix.
            direction: ``(size,)``, fp32, on the device of the matrix.
        """
        place = self._places[matrix.data_ptr()]
        at = torch.arange(place.start, place.start + matrix.numel(), device=direction.device) % self.size
        return direction[at].view(matrix.shape) * place.factor


class Sketches:
    """Receives the factors of one batch's backward pass, and adds up the sketches of its rows.

    Args:
        projection: The projection.
        rows: Rows of the padded batch.
        width: Its tokens a row.
        device: Of the model.
    """

    def __init__(self, projection: Projection, rows: int, width: int, device: torch.device) -> None:
        self._projection, self._rows, self._width = projection, rows, width
        self.sums = torch.zeros(rows, projection.size, device=device)
        """``(rows, size)``, fp32."""
        self.squares = torch.zeros(rows, device=device)
        """Squared norms of the gradients in the metric, ``(rows,)``, fp32."""

    def __call__(self, factors: Factors) -> None:
        """Add the part of some layers; see :func:`core.worker.fused.lora.factors_to`."""
        refuse_routed(factors, self._rows, self._width)
        for matrix, found in row_gradients(self._rows, factors):
            sums, squares = self._projection.sketches(matrix, found)
            self.sums += sums
            self.squares += squares

    def unscale(self, scale: float) -> None:
        """Divide by the factor of the loss."""
        self.sums /= scale
        self.squares /= scale**2


class TokenParts:
    """Receives the factors of one batch's backward pass, and splits the dot product of each row's sketch with a
    direction among its tokens: the sum over the tokens is that product.

    Args:
        projection: The projection.
        direction: ``(size,)``, fp32.
        rows: Rows of the padded batch.
        width: Its tokens a row.
    """

    def __init__(self, projection: Projection, direction: torch.Tensor, rows: int, width: int) -> None:
        self._projection, self._direction = projection, direction
        self.sums = torch.zeros(rows, width, device=direction.device)
        """``(rows, width)``, fp32."""

    def __call__(self, factors: Factors) -> None:
        """Add the part of some layers; see :func:`core.worker.fused.lora.factors_to`."""
        refuse_routed(factors, *self.sums.shape)
        seen = factors.seen.float()
        for layer, gradient, low_gradient, low in factors.by_layer():
            down = self._projection.direction_of(layer.down, self._direction)
            up = self._projection.direction_of(layer.up, self._direction) * layer.scale
            found = ((seen @ down.T) * low_gradient.float()).sum(dim=1)
            found += ((low.float() @ up.T) * gradient.float()).sum(dim=1)
            self.sums += found.view(self.sums.shape)

    def unscale(self, scale: float) -> None:
        """Divide by the factor of the loss."""
        self.sums /= scale
