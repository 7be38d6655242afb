"""Options that differ between two recorded configurations, with both values in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from core.config.explain import shown
from core.config.schema import find_option


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
