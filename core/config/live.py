"""Changes of options: in a live run, and between two recorded configurations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from core.config.explain import explain, shown
from core.config.schema import Config, find_option
from core.config.values import parse_value
from core.errors import UserError

#: Options of the training, as ``section.key``.
TRAINING = ("train.learning_rate", "eval.every_steps", "checkpoint.every_steps")
#: Limits of the governor.
GOVERNED = (
    *("hardware.temperature_limit_c", "hardware.memory_temperature_limit_c", "hardware.power_limit_w"),
    *("hardware.host_memory_limit_percent", "hardware.disk_free_min_gb"),
    *("night.deadline", "night.energy_kwh", "night.quiet_hours", "night.quiet_power_w"),
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


@dataclass(frozen=True)
class ChangedOption:
    """An option that differs.

    Args:
        name: ``section.key``.
        before: Its value as JSON; None where it was not set.
        now: The same of now.
    """

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        """The change in words: ``train.seed changed from 42 (the default) to 7``."""
        if self._said(self.before) is None:
            return f"{self.name} was not set and is now {self.now_in_words}"
        if self._said(self.now) is None:
            return f"{self.name} was {self.before_in_words} and is no longer set"
        return f"{self.name} changed from {self.before_in_words} to {self.now_in_words}"

    @property
    def before_in_words(self) -> str:
        """The former value."""
        return self._said(self.before) or "not set"

    @property
    def now_in_words(self) -> str:
        """The present value."""
        return self._said(self.now) or "not set"

    def _said(self, value: Any) -> str | None:
        """A value in words; None where there is neither one nor a default."""
        if value is not None:
            return shown(value)
        option = find_option(self.name)
        return None if option is None or option.default is None else f"{shown(option.default)} (the default)"


def changed_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[ChangedOption]:
    """The options that differ, by name.

    Args:
        before: Sections of options as JSON, without options at their default; anything but a section is skipped.
        now: The same of now.
    """
    then, here = _flat(before), _flat(now)
    for name in sorted(then.keys() | here.keys()):
        if then.get(name) != here.get(name):
            yield ChangedOption(name, then.get(name), here.get(name))


def _flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{key}": value
        for section, options in sections.items()
        if isinstance(options, dict)
        for key, value in options.items()
    }
