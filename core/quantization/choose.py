"""Which layers stay in 16 bit: those whose quantization costs most for what it saves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from core.quantization.result import FINE, LayerCost

#: Choices that are measured at most, each of more layers than the one before.
_TRIES = 3
#: Part of the cost that is left with enough layers in 16 bit, and how much more than that is taken for it.
_HALF, _NEARLY = 0.5, 1.1


def choose_layers(
    layers: Sequence[LayerCost], whole: float, free_bytes: int | None, measure: Callable[[tuple[int, ...]], float]
) -> tuple[int, ...]:
    """The layers to keep in 16 bit so that about half of the cost is gone, or it is fine.

    What layers cost alone does not add up to what they cost together, so each choice is measured, and more are taken
    where it is not enough.

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
    goal = max(_HALF * whole, FINE)
    share = 1 - goal / whole
    best: tuple[int, ...] = ()
    for _ in range(_TRIES):
        chosen = most_costly(layers, share, free_bytes)
        if chosen == best:
            break
        best, left = chosen, measure(chosen)
        if left <= goal * _NEARLY:
            break
        share = min(share * (whole - goal) / max(whole - left, share * whole / 4), 1.0)
    return best


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
