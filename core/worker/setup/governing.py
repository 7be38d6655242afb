"""The governor of a run, on its device."""

from __future__ import annotations

import torch

from core.config.schema import Config
from core.governor.policy import DISK
from core.governor.words import reason
from core.hardware.power import restore, set_power_limit
from core.notify import Notice, notify
from core.runs.record.events import Event, GovernorEvent
from core.worker.process.control import Controls
from core.worker.process.governor import Governor
from core.worker.process.recorder import Recorder
from core.worker.process.throttle import Throttle


class CardPower:
    """The power limit of the run's card, by its driver."""

    def set(self, uuid: str, watts: float) -> float:
        """Set it; returns the one before, in watts.

        Raises:
            UserError: If this user may not, or the card cannot be set to it.
        """
        return set_power_limit(uuid, watts)

    def restore(self, uuid: str) -> float | None:
        """Put back the one that was there before; returns it, in watts.

        Raises:
            UserError: If this user may not.
        """
        return restore(uuid)


def _tell(recorder: Recorder, event: Event) -> None:
    """Write an event of the governor; a pause for want of disk space, which ends only when somebody makes room, is told
    to the user as well. Pauses for heat end by themselves."""
    recorder.event(event)
    if isinstance(event, GovernorEvent) and event.action == "pause" and event.cause == DISK:
        notify(Notice("paused", reason(event.cause, event.value, event.limit), recorder.run.id))


def make_governor(
    config: Config, recorder: Recorder, controls: Controls, device: torch.device, throttle: Throttle
) -> Governor:
    """The governor of a run; what it cannot keep on this device is refused before minutes are spent on the rows.

    Args:
        config: Of the run.
        recorder: Reads the meters, and writes what is done.
        controls: Stops the run.
        device: That of the training.
        throttle: Slows it.

    Raises:
        UserError: If a limit cannot be held here, or a wish cannot be kept whatever the run costs.
    """
    if device.type == "cuda":
        # What was given to a GPU is computed after the call that gave it.
        throttle.synchronize = lambda: torch.cuda.synchronize(device)
    recorder.rested = lambda: throttle.rested_seconds
    governor = Governor(
        config,
        meters=recorder.sampler,
        controls=controls,
        throttle=throttle,
        tell=lambda event: _tell(recorder, event),
        notice=recorder.notice,
        directory=recorder.run.path,
        is_paused=lambda: recorder.state.state == "paused",
        lever=CardPower() if device.type == "cuda" else None,
    )
    governor.check()
    return governor
