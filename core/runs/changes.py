"""Changes to a live run: their form in the event record, and in words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from core.units import exact_number

#: Sender of changes that a run was continued with.
KEPT = "checkpoint"
_CHANGE = re.compile(r"(\w{1,40}\.\w{1,40}) = ([^\s,]{1,40})(?=,|\s|$)")
#: Largest plausible value of an option; numbers that are greater or not finite are ignored.
_GREATEST = 1e300
#: Display names of options, and texts for options without a value.
_NOUNS = {
    "train.learning_rate": ("learning rate {}", ""),
    "eval.every_steps": ("evaluation every {} steps", "no evaluation by steps"),
    "checkpoint.every_steps": ("checkpoint every {} steps", "ten checkpoints in a run"),
}


def record(changes: Mapping[str, Any]) -> str:
    """Changes as the result of a ``control`` event: ``train.learning_rate = 0.0002, eval.every_steps = None``."""
    return ", ".join(f"{name} = {value}" for name, value in changes.items())


def recall(result: str) -> dict[str, Any]:
    """Parse the changes that a result records, ``section.key`` to a number or None; unknown parts are ignored."""
    found: dict[str, Any] = {}
    for name, text in _CHANGE.findall(result):
        if text == "None":
            found[name] = None
            continue
        try:
            value = json.loads(text)
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
    if value == 1 and name != "train.learning_rate":
        return there.format("").replace("  steps", " step")
    return there.format(exact_number(value) if isinstance(value, float) else value)
