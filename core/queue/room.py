"""Room for a run: whether its device is free, and whether it fits into the GPU beside other programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from core.config.schema import Config
from core.errors import UserError
from core.memory.plan import Machine, Plan
from core.runs.control.devices import occupant, run_devices
from core.units import format_bytes


def device_taken(config: Config) -> str | None:
    """The run that has the device, live or about to free its memory, in words; None if the device is free. Asks the
    driver.

    Args:
        config: Configuration of the run.
    """
    try:
        found = occupant(run_devices(config))
    except UserError:
        return None  # its worker reports the problem with the device
    return None if found is None else f"the device, which {found} has"


def lack_of_room(config: Config) -> str | None:
    """Why a run has to wait for GPU memory, in words; None if it can be started.

    A run that would not even fit into an empty card is started, as is a run that cannot be planned: its worker reports
    the remedy, while waiting would not help. Blocks: asks the driver, and reads the model's headers.

    Args:
        config: Configuration of the run.
    """
    if config.hardware.device == "cpu":
        return None
    from core.memory.strategy import chosen_strategy
    from core.models.architecture.load import locate_model
    from core.models.sandboxed import load_architecture
    from core.runs.outlook.forecast import cards_here, this_machine

    try:
        machine = this_machine(config)
        total = _card_bytes(config) if machine.kind == "cuda" else None
        if total is None or machine.limit_bytes is None:
            return None
        architecture = load_architecture(locate_model(config.model.base))
        cards = cards_here(config)
        return judge(machine, total, lambda there: chosen_strategy(architecture, config, there, cards=cards).plan)
    except UserError:
        return None


def judge(machine: Machine, total: int, plan: Callable[[Machine], Plan]) -> str | None:
    """The reason to wait, from a plan for the free memory and a plan for all memory of the card.

    Args:
        machine: The machine with its present free memory.
        total: Bytes of the card.
        plan: Plans the run for a machine.

    Raises:
        UserError: If it cannot be planned.
    """
    now = plan(machine)
    if now.fits is not False:
        return None
    empty = plan(replace(machine, limit_bytes=total))
    if empty.fits is False or machine.limit_bytes is None:
        return None
    needed, free = format_bytes(now.needed_bytes), format_bytes(machine.limit_bytes)
    return f"{needed} of GPU memory, of which {free} are free while other programs use it"


def _card_bytes(config: Config) -> int | None:
    from core.hardware.card import find_card

    card = find_card(gpu=config.hardware.gpu)
    return card.memory_total if card is not None else None
