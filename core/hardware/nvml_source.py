"""NVIDIA's cards as a source: those that CUDA sees, with their errors, over a lost card and a driver loaded again."""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import replace
from typing import Any

from core.hardware.nvml import Nvml
from core.hardware.nvml_calls import NvmlCalls, NvmlUnavailableError
from core.hardware.snapshot import Device, Xid
from core.hardware.visible import Visible, visible_cards

#: Seconds between two attempts to open a driver that was lost: opening one takes seconds where no other program has it
#: open.
REOPEN_SECONDS = 10.0
#: Newest Xid errors of a card that are kept, and events that are read at once.
MOST_XIDS, _MOST_EVENTS = 8, 64


class XidWatch:
    """The Xid errors of all cards since it was made. A card or a driver without such events reports none.

    Args:
        calls: The opened library.
        count: Number of cards.
        seen: The newest errors by the card's index, to be added to.
    """

    def __init__(self, calls: NvmlCalls, count: int, seen: dict[int, deque[Xid]]) -> None:
        self._calls, self._nvml, self._seen = calls, calls.library, seen
        self._events: Any = calls.ask(self._nvml.nvmlEventSetCreate)
        for index in range(count if self._events is not None else 0):
            handle, _ = calls.handle(index)
            if handle is not None:
                calls.ask(
                    self._nvml.nvmlDeviceRegisterEvents,
                    handle,
                    self._nvml.nvmlEventTypeXidCriticalError,
                    self._events,
                )

    def poll(self) -> None:
        """Take what has happened since the last call; never waits."""
        for _ in range(_MOST_EVENTS if self._events is not None else 0):
            event = self._calls.ask(self._nvml.nvmlEventSetWait_v2, self._events, 0)
            if event is None:
                return
            index = self._calls.ask(self._nvml.nvmlDeviceGetIndex, event.device)
            if index is not None and event.eventType == self._nvml.nvmlEventTypeXidCriticalError:
                self._seen.setdefault(index, deque(maxlen=MOST_XIDS)).append(Xid(int(event.eventData), time.time()))

    def close(self) -> None:
        """Free the set of events."""
        if self._events is not None:
            self._calls.ask(self._nvml.nvmlEventSetFree, self._events)


class NvmlSource:
    """The cards that CUDA sees, in its order.

    When none of them can be read any more, the library is opened anew every few seconds: a driver that was loaded
    again, or a card that is back, is then read again. Until then each card is there with the reason.
    """

    def __init__(self) -> None:
        self._nvml: Nvml | None = None
        self._watch: XidWatch | None = None
        self._xids: dict[int, deque[Xid]] = {}
        self._known: dict[str, Device] = {}
        self._open_again: float | None = 0.0
        self._reason = ""

    @property
    def reason(self) -> str:
        """The reason why there are no cards, as a sentence; empty where there are some."""
        return self._reason

    def read(self, only: str | None = None) -> list[Device]:
        """The cards in their current state; ``only`` is the UUID of one."""
        nvml = self._nvml or self._open()
        if nvml is None:
            return self._lost(only)
        if self._watch is not None:
            self._watch.poll()
        visible = visible_cards(nvml.identities(), os.environ)
        devices = [self._read(nvml, device) for device in visible if only in (None, device.uuid)]
        # A UUID that no card has any more: all are read, so that the one that is meant is among them.
        devices = devices or [self._read(nvml, device) for device in visible]
        self._known |= {_key(device): device for device in devices}
        if self._known and all(device.problem for device in devices):
            self._close("" if devices else "The NVIDIA driver lists no cards any more.")
        return devices or self._lost(only)

    def _read(self, nvml: Nvml, visible: Visible) -> Device:
        card = nvml.card(visible.index)
        device = card.read(visible.uuid if visible.is_instance else "")
        xids = list(self._xids.get(visible.index, ()))
        if device.problem:
            return replace(device, uuid=device.uuid or visible.uuid, xid=xids)
        return replace(card.read_slow(device), xid=xids)

    def _lost(self, only: str | None) -> list[Device]:
        """The cards that were there, each with the reason why it cannot be read."""
        clause = self._reason.rstrip(".")
        clause = clause[:1].lower() + clause[1:] if clause.startswith("The ") else clause
        chosen = [device for device in self._known.values() if only in (None, device.uuid)]
        return [
            Device(
                index=device.index,
                kind=device.kind,
                name=device.name,
                uuid=device.uuid,
                problem=clause or device.problem,
                xid=device.xid,
            )
            for device in chosen or self._known.values()
        ]

    def _open(self) -> Nvml | None:
        """Open the library, unless that was tried a moment ago, or there is no driver on this machine."""
        if self._open_again is None or time.monotonic() < self._open_again:
            return None
        try:
            self._nvml = Nvml()
        except NvmlUnavailableError as error:
            self._reason = error.reason
            self._open_again = None if error.absent and not self._known else time.monotonic() + REOPEN_SECONDS
            return None
        self._reason = ""
        self._watch = XidWatch(self._nvml.calls, self._nvml.count(), self._xids)
        return self._nvml

    def _close(self, reason: str) -> None:
        """Close the library, to open it anew; without a reason, the cards' own stand."""
        if self._watch is not None:
            self._watch.close()
        if self._nvml is not None:
            self._nvml.close()
        self._nvml = self._watch = None
        self._reason, self._open_again = reason, time.monotonic() + REOPEN_SECONDS


def _key(device: Device) -> str:
    return device.uuid or str(device.index)
