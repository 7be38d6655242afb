"""Environment variables that torch and its family need before they are imported."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from core.config.schema import Config
from core.errors import UserError
from core.hardware.drivers import allocator_defaults, is_wsl
from core.hardware.obstacle import find_obstacle, look, process_cards
from core.hardware.visible import ORDER, VISIBLE, find_gpu
from core.hub.job import OFFLINE

#: Offline and silent: no hub look-ups, no telemetry, no tracker that phones home.
_PRIVATE = {**OFFLINE, "WANDB_MODE": "offline"}
_DEFAULTS = {
    # The rows are tokenized before any fork could be a problem, and the library's warning about it is noise.
    "TOKENIZERS_PARALLELISM": "false",
    # Cards are numbered as nvidia-smi and NVML number them, so that the plan and the run speak of the same one.
    ORDER: "PCI_BUS_ID",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Progress is told by events; bars would fill the log.
    "TQDM_DISABLE": "1",
}


def prepare() -> None:
    """Set the variables; the private ones always, the others where the user has not."""
    os.environ.update(_PRIVATE)
    for name, value in (_DEFAULTS | allocator_defaults(os.environ, wsl=is_wsl())).items():
        os.environ.setdefault(name, value)
    # With the package "kernels", importing bitsandbytes fetches native code from a hub. Here it counts as not
    # installed, and bitsandbytes' advice to install it is not passed on.
    sys.modules["kernels"] = None  # type: ignore[assignment]
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Notes of libraries to one another; in a user's log they read like something to act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|torch|peft)\b")


def choose_gpu(gpu: str | None) -> None:
    """Leave CUDA one card, before anything asks it for its cards.

    Args:
        gpu: ``hardware.gpu``; None leaves the environment as it is.

    Raises:
        UserError: If there is no such card, or it is hidden.
    """
    if gpu is None:
        return
    sight = look()
    if (obstacle := find_obstacle(sight, None, gpu=gpu)) is not None:
        raise obstacle
    if (chosen := find_gpu(sight.cards, gpu)) is not None:
        os.environ[VISIBLE] = chosen.uuid or str(chosen.index)


def choose_card(config: Config, number: int = 0) -> None:
    """Leave CUDA the card of one of the processes of a run on this machine.

    Args:
        config: Of the run.
        number: Of the process on this machine.

    Raises:
        UserError: If there is no such card, or it is hidden.
    """
    cards = process_cards(config)
    if number >= len(cards):
        raise UserError(
            f"There are {len(cards)} cards for the run here, and this is its process {number + 1}.",
            "Start as many processes on each machine as it has cards.",
        )
    if (card := cards[number]) is not None:
        os.environ[VISIBLE] = card
