"""Environment variables that torch and its libraries need before they are imported."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from core.config.schema import Config
from core.errors import UserError
from core.hardware.drivers import allocator_defaults, fixed_segments_reason, installed_build, is_wsl
from core.hardware.obstacle import find_obstacle, look, only_card, process_cards
from core.hardware.visible import ORDER, find_gpu
from core.hub.job import OFFLINE

#: Offline and private: no hub look-ups, no telemetry, no online trackers.
_PRIVATE = {**OFFLINE, "WANDB_MODE": "offline"}
_DEFAULTS = {
    # Rows are tokenized before any fork, so the library's warning about forks is noise.
    "TOKENIZERS_PARALLELISM": "false",
    # nvidia-smi's and NVML's numbering of cards, so that plan and run mean the same card.
    ORDER: "PCI_BUS_ID",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Progress is reported by events; bars would fill the log.
    "TQDM_DISABLE": "1",
}
#: Flash attention on AMD's consumer cards; without it torch keeps all scores (pytorch/pytorch issue 134498).
_ROCM = {"TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL": "1"}


def prepare() -> None:
    """Set the private variables, and the others unless the user has set them."""
    os.environ.update(_PRIVATE)
    build = installed_build()
    defaults = _DEFAULTS | allocator_defaults(os.environ, fixed_segments_reason(build, wsl=is_wsl()))
    if build is not None and build.hip:
        defaults |= _ROCM
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # With the package "kernels", importing bitsandbytes downloads native code. Mark it as not installed, and silence
    # the advice to install it.
    sys.modules["kernels"] = None  # type: ignore[assignment]
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Libraries' notes to each other would look like advice in a user's log.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|torch|peft)\b")


def choose_gpu(gpu: str | None) -> None:
    """Make only one card visible to CUDA, before anything initializes it.

    Args:
        gpu: Value of ``hardware.gpu``; None leaves the environment unchanged.

    Raises:
        UserError: If there is no such card, or it is hidden.
    """
    if gpu is None:
        return
    sight = look()
    if (obstacle := find_obstacle(sight, None, gpu=gpu)) is not None:
        raise obstacle
    if (chosen := find_gpu(sight.cards, gpu)) is not None:
        os.environ.update(only_card(chosen.uuid or str(chosen.index), sight))


def choose_card(config: Config, number: int = 0) -> None:
    """Make only the card of one of a run's processes visible to CUDA.

    Args:
        config: Of the run.
        number: Local rank of the process.

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
        os.environ.update(only_card(card))
