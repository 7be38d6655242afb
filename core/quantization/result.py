"""Cost of four bits: measured numbers, their summary in a sentence, and their table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from core.units import format_bytes, format_number

#: Mean divergence in nats up to which training makes up for four bits.
FINE = 0.05
#: Most measured rows by default.
ROWS = 16
#: Characters beyond which layers are counted in a sentence and not named.
_LONGEST = 40
#: Decimals of a divergence in a sentence.
_DECIMALS = 2
#: Divergences below the first are not distinguished in a sentence, below the second in the table, in nats.
_LEAST, _LEAST_OF_LAYER = 0.001, 0.00005
#: Where the rows are from.
Data = Literal["eval", "held_out", "training"]


@dataclass(frozen=True)
class Figures:
    """A quantized base against the base in 16 bit, over the supervised tokens of the rows."""

    loss: float
    """Mean negative log-likelihood, in nats."""
    kl: float
    """Mean Kullback-Leibler divergence of the next token, in nats, of the base in 16 bit from this one."""
    top1: float
    """Share of tokens with the same likeliest token."""


@dataclass(frozen=True)
class LayerCost:
    """A decoder layer that alone is in 4 bits."""

    name: str
    """In the model: ``model.layers.0``."""
    kl: float
    """As :attr:`Figures.kl`."""
    bytes: int
    """Additional bytes in 16 bit."""


@dataclass(frozen=True)
class Kept:
    """Layers that stay in 16 bit, and the measurement of the base in 4 bits with them."""

    layers: tuple[int, ...]
    """Their places among :attr:`QuantizationCost.layers`."""
    patterns: tuple[str, ...]
    """For ``model.keep_16bit``."""
    bytes: int
    """Additional bytes in 16 bit."""
    figures: Figures


@dataclass(frozen=True)
class QuantizationCost:
    """The cost of 4 bits on some rows, for the whole base and for each layer alone."""

    rows: int
    tokens: int
    """Supervised ones."""
    data: Data
    device: str
    """``cpu`` or ``cuda``."""
    precision: str
    """Precision of the arithmetic and of weights that are not in 4 bits: ``bf16``, ``fp16`` or ``fp32``."""
    loss_16bit: float
    whole: Figures
    """Of the base in 4 bits."""
    layers: tuple[LayerCost, ...]
    kept: Kept | None
    """The layers that pay most in 16 bit; None if four bits are fine, or no layer would fit."""
    free_bytes: int | None
    """Memory that layers in 16 bit were allowed to take; None if that was not known."""
    seconds: float
    peak_bytes: int
    """Highest memory of the measurement: of the card, or of the process on a CPU."""
    keep_16bit: tuple[str, ...] = ()
    """Patterns of the configuration: layers already in 16 bit when it was measured."""

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON."""
        return asdict(self) | {"sentence": sentence(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> QuantizationCost:
        """From :meth:`to_dict`.

        Raises:
            ValueError: If it is invalid.
        """
        from pydantic import TypeAdapter  # --help needs this module without it

        return TypeAdapter(QuantizationCost).validate_python(data)


def sentence(cost: QuantizationCost) -> str:
    """The result in a sentence: ``4 bits cost 0.02 nats on your rows: fine.``

    Its numbers for layers in 16 bit were measured with these layers in 16 bit.
    """
    rows = "your rows" if cost.data != "training" else "your training rows, as none are held out"
    begin = f"4 bits cost {_nats(cost.whole.kl)} nats on {rows}"
    if cost.whole.kl <= FINE:
        return f"{begin}: fine."
    if cost.kept is None:
        why = "and there is no memory free to keep layers in 16 bit" if cost.free_bytes is not None else ""
        return f"{begin}{', ' if why else ''}{why}."
    layers = name_layers(cost.kept.layers)
    if len(layers) > _LONGEST:
        layers = f"{len(cost.kept.layers)} of {len(cost.layers)} layers"
    more = f"{format_bytes(cost.kept.bytes)} more {_effect(cost.whole.kl, cost.kept.figures.kl)}"
    return f"{begin}; keep {layers} in 16 bit: {more}."


def kept_sentence(cost: QuantizationCost) -> str:
    """The result in a sentence if its layers are in 16 bit already."""
    if cost.kept is None:
        return sentence(cost)
    rows = "your rows" if cost.data != "training" else "your training rows"
    layers = f"{len(cost.kept.layers)} of {len(cost.layers)} layers"
    return (
        f"4 bits cost {_nats(cost.kept.figures.kl)} nats on {rows} with {layers} in 16 bit; "
        f"without them {_nats(cost.whole.kl)}."
    )


def _effect(before: float, after: float) -> str:
    """The effect of keeping layers: ``halves it`` if the measurement says so."""
    if before and 0.45 <= after / before <= 0.55:
        return f"halves it ({_nats(after)})"
    return f"makes it {_nats(after)}"


def name_layers(layers: Sequence[int]) -> str:
    """Layers by number: ``layer 3``, ``layers 0, 1 and 31``, ``layers 0 to 4 and 30``."""
    parts: list[str] = []
    ordered = sorted(layers)
    place = 0
    while place < len(ordered):
        end = place
        while end + 1 < len(ordered) and ordered[end + 1] == ordered[end] + 1:
            end += 1
        if end - place >= 2:
            parts.append(f"{ordered[place]} to {ordered[end]}")
        else:
            parts += [str(each) for each in ordered[place : end + 1]]
        place = end + 1
    words = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return f"layer{'s' if len(ordered) > 1 else ''} {words}"


@dataclass(frozen=True)
class LayerLine:
    """A layer as a line of a table."""

    text: str
    """Its number, nats, additional bytes in 16 bit, and a word if it is kept; of constant width."""
    share: float
    """Length of its bar, from 0 to 1: its cost against that of the costliest layer, or against an even share of
    :data:`FINE` where that is more; 0 if the table shows no cost."""
    is_kept: bool
    """True if it is worth 16 bit."""


#: Title of a table of :class:`LayerLine`, and its head.
TABLE = "Each layer alone in 4 bits: what that costs, and what the layer takes more in 16 bit."
HEAD = f"{'layer':>5}  {'nats':>7}  {'16 bit':>9}  {'':<6}"


def layer_lines(cost: QuantizationCost) -> list[LayerLine]:
    """The layers, most costly first."""
    kept = set(cost.kept.layers if cost.kept is not None else ())
    # Layers that cost next to nothing have short bars.
    longest = max((FINE / len(cost.layers), *(layer.kl for layer in cost.layers))) if cost.layers else FINE
    lines = []
    for index, layer in sorted(enumerate(cost.layers), key=lambda item: -item[1].kl):
        # Rounding can make a divergence of nothing negative.
        nats = layer.kl if layer.kl >= _LEAST_OF_LAYER else 0.0
        more = f"+{format_bytes(layer.bytes)}"
        text = f"{index:>5}  {nats:>7.4f}  {more:>9}  {'keep' if index in kept else '':<6}"
        lines.append(LayerLine(text, nats / longest, index in kept))
    return lines


def facts(cost: QuantizationCost) -> list[str]:
    """The measured numbers, line by line."""
    what = {"eval": "rows of data.eval", "held_out": "held-out rows", "training": "training rows"}[cost.data]
    lines = [
        f"{'rows':<10} {cost.rows} {what}, {cost.tokens} supervised tokens",
        f"{'16 bit':<10} loss {cost.loss_16bit:.4f}  ({cost.precision} on the {cost.device})",
        f"{'4 bits':<10} {_figures(cost.whole)}",
    ]
    if cost.kept is not None:
        lines.append(f"{'kept':<10} {_figures(cost.kept.figures)}")
        lines.append(f"{'':<10} {name_layers(cost.kept.layers)} in 16 bit")
    lines.append(f"{'took':<10} {format_number(cost.seconds)} s, {format_bytes(cost.peak_bytes)} at most")
    return lines


def advice(cost: QuantizationCost) -> str:
    """The advice, in a sentence; empty if there is none."""
    if cost.kept is None:
        return ""
    listed = ", ".join(f'"{pattern}"' for pattern in cost.kept.patterns)
    return f'Set model.keep_16bit = "auto", or [{listed}].'


def _figures(figures: Figures) -> str:
    return f"loss {figures.loss:.4f}  divergence {figures.kl:.4f} nats  same token {figures.top1:.1%}"


def _nats(value: float) -> str:
    if value < _LEAST:
        return f"less than {_LEAST}"
    return f"{value:.{_DECIMALS}f}" if value >= 0.005 else f"{value:.1g}"


#: Most measured choices.
_TRIES = 4
#: Part of the cost that remains with enough layers in 16 bit, and the accepted range around it.
_HALF = 0.5
_ABOUT = (0.85, 1.1)


def choose_layers(
    layers: Sequence[LayerCost], whole: float, free_bytes: int | None, measure: Callable[[tuple[int, ...]], float]
) -> tuple[int, ...]:
    """The layers to keep in 16 bit so that about half of the cost is gone, or it is fine.

    Costs of single layers do not add up to their joint cost. So each choice is measured, and layers are added or
    dropped until it is enough and not too much.

    Args:
        layers: Cost of each layer alone.
        whole: Divergence with all of them in 4 bits, in nats.
        free_bytes: Bytes that they may take together; None if unknown.
        measure: The divergence with some layers in 16 bit.

    Returns:
        Their places, ascending; none if four bits are fine, or nothing fits.
    """
    if whole <= FINE:
        return ()
    goal = _goal(whole)
    share = 1 - goal / whole
    found: dict[tuple[int, ...], float] = {}
    below, above = (0.0, whole), None
    for _ in range(_TRIES):
        chosen = most_costly(layers, share, free_bytes)
        if not chosen or chosen in found:
            break
        found[chosen] = left = measure(chosen)
        if _ABOUT[0] * goal <= left <= _ABOUT[1] * goal:
            break
        if left > goal:
            below = (share, left)
        else:
            above = (share, left)
        if above is None:
            # Extrapolated linearly.
            share = min(share * (whole - goal) / max(whole - left, whole / 20), 1.0)
        else:
            share = below[0] + (above[0] - below[0]) * (below[1] - goal) / (below[1] - above[1])
    enough = [chosen for chosen, left in found.items() if is_enough(whole, left)]
    return min(enough, key=len) if enough else min(found, key=lambda chosen: found[chosen], default=())


def is_enough(whole: float, left: float) -> bool:
    """True if about half of the cost is gone, or the rest is negligible.

    Args:
        whole: Divergence with all layers in 4 bits, in nats.
        left: Divergence with some in 16 bit.
    """
    return left <= _ABOUT[1] * _goal(whole)


def _goal(whole: float) -> float:
    return max(_HALF * whole, FINE)


def most_costly(layers: Sequence[LayerCost], share: float, free_bytes: int | None) -> tuple[int, ...]:
    """Layers that together make a share of the summed single costs, highest cost per byte first.

    Args:
        layers: Cost of each layer alone.
        share: From 0 to 1.
        free_bytes: As for :func:`choose_layers`.

    Returns:
        Their places, ascending; fewer where no more fit.
    """
    wanted = share * sum(max(layer.kl, 0.0) for layer in layers)
    order = sorted(
        (place for place, layer in enumerate(layers) if layer.kl > 0 and layer.bytes > 0),
        key=lambda place: -layers[place].kl / layers[place].bytes,
    )
    chosen: list[int] = []
    gone, taken = 0.0, 0
    for place in order:
        if gone >= wanted:
            break
        if free_bytes is None or taken + layers[place].bytes <= free_bytes:
            chosen.append(place)
            gone, taken = gone + layers[place].kl, taken + layers[place].bytes
    return tuple(sorted(chosen))
