"""Rules of ``night``, ``parking`` and ``tracking``: times of day, limits of the run's device, and trackers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from core.config.clock import parse_span, parse_time
from core.config.facts import Facts
from core.config.rules import Findings, Rule, rule
from core.config.schema import Config
from core.errors import UserError
from core.text import one_line


def _unread(name: str, texts: Iterable[str], read: Callable[[str], object]) -> Findings:
    """Invalid times of day."""
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


def _is_kept(option: str, requirement: str) -> Rule:
    """A rule for an option that the run's device may not support."""

    def check(config: Config, facts: Facts) -> Findings:
        yield from ((found.sentence, found.hint) for found in facts.unkept(config) if found.option == option)

    check.__doc__ = requirement
    return rule("error", option)(check)


deadline_is_kept = _is_kept("night.deadline", "Something is trained before night.deadline.")
temperature_is_told = _is_kept(
    "hardware.temperature_limit_c", "hardware.temperature_limit_c needs a device that tells its temperature."
)
memory_temperature_is_told = _is_kept(
    "hardware.memory_temperature_limit_c",
    "hardware.memory_temperature_limit_c needs a device that tells the temperature of its memory.",
)
power_is_told = _is_kept("hardware.power_limit_w", "hardware.power_limit_w needs a device that reports its power.")
energy_is_told = _is_kept("night.energy_kwh", "night.energy_kwh needs a device that reports its power.")
quiet_power_is_told = _is_kept("night.quiet_power_w", "night.quiet_power_w needs a device that reports its power.")


@rule("error", "tracking.project")
def project_is_a_name(config: Config, _: Facts) -> Findings:
    """tracking.project is a name that the trackers take: without / \\ # ? % : and at most 128 characters."""
    project = config.tracking.project
    if set(project) & set("/\\#?%:") or len(project) > 128:
        yield (
            f"tracking.project is {one_line(project, 60)}, and the trackers do not take it as a name.",
            "Leave out / \\ # ? % : and keep it below 128 characters.",
        )


@rule("warning", "tracking.wandb_mode", "tracking.tools")
def online_is_tracked(config: Config, _: Facts) -> Findings:
    """tracking.wandb_mode = online goes with wandb among tracking.tools."""
    if config.tracking.wandb_mode == "online" and "wandb" not in config.tracking.asked:
        yield "tracking.wandb_mode is online, and wandb is not among tracking.tools: nothing is sent.", "Add it."


@rule("warning", "tracking.tools")
def trackers_are_installed(config: Config, facts: Facts) -> Findings:
    """The trackers of tracking.tools are installed."""
    for tool in sorted(config.tracking.asked & (facts.missing_trackers or frozenset())):
        yield (
            f"tracking.tools names {tool}, which is not installed: the run does without it.",
            f"pip install 'localtune-tui[{tool}]', now or later: 'localtune-tui track RUN' sends what was missed.",
        )
