"""Which layers stay in 16 bit: those whose quantization costs most for what it saves."""

from __future__ import annotations

from collections.abc import Sequence

from core.quantization.result import FINE, LayerCost


def choose_layers(layers: Sequence[LayerCost], whole: float, free_bytes: int | None) -> tuple[int, ...]:
    """The layers to keep in 16 bit so that about half of the cost is gone, or it is fine.

    What layers cost alone is taken to add up; the caller measures what the choice really brings.

    Args:
        layers: What each costs alone.
        whole: Divergence with all of them in 4 bits, in nats.
        free_bytes: What they may take together; None where that is not known.

    Returns:
        Their places, ascending; none where four bits are fine, or nothing fits.
    """
    total = sum(max(layer.kl, 0.0) for layer in layers)
    if whole <= FINE or total <= 0:
        return ()
    wanted = total * (1 - max(0.5, FINE / whole))
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
