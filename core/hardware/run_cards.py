"""Cards of a run: one for each of its processes on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping

from core.config.derived import ALL_GPUS
from core.config.schema import Config
from core.errors import UserError
from core.hardware.obstacle import CardUnusableError, Sight, find_obstacle, look
from core.hardware.visible import find_gpu, visible_cards


def process_cards(
    config: Config, sight: Sight | None = None, environment: Mapping[str, str] | None = None
) -> list[str | None]:
    """The card of each process of a run on this machine, by its UUID or number; None on a CPU, and for the only process
    of a run that names no card.

    Args:
        config: The configuration.
        sight: The driver's cards; None: it is asked if needed.
        environment: Environment variables; None: this process's.

    Raises:
        UserError: If a card is not there, or there are not enough.
    """
    named, wanted = config.distributed.named_gpus, config.distributed.processes
    if config.hardware.device == "cpu":
        return [None] * (wanted or 1)
    if not named:
        only = config.hardware.gpu
        if (wanted or 1) == 1:
            return [None] if only is None else [_named(sight or look(), only, "hardware.gpu")]
    sight = sight or look()
    if named and ALL_GPUS not in named:
        cards: list[str | None] = [_named(sight, name, "distributed.gpus") for name in named]
    else:
        seen = visible_cards(sight.cards, os.environ if environment is None else environment)
        cards = [card.uuid or str(card.index) for card in seen]
    if not cards and config.hardware.device == "auto":
        return [None] * (wanted or 1)  # on the CPU, as a run of one process would be
    if wanted is not None and wanted > len(cards):
        there = "There is 1 card" if len(cards) == 1 else f"There are {len(cards)} cards"
        raise UserError(
            f"{there} for {wanted} processes.",
            f"Set distributed.processes to {max(len(cards), 1)} at most, or name more in distributed.gpus.",
        )
    if not cards:
        raise UserError("There is no card for the run.", "Look at 'localtune-tui doctor'.")
    return cards[: wanted or len(cards)]


def _named(sight: Sight, name: str, option: str) -> str | None:
    """The card that an option names."""
    if (obstacle := find_obstacle(sight, None, gpu=name)) is not None:
        raise CardUnusableError(obstacle.message.replace("hardware.gpu", option), obstacle.hint)
    card = find_gpu(sight.cards, name)
    return None if card is None else card.uuid or str(card.index)
