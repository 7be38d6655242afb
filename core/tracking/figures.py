"""Metrics of an event for a tracker: numbers with a name, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeGuard

from core.config.schema import Config
from core.runs.record.events import INTEGER_LIMIT, EvalEvent, Event, HardwareEvent, MemoryEvent, ProbeEvent, StepEvent

_STEP = ("loss", "lr", "grad_norm", "epoch", "tokens", "supervised_tokens", "seconds", "tokens_per_second")
_EVAL = ("loss", "perplexity", "seconds", "exact_match", "valid_json", "rows", "probe_loss")
_DEVICE = ("temperature_c", "memory_temperature_c", "memory_used", "utilization", "power_w", "fan", "clock")
#: The form of a device's name; a tracker makes a series of each name.
_DEVICE_NAME = re.compile(r"[a-z]{1,16}([:-][0-9]{1,4})?")
#: Sections of the configuration that are sent to a tracker; data and prompts are not.
_TOLD = ("method", "train", "memory")


def figures(event: Event) -> dict[str, float]:
    """The metrics of an event by name, as ``train/loss``; empty for an event that has none.

    Units are those of the events: seconds, bytes, °C, percent, W, MHz. Unreported values are left out.
    """
    if isinstance(event, StepEvent):
        return _numbers("train", event, _STEP)
    if isinstance(event, EvalEvent):
        return _numbers("eval", event, _EVAL)
    if isinstance(event, ProbeEvent):
        return {"eval/probe_loss": float(event.loss)}
    if isinstance(event, MemoryEvent):
        if not _DEVICE_NAME.fullmatch(event.device):
            return {}
        name = f"memory/{event.device.replace(':', '-')}"
        return _numbers(name, event, ("peak_bytes", "rehearsed_bytes", "limit_bytes"))
    if isinstance(event, HardwareEvent):
        found = _numbers("hardware", event, ("energy_wh",))
        for device in event.devices:
            name = f"{device.get('kind', 'device')}-{device.get('index', 0)}"
            if _DEVICE_NAME.fullmatch(name):
                values = {key: device.get(key) for key in _DEVICE}
                found |= {f"hardware/{name}/{key}": float(value) for key, value in values.items() if _is_number(value)}
        return found
    return {}


def step_of(event: Event, before: int) -> int:
    """The optimizer step of an event: its own, else the latest one."""
    return (
        event.step
        if isinstance(event, (StepEvent, EvalEvent, ProbeEvent)) and 0 <= event.step < INTEGER_LIMIT
        else before
    )


def told_configuration(config: Config) -> dict[str, Any]:
    """The part of the configuration that is sent to a tracker, ``section.key`` to value."""
    told: dict[str, Any] = {"model.base": config.model.base}
    dumped = config.model_dump(mode="json")
    return told | {f"{section}.{key}": value for section in _TOLD for key, value in dumped[section].items()}


def _numbers(prefix: str, event: Event, names: Iterable[str]) -> dict[str, float]:
    found = {name: getattr(event, name) for name in names}
    return {f"{prefix}/{name}": float(value) for name, value in found.items() if _is_number(value)}


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
