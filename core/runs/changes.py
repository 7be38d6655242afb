"""Changes to a live run: their form in the event record, and in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from core.small_files import parse_json
from core.units import exact_number

#: Sender of changes that a run was continued with.
KEPT = "checkpoint"
_CHANGE = re.compile(r"(\w{1,40}\.\w{1,40}) = ([^\s,]{1,40})(?=,|\s|$)")
#: Largest plausible value of an option; numbers that are greater or not finite are ignored.
_GREATEST = 1e300
#: A time of day, or a span of it.
_CLOCK = re.compile(r"\d{1,2}:\d{2}(-\d{1,2}:\d{2})?")
#: Display names of options, and texts for options without a value.
_NOUNS = {
    "train.learning_rate": ("learning rate {}", ""),
    "eval.every_steps": ("evaluation every {} steps", "no evaluation by steps"),
    "checkpoint.every_steps": ("checkpoint every {} steps", "ten checkpoints in a run"),
    "hardware.temperature_limit_c": ("temperature limit {} °C", "no temperature limit"),
    "hardware.memory_temperature_limit_c": ("memory temperature limit {} °C", "no memory temperature limit"),
    "hardware.power_limit_w": ("average power limit {} W", "no limit of average power"),
    "hardware.host_memory_limit_percent": ("stop at {} % of the memory", "no limit of the memory"),
    "hardware.disk_free_min_gb": ("pause below {} GB of room", "no pause for want of room"),
    "night.deadline": ("done by {}", "no deadline"),
    "night.energy_kwh": ("with {} kWh", "no limit of energy"),
    "night.quiet_hours": ("quiet hours {}", "no quiet hours"),
    "night.quiet_power_w": ("{} W in quiet hours", "a pause in quiet hours"),
}


def record(changes: Mapping[str, Any]) -> str:
    """Changes as the result of a ``control`` event: ``train.learning_rate = 0.0002, eval.every_steps = None``."""
    return ", ".join(f"{name} = {value}" for name, value in changes.items())


def recall(result: str) -> dict[str, Any]:
    """Parse the changes that a result records, ``section.key`` to a number, a time of day or None; unknown parts are
    ignored."""
    found: dict[str, Any] = {}
    for name, text in _CHANGE.findall(result):
        if text == "None":
            found[name] = None
            continue
        if _CLOCK.fullmatch(text):
            found[name] = text
            continue
        try:
            value = parse_json(text)
        except ValueError:
            continue
        if type(value) in (int, float) and abs(value) <= _GREATEST:
            found[name] = value
    return found


def in_words(changes: Mapping[str, Any]) -> str:
    """Changes in words: ``learning rate 2e-4, evaluation every 50 steps``."""
    return ", ".join(_sentence(name, value) for name, value in changes.items())


def _sentence(name: str, value: Any) -> str:
    there, absent = _NOUNS.get(name, (f"{name} {{}}", f"{name} unset"))
    if value is None:
        return absent
    if value == 1 and name.endswith("every_steps"):
        return there.format("").replace("  steps", " step")
    return there.format(exact_number(value) if isinstance(value, float) else value)
