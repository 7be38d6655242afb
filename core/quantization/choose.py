"""Which layers stay in 16 bit: those whose quantization costs most for what it saves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from core.quantization.result import FINE, LayerCost

#: Choices that are measured at most.
_TRIES = 4
#: Part of the cost that is left with enough layers in 16 bit, and from where to where the cost counts as that.
_HALF = 0.5
_ABOUT = (0.85, 1.1)


def choose_layers(
    layers: Sequence[LayerCost], whole: float, free_bytes: int | None, measure: Callable[[tuple[int, ...]], float]
) -> tuple[int, ...]:
    """The layers to keep in 16 bit so that about half of the cost is gone, or it is fine.

    What layers cost alone does not add up to what they cost together, so each choice is measured, and more or fewer are
    taken where it is not enough or too much.

    Args:
        layers: What each costs alone.
        whole: Divergence with all of them in 4 bits, in nats.
        free_bytes: What they may take together; None where that is not known.
        measure: The divergence with some layers in 16 bit.

    Returns:
        Their places, ascending; none where four bits are fine, or nothing fits.
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
            # As if the cost fell on as it has fallen so far.
            share = min(share * (whole - goal) / max(whole - left, whole / 20), 1.0)
        else:
            share = below[0] + (above[0] - below[0]) * (below[1] - goal) / (below[1] - above[1])
    enough = [chosen for chosen, left in found.items() if is_enough(whole, left)]
    return min(enough, key=len) if enough else min(found, key=lambda chosen: found[chosen], default=())


def is_enough(whole: float, left: float) -> bool:
    """Whether about half of the cost is gone, or it is fine.

    Args:
        whole: Divergence with all layers in 4 bits, in nats.
        left: Divergence with some in 16 bit.
    """
    return left <= _ABOUT[1] * _goal(whole)


def _goal(whole: float) -> float:
    return max(_HALF * whole, FINE)


def most_costly(layers: Sequence[LayerCost], share: float, free_bytes: int | None) -> tuple[int, ...]:
    """Layers that together make a share of what all of them cost alone, those first that cost most for their bytes.

    Args:
        layers: What each costs alone.
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


def layer_pattern(name: str) -> str:
    """What ``model.keep_16bit`` has for a whole layer.

    Args:
        name: Of the layer in the model: ``model.layers.0``.
    """
    return f"{name}.*"
