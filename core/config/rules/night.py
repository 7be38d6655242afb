"""Rules of ``night`` and ``parking``: times of day."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from core.config.clock import parse_span, parse_time
from core.config.facts import Facts
from core.config.rules.rule import Findings, rule
from core.config.schema import Config
from core.errors import UserError


def _unread(name: str, texts: Iterable[str], read: Callable[[str], object]) -> Findings:
    """Times of day that are none."""
    for text in texts:
        try:
            read(text)
        except UserError as error:
            yield f"{name}: {error.message}", error.hint


@rule("error", "night.deadline")
def deadline_is_read(config: Config, _: Facts) -> Findings:
    """night.deadline is a time of day, as "07:00"."""
    yield from _unread("night.deadline", filter(None, [config.night.deadline]), parse_time)


@rule("error", "night.quiet_hours")
def quiet_hours_are_read(config: Config, _: Facts) -> Findings:
    """night.quiet_hours is a span of the day, as "23:00-07:00"."""
    yield from _unread("night.quiet_hours", filter(None, [config.night.quiet_hours]), parse_span)


@rule("error", "parking.hours")
def parking_hours_are_read(config: Config, _: Facts) -> Findings:
    """parking.hours are spans of the day, as "18:00-23:00"."""
    yield from _unread("parking.hours", config.parking.spans, parse_span)


@rule("error", "night.quiet_power_w", "night.quiet_hours")
def quiet_power_needs_hours(config: Config, _: Facts) -> Findings:
    """night.quiet_power_w needs night.quiet_hours."""
    if config.night.quiet_power_w is not None and config.night.quiet_hours is None:
        yield "night.quiet_power_w is set, but there are no quiet hours.", 'Set night.quiet_hours = "23:00-07:00".'
