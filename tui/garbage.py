"""Garbage collection: pauses that would hold up a key are kept short."""

from __future__ import annotations

import gc

#: Allocations, and collections of the younger generation, before a generation is collected.
_THRESHOLDS = (10_000, 20, 20)


def spare_the_screen() -> None:
    """Leave the widgets that live as long as the app to themselves: to look through all of them takes 40 to 80 ms.

    For the process of an app alone: what is garbage now is never freed.
    """
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
