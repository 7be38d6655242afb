"""Measured memory of a model: what its layers keep and take at any size of a micro-batch.

It is measured at a few sizes (:mod:`core.worker.measure`), and grows between and beyond them as the terms of
:class:`Growth`. All sizes are bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

#: Version of the format; others are measured anew.
FORMAT = 7


@dataclass(frozen=True)
class Growth:
    """Growth of a size with the micro-batch.

    Args:
        once: Whatever its size.
        per_token: For each token, padding included.
        per_pair: For each pair of tokens of a row.
        per_column: For each token of a row, whatever the number of rows: tables of positions.
        per_square: For each pair of tokens of a row, whatever the number of rows: masks.
        per_row: For each row, whatever its tokens: negative where the last piece of a row keeps less than others, as in
            scans over a state.
    """

    once: float = 0.0
    per_token: float = 0.0
    per_pair: float = 0.0
    per_column: float = 0.0
    per_square: float = 0.0
    per_row: float = 0.0

    def at(self, tokens: int, row: int) -> float:
        """Bytes at a size.

        Args:
            tokens: Tokens of the micro-batch, padding included.
            row: Tokens of a row, padding included.
        """
        grown = tokens * (self.per_token + row * self.per_pair) + row * (self.per_column + row * self.per_square)
        return self.once + grown + self.per_row * tokens / row


#: A peak: the largest of several moments counts.
Peak = tuple[Growth, ...]


def peak_at(peak: Peak, tokens: int, row: int) -> float:
    """Bytes of a peak at a size; see :meth:`Growth.at`."""
    return max((moment.at(tokens, row) for moment in peak), default=0.0)


@dataclass(frozen=True)
class LayerGrowth:
    """Memory of a layer of one kind, without its input, its output and the gradient of that.

    Args:
        kind: Number of the kind.
        reached: Whether the layer's input needs a gradient.
        multiple: Tokens that it takes rows in pieces of; a row counts as if it filled its last piece.
        kept: Kept for backward, the input among it if it is kept.
        casts: Kept beside the input if activations are recomputed.
        forward: Peak of the forward pass.
        backward: Peak of the backward pass with activations kept.
        again: Peak of recomputation and backward pass.
    """

    kind: int
    reached: bool
    multiple: int
    kept: Growth
    casts: Growth
    forward: Peak
    backward: Peak
    again: Peak


@dataclass(frozen=True)
class Regime:
    """Memory for rows up to a length, beyond which other kernels or masks are used.

    Args:
        longest: Longest row; None for any.
        around: Alive while the layers run: masks, positions, inputs that layers share.
        shared: Alive beside a layer that is recomputed: gradients of what layers share, and states that others read.
        end: Kept for backward by the end of the decoder, its last norm.
        end_backward: Peak of its backward pass, what is kept and the gradients included.
        layers: Its layers.
    """

    longest: int | None
    around: Growth
    shared: Growth
    end: Growth
    end_backward: Peak
    layers: tuple[LayerGrowth, ...]

    def layer(self, kind: int, *, reached: bool) -> LayerGrowth:
        """The memory of a kind of layer.

        Args:
            kind: Its number.
            reached: Whether its input needs a gradient; if only the other case was measured, that is given.
        """
        same = [layer for layer in self.layers if layer.kind == kind]
        return next((layer for layer in same if layer.reached is reached), same[0])


@dataclass(frozen=True)
class Passes:
    """Measured passes of a model under one method and arithmetic.

    Args:
        kinds: The kind of every decoder layer, in order.
        regimes: Regimes, those of the shortest rows first; the last one is for any.
        trained: Trained tensors: rows, columns and number of each shape; a vector has one column.
        targets: Adapted modules by the last part of their name, and their number.
        gradient_from: Number of the first layer that has trained parameters; -1 if the embeddings have.
    """

    kinds: tuple[int, ...]
    regimes: tuple[Regime, ...]
    trained: tuple[tuple[int, int, int], ...]
    targets: tuple[tuple[str, int], ...]
    gradient_from: int

    def regime(self, row: int) -> Regime:
        """The regime of rows of a length."""
        return next((one for one in self.regimes if one.longest is not None and row <= one.longest), self.regimes[-1])


_PASSES = TypeAdapter(Passes)


def passes_to_dict(passes: Passes) -> dict[str, Any]:
    """Passes as JSON has them."""
    found: dict[str, Any] = _PASSES.dump_python(passes, mode="json")
    return found


def passes_from_dict(values: Mapping[str, Any]) -> Passes:
    """Passes from JSON.

    Raises:
        ValueError: If they are none, or incomplete.
    """
    try:
        found = _PASSES.validate_python(dict(values))
    except ValidationError as error:
        raise ValueError("not the passes of a model") from error
    for regime in found.regimes:
        if not set(found.kinds) <= {layer.kind for layer in regime.layers}:
            raise ValueError("kinds without layers")
    if not found.kinds or not found.regimes:
        raise ValueError("no layers")
    return found


#: Sizes that a growth is fitted to: rows, tokens of a row, bytes.
Sample = tuple[int, int, float]


def fit_layer(samples: Sequence[Sample]) -> Growth:
    """Growth of something of a layer, whose tensors all have a part for each row.

    Args:
        samples: Of ``(r, l)``, ``(2r, l)`` and ``(r, k)`` rows and tokens, in this order.
    """
    (rows, length, first), (_, _, double), (_, longer, third) = samples
    # Twice the rows: once what grows with them.
    tokens = double - first
    once = first - tokens
    pairs = (third - once) / (rows * longer) - tokens / (rows * length)
    per_pair = pairs / (longer - length)
    return Growth(_whole(once), _whole(tokens / (rows * length) - per_pair * length), _whole(per_pair))


def fit_scan(samples: Sequence[Sample]) -> tuple[Growth, ...]:
    """Growth of something of a layer that carries a state from token to token, which takes no pairs of tokens.

    Args:
        samples: Of ``(r, l)``, ``(2r, l)``, and ``(r, k)`` rows and tokens, with more of longer rows.

    Returns:
        A growth for each two lengths that follow each other; of a peak the larger counts, as different moments are the
        peak of short and of long rows.
    """
    (rows, length, first), (_, _, double), *longer = samples
    once = 2 * first - double
    by_row = [(length, (first - once) / rows), *((tokens, (value - once) / rows) for _, tokens, value in longer)]
    found = []
    for (short, less), (long, more) in itertools.pairwise(by_row):
        per_token = (more - less) / (long - short)
        found.append(Growth(_whole(once), _whole(per_token), per_row=_whole(less - per_token * short)))
    return tuple(found)


def fit_around(samples: Sequence[Sample]) -> Growth:
    """Growth of what is around the layers, some of which is for all rows.

    Args:
        samples: Of ``(r, l)``, ``(2r, l)``, ``(r, k)`` and ``(2r, k)`` rows and tokens and ``(r, m)``, in this order.
    """
    (rows, length, first), (_, _, double), (_, longer, third), (_, _, fourth), (_, longest, fifth) = samples
    # What grows with the rows, and the rest.
    by_rows = ((length, (double - first) / rows), (longer, (fourth - third) / rows))
    per_pair = (by_rows[1][1] / longer - by_rows[0][1] / length) / (longer - length)
    per_token = by_rows[0][1] / length - per_pair * length
    rest = [
        (tokens, value - rows * tokens * (per_token + tokens * per_pair))
        for tokens, value in ((length, first), (longer, third), (longest, fifth))
    ]
    (a, x), (b, y), (c, z) = rest
    per_square = ((z - x) / (c - a) - (y - x) / (b - a)) / (c - b)
    per_column = (y - x) / (b - a) - per_square * (a + b)
    once = x - a * per_column - a * a * per_square
    return Growth(_whole(once), _whole(per_token), _whole(per_pair), _whole(per_column), _whole(per_square))


def _whole(value: float) -> float:
    """A figure without the noise of its arithmetic."""
    return round(value, 6) + 0.0
