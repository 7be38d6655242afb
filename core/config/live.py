"""Options that may be changed during a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from core.config.explain import explain
from core.config.schema import Config, find_option
from core.config.values import parse_value
from core.errors import UserError

#: Options of the training, as ``section.key``.
TRAINING = ("train.learning_rate", "eval.every_steps", "checkpoint.every_steps")
#: Limits of the governor.
GOVERNED = (
    "hardware.temperature_limit_c",
    "hardware.memory_temperature_limit_c",
    "hardware.power_limit_w",
    "hardware.host_memory_limit_percent",
    "hardware.disk_free_min_gb",
    "night.deadline",
    "night.energy_kwh",
    "night.quiet_hours",
    "night.quiet_power_w",
)
#: All options that may be changed.
CHANGEABLE = (*TRAINING, *GOVERNED)


def read_changes(config: Config, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Requested changes of a live run as validated values; all of them or none.

    Args:
        config: The configuration that the run was started with.
        asked: ``section.key`` to value; a text is parsed as a person types it, None is no value.

    Raises:
        UserError: If nothing is requested, an option cannot be changed, or a value is not valid for its option.
    """
    if not asked:
        raise UserError("Nothing was named to set.", f"These can be: {', '.join(CHANGEABLE)}.")
    changes: dict[str, Any] = {}
    for name, value in asked.items():
        option = find_option(name)
        if option is None or name not in CHANGEABLE:
            raise UserError(f"{name} cannot be changed while a run is on.", f"These can: {', '.join(CHANGEABLE)}.")
        changes[name] = parse_value(option, value) if isinstance(value, str) else value
    try:
        changed(config, changes)
    except ValidationError as error:
        sentence, hint = next(iter(explain(error).values()))
        raise UserError(sentence, hint) from error
    return changes


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """The configuration with some values replaced.

    Args:
        config: The configuration to start from.
        changes: ``section.key`` to value.

    Raises:
        pydantic.ValidationError: If a value is not valid for its option.
    """
    dumped = config.model_dump()
    for name, value in changes.items():
        section, _, key = name.partition(".")
        dumped[section][key] = value
    return Config.model_validate(dumped)
