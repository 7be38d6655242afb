"""Forwarding of a run's events to a tracker, each exactly once, until the run is over."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

from core.config.schema import Config
from core.runs.record.events import INTEGER_LIMIT, EvalEvent, Event, HardwareEvent, MemoryEvent, ProbeEvent, StepEvent
from core.runs.record.state import EventTail, own_identity
from core.tracking.destinations import Destination
from core.tracking.position import Position, TrackerFiles

_STEP = ("loss", "lr", "grad_norm", "epoch", "tokens", "supervised_tokens", "seconds", "tokens_per_second")
_STEPPED = (StepEvent, EvalEvent, ProbeEvent)
_EVAL = ("loss", "perplexity", "seconds", "exact_match", "valid_json", "rows", "probe_loss")
_DEVICE = ("temperature_c", "memory_temperature_c", "memory_used", "utilization", "power_w", "fan", "clock")
#: Valid device names; a tracker makes a series of each name.
_DEVICE_NAME = re.compile(r"[a-z]{1,16}([:-][0-9]{1,4})?")
#: Sections of the configuration that are sent to a tracker; data and prompts are not.
_TOLD = ("method", "train", "memory")


def figures(event: Event) -> dict[str, float]:
    """The metrics of an event by name, such as ``train/loss``; may be empty.

    Units are as in events: seconds, bytes, °C, percent, W, MHz. Unreported values are left out.
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
    """The optimizer step of an event: its own, else the latest."""
    return event.step if isinstance(event, _STEPPED) and 0 <= event.step < INTEGER_LIMIT else before


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


#: Seconds between two polls of a run that has nothing new.
LOOK_SECONDS = 1.0


class Forwarder:
    """A reader that tails a run and logs its metrics to a destination.

    The position advances only when the destination has confirmed the metrics; whatever ends the process before that,
    the next one undoes the rest (:meth:`Destination.restore`) and continues from there.

    Args:
        place: The files of the tracker.
        destination: The destination; it is opened at the first metrics, so a run without any makes no files.
        alive: Called before and after each call of the tracker.
    """

    def __init__(self, place: TrackerFiles, destination: Destination, alive: Callable[[], None]) -> None:
        self._place = place
        self._destination = destination
        self._alive = alive
        pid, identity = own_identity()
        before = Position.read(place.position_path)
        self._position = dataclasses.replace(before, pid=pid, pid_started=identity)
        self._was_clean = before.state == "done"
        self._is_first = not before.state
        self._is_open = False

    def run(self) -> int:
        """Forward everything, until the run is over.

        Returns:
            Number of sets of metrics sent.
        """
        if not self._is_first and not self._destination.restore(self._position.memory, clean=self._was_clean):
            self._position = dataclasses.replace(self._position, offset=0, rows=0, step=0, memory={})
        first = self._position.rows
        self._save(state="waiting", reason="")
        tail = EventTail(self._place.run.events_path, self._position.offset)
        rows, step = self._position.rows, self._position.step
        while True:
            # Checked before the events are read, so that no event of an ended run is missed.
            is_over = self._place.run.state().is_over
            for events in tail.batches():
                self._alive()
                for event in events:
                    step = step_of(event, step)
                    if told := figures(event):
                        self._open()
                        self._destination.tell(told, step, event.t, rows)
                        self._alive()
                        rows += 1
                reached: dict[str, Any] = {"offset": tail.offset, "rows": rows, "step": step}
                if self._is_open and self._destination.durable and tail.offset != self._position.offset:
                    self._commit(reached)
            if is_over:
                break
            time.sleep(LOOK_SECONDS)
        if self._is_open:
            self._destination.close()
            self._alive()
        self._commit(reached, state="done")
        return rows - first

    def _open(self) -> None:
        if not self._is_open:
            self._save(state="sending")
            self._destination.open()
            self._is_open = True

    def _commit(self, reached: dict[str, Any], state: str | None = None) -> None:
        """Save the position, once the destination has confirmed it."""
        if self._is_open:
            if state is None:
                self._destination.flush()
            self._position = dataclasses.replace(self._position, memory=self._destination.remember())
        self._position = dataclasses.replace(self._position, **reached)
        self._save(state=state or self._position.state)

    def _save(self, **changes: Any) -> None:
        self._position = dataclasses.replace(self._position, **changes)
        self._position.write(self._place)
