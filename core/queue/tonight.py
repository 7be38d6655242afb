"""Change of the night's limits: written into the queue, then sent to the run that is on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from core.config.document import ConfigDocument, valid_part
from core.config.live import changed
from core.errors import UserError
from core.governor.check import unkept_here
from core.queue import store
from core.queue.book import Queue
from core.queue.estimate import Estimator
from core.queue.fate import live_run
from core.queue.night import NIGHT_OPTIONS, Night
from core.queue.view import QueueReader
from core.runs.control.client import ControlClient, PendingError
from core.runs.record.sentences import change_words


def change_night(asked: Mapping[str, Any], now: float) -> Night:
    """Set the limits of the night; returns those before. Entries take them over when they start.

    Args:
        asked: Option to value, as :meth:`~core.queue.night.Night.read` takes them; other options are not set any more.
        now: Unix seconds.

    Raises:
        UserError: If one is invalid, or the device of a waiting entry cannot keep it, or the queue cannot be written.
    """
    night = Night.read(asked, now)
    for device, gpu in _devices():
        own = changed(valid_part(ConfigDocument()), {"hardware.device": device, "hardware.gpu": gpu})
        for found in unkept_here(night.applied(own)):
            raise UserError(found.sentence, found.hint)
    before: list[Night] = []

    def how(queue: Queue) -> Queue:
        before.append(queue.night)
        return replace(queue, night=night)

    store.change(how)
    return before[0]


def _devices() -> Collection[tuple[str, str | None]]:
    """``hardware.device`` and ``hardware.gpu`` of the waiting entries; the defaults if none waits."""
    found: set[tuple[str, str | None]] = set()
    for entry in store.read_queue().entries:
        if entry.state == "waiting":
            with suppress(UserError):  # the runner skips an unreadable one
                hardware = store.read_entry_config(entry).hardware
                found.add((hardware.device, hardware.gpu))
    return found or {("auto", None)}


def tell_live_run(before: Night, now: float) -> str:
    """Send what has changed since ``before`` to the run that is on; returns what became of it, as a sentence, empty
    without such a run. Blocks until the step of the run is done.

    Args:
        before: The limits that it has.
        now: Unix seconds.
    """
    queue, run, missing = store.read_queue(), live_run(), object()
    night = queue.night
    names = [name for name in NIGHT_OPTIONS if before.values.get(name, missing) != night.values.get(name, missing)]
    if run is None or not names:
        return ""
    try:
        active = queue.active
        # The file of a run of the queue has the limits of the night at its start.
        own = store.read_entry_config(active) if active is not None and active.run == run.id else run.config()
        share = QueueReader(Estimator()).read(now).share(run.id, now) if night.deadline is not None else None
        tonight = night.for_run(now, share)
        changes = {name: tonight.get(name, getattr(getattr(own, (at := name.split("."))[0]), at[1])) for name in names}
        with ControlClient(run) as client:
            client.request("set", **changes)
    except PendingError:
        return "The current run applies the change after its step."
    except UserError as error:
        return f"The current run keeps its own limits: {error}"
    return f"The current run now has {change_words(changes)}."
