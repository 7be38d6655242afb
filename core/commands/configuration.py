"""The configuration of a run, read and checked against this machine; its warnings are printed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from core import deepspeed, paths
from core.commands.common import note
from core.config.choices import Aim
from core.config.document import ConfigDocument
from core.config.facts import Facts, find_missing_trackers, read_shape
from core.config.schema import Config
from core.directories import free_bytes
from core.governor.check import unkept_here
from core.hardware.card import Card, find_card
from core.memory.planner import disk_need
from core.presets.begin import suitable_preset
from core.presets.choose import Choice
from core.presets.library import fill_in, find_preset

#: The name for an automatically chosen preset.
AUTO = "auto"


def read_config(
    path: Path, assignments: Iterable[str] = (), preset: str | None = None, *, is_for_here: bool = True
) -> Config:
    """Read, override and check a configuration file; warnings of the rules between options are printed as notes.

    Args:
        path: The TOML file.
        assignments: ``section.key=value`` overrides.
        preset: Name of a preset, or ``auto``, for the options that neither the file nor the overrides set.
        is_for_here: Whether this machine trains it, so that its meters must support the limits.

    Raises:
        UserError: One sentence that names file, line and key.
    """
    document = ConfigDocument.load(path)
    document.apply(assignments)
    return check_config(document, preset, is_for_here=is_for_here)


def check_config(document: ConfigDocument, preset: str | None = None, *, is_for_here: bool = True) -> Config:
    """Check a configuration as :func:`read_config` does."""
    config = document.validate()
    if preset is not None:
        config = _fill(document, config, preset)
    facts = gather_facts(config)
    for remark in document.remarks(facts if is_for_here else facts.elsewhere()):
        complaint = document.complaint(remark)
        if remark.level == "error":
            raise complaint
        note(f"warning: {complaint}")
    return config


def _fill(document: ConfigDocument, config: Config, name: str) -> Config:
    choice = choose(name, config)
    written = document.get("train.max_length") is not None
    changed = fill_in(document, choice.preset)
    if choice.max_length is not None and not written:
        document.set("train.max_length", choice.max_length)
    note(f"preset {choice.why} It sets {', '.join(changed) or 'nothing new'}.")
    return document.validate()


def choose(name: str, config: Config, aim: Aim = "balanced", gpu_memory: int | None = None) -> Choice:
    """The preset with a name, or for ``auto`` the best fit for the model, the card and the first rows of the data.

    Args:
        name: Its name, or ``auto``.
        config: A checked configuration, its data readable.
        aim: The aim of ``auto``.
        gpu_memory: As for :func:`find_card_of`.

    Raises:
        UserError: If there is none with that name.
    """
    if name != AUTO:
        preset = find_preset(name)
        return Choice(preset, None, f"{preset.name}: {preset.about}")
    return suitable_preset(config.model.base, find_card_of(config, gpu_memory), config, aim=aim)


def find_card_of(config: Config, gpu_memory: int | None = None) -> Card | None:
    """The card that a configuration trains on; None for the CPU.

    Args:
        config: The configuration.
        gpu_memory: Bytes of a card that is elsewhere; None for the card of this machine.
    """
    if gpu_memory is not None:
        return Card("card", gpu_memory, None)
    return find_card(gpu=config.hardware.gpu) if config.hardware.device != "cpu" else None


def gather_facts(config: Config) -> Facts:
    """The facts about a run that this machine provides before the start.

    The card is queried only where the configuration depends on it, as a driver may take its time.
    """
    asks = config.train.precision == "bf16" and config.hardware.device != "cpu"
    card = find_card(gpu=config.hardware.gpu) if asks else None
    model = read_shape(config.model.base)
    return Facts(
        model=model,
        device="cuda" if card is not None else None,
        bf16=card.has_bf16 if card is not None else None,
        device_bytes=card.memory_total if card is not None else None,
        free_bytes=free_bytes(paths.runs_dir()),
        missing_trackers=find_missing_trackers() if config.tracking.tools else None,
        has_deepspeed=deepspeed.is_installed() if config.distributed.strategy == "deepspeed" else None,
        disk_need=partial(disk_need, model),
        unkept=unkept_here,
    )
