"""Gradients of single rows with respect to a model's adapters, in Adam's metric, as sketches of a few thousand numbers.

The metric divides by the square root of the length of Adam's step: a gradient ``g`` becomes ``g / sqrt(sqrt(v) + eps)``
with the optimizer's second moment ``v``, so that a dot product of two of them is the effect of an Adam step on one row
on the loss of the other.

A sketch is a count sketch (Charikar et al. 2002): each number gets a random sign and is added to one of the sketch's
places. The dot product of two sketches is that of the gradients in expectation. Gradients exist for one fused function
and a few rows at a time; a sketch is the sum over all layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from core.errors import UserError
from core.worker.fused.lora import AdaptedLayer

#: Numbers of a sketch. A prime, so that rows of a matrix, whose lengths are round, fall on other places each.
SIZE = 4093
#: Seed of the signs and places.
SEED = 30


def refuse_routed(seen: torch.Tensor, rows: int, width: int) -> None:
    """Refuse the factors of a layer that some tokens of a batch go through and others do not, as in a mixture.

    Args:
        seen: The input of its adapter, ``(tokens, inputs)``.
        rows: Rows of the batch.
        width: Tokens of a row.

    Raises:
        UserError: If so.
    """
    if len(seen) != rows * width:
        raise UserError(
            "An adapter is on a layer that only some tokens go through, so that the rows' shares of its gradient are "
            "not known, and an answer cannot be traced to rows.",
            "Restrict method.target_modules to the attention.",
        )


def row_gradients(
    rows: int,
    layers: Sequence[AdaptedLayer],
    gradients: Sequence[torch.Tensor],
    low_gradient: torch.Tensor,
    seen: torch.Tensor,
    low: torch.Tensor,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Gradients of each row of a padded batch, matrix by matrix.

    Args:
        rows: Rows of the batch; each has as many tokens.
        layers: As for :func:`core.worker.fused.lora.adapter_gradients`, like all that follow.
        gradients: The same.
        low_gradient: The same.
        seen: The same.
        low: The same.

    Yields:
        ``A`` or ``B`` of a layer, and its gradients in fp32, ``(rows, *matrix.shape)``.
    """
    ranks = [len(layer.down) for layer in layers]
    parts = zip(layers, gradients, torch.split(low_gradient, ranks, dim=1), torch.split(low, ranks, dim=1), strict=True)
    own_seen = _by_row(seen, rows)
    for layer, gradient, own_low_gradient, own_low in parts:
        yield layer.down, torch.bmm(_by_row(own_low_gradient, rows).mT, own_seen)
        yield layer.up, torch.bmm(_by_row(gradient, rows).mT, _by_row(own_low, rows)).mul_(layer.scale)


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

    def __call__(
        self,
        layers: Sequence[AdaptedLayer],
        gradients: Sequence[torch.Tensor],
        low_gradient: torch.Tensor,
        seen: torch.Tensor,
        low: torch.Tensor,
    ) -> None:
        """Add the part of some layers; see :func:`core.worker.fused.lora.factors_to`."""
        refuse_routed(seen, self._rows, self._width)
        for matrix, found in row_gradients(self._rows, layers, gradients, low_gradient, seen, low):
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

    def __call__(
        self,
        layers: Sequence[AdaptedLayer],
        gradients: Sequence[torch.Tensor],
        low_gradient: torch.Tensor,
        seen: torch.Tensor,
        low: torch.Tensor,
    ) -> None:
        """Add the part of some layers; see :func:`core.worker.fused.lora.factors_to`."""
        refuse_routed(seen, *self.sums.shape)
        ranks = [len(layer.down) for layer in layers]
        factors = zip(
            layers, gradients, torch.split(low_gradient, ranks, dim=1), torch.split(low, ranks, dim=1), strict=True
        )
        for layer, gradient, own_low_gradient, own_low in factors:
            down = self._projection.direction_of(layer.down, self._direction)
            up = self._projection.direction_of(layer.up, self._direction) * layer.scale
            found = ((seen.float() @ down.T) * own_low_gradient.float()).sum(dim=1)
            found += ((own_low.float() @ up.T) * gradient.float()).sum(dim=1)
            self.sums += found.view(self.sums.shape)

    def unscale(self, scale: float) -> None:
        """Divide by the factor of the loss."""
        self.sums /= scale
