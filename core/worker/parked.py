"""Waiting of a parked run: a small program in place of the training, until the device is free again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from core.config.schema import Config, ParkingSection
from core.errors import UserError
from core.hardware.claims import Claim, find_claim, has_conditions
from core.hardware.obstacle import look
from core.hardware.sampler import CPU_ONLY
from core.hardware.snapshot import Device
from core.hardware.visible import find_gpu
from core.runs.control.protocol import ActionError, refusal
from core.runs.record.state import PARKED_BY_HAND
from core.runs.record.store import Run
from core.units import format_bytes
from core.worker.process.control import Command, Controls, ParkRequested
from core.worker.process.devices import reason_to_wait
from core.worker.process.recorder import Recorder

#: Seconds between two checks for claims on the device, in training and while parked.
LOOK_SECONDS = 5.0
#: Seconds until a run is asked to park again.
AGAIN_SECONDS = 300.0


def watch_claims(parking: ParkingSection, controls: Controls, device: Callable[[], Device | None]) -> None:
    """Start a thread that asks a run to give its device back when something claims it. It ends with the process.

    Args:
        parking: Conditions that count as a claim.
        controls: The run's commands.
        device: Returns a current snapshot of the run's device; None if unknown.
    """

    def watch() -> None:
        while True:
            if (claim := find_claim(parking, time.time(), device())) is not None:
                controls.request_park(claim.sender, claim.cause)
            # If the disk is full, the device cannot be given back; a notice has said so.
            time.sleep(LOOK_SECONDS if claim is None else AGAIN_SECONDS)

    if has_conditions(parking):
        threading.Thread(target=watch, name="claims", daemon=True).start()


@dataclass
class ParkedRun:
    """A run without its device.

    Args:
        config: The run's configuration.
        recorder: The run's recorder.
        controls: Pending commands.
        cause: Reason for parking; :data:`~core.runs.record.state.PARKED_BY_HAND` if a person asked for it.
        needs: Peak memory of the run in bytes; 0 if unknown.
        free: Returns the free memory of the device in bytes; None if it does not report it.
        claim: Returns the current claim on the device.
        taken: Returns the reason if another run has the device to itself, as the end of a sentence.
    """

    config: Config
    recorder: Recorder
    controls: Controls
    cause: str
    needs: int
    free: Callable[[], int | None] = field(default=lambda: None)
    claim: Callable[[], Claim | None] = field(default=lambda: None)
    taken: Callable[[], str | None] = field(default=lambda: None)

    def wait(self) -> str:
        """Wait until the run can continue; returns the source of the resume request.

        Raises:
            StopRequested: If the run should end instead.
        """
        clear_since: float | None = None
        looked = -LOOK_SECONDS
        while True:
            command = self.controls.wait(1.0)
            if command is not None and self._carry_out(command):
                return "socket"
            try:
                self.controls.check_stop()
            except ParkRequested:
                self.controls.drop_park()
                self._tell(PARKED_BY_HAND)
            if self.cause == PARKED_BY_HAND or time.monotonic() - looked < min(LOOK_SECONDS, self.config.parking.calm):
                continue
            looked = time.monotonic()
            if (obstacle := self._obstacle()) is not None:
                clear_since = None
                self._tell(obstacle)
            elif clear_since is None and self.config.parking.calm:
                clear_since = looked
                self._tell(f"{self.config.parking.calm:g} s without a claim are waited for")
            elif clear_since is None or looked - clear_since >= self.config.parking.calm:
                return "the parking rules"

    def _tell(self, cause: str) -> None:
        if cause != self.cause:
            self.cause = cause
            self.recorder.update(parked=cause)

    def _obstacle(self) -> str | None:
        """Reason why the run cannot continue, as the end of a sentence; None if it can."""
        if (claim := self.claim()) is not None:
            return claim.cause
        if (taken := self.taken()) is not None:
            return taken
        free = self.free()
        if free is not None and free < self.needs:
            return f"the run needs {format_bytes(self.needs)} of memory, and {format_bytes(free)} are free"
        return None

    def _carry_out(self, command: Command) -> bool:
        """Carry out a command. Returns True if the run continues."""
        name, step = command.request.command, self.recorder.state.step
        try:
            if name == "resume":
                if (obstacle := self._obstacle()) is not None:
                    raise UserError(
                        f"The run cannot have its device back: {obstacle}.",
                        "It goes on by itself when that is over, unless it was parked by hand.",
                    )
                command.answer(state="training", step=step)
            elif name in ("park", "pause", "stop"):
                command.answer(state="parked" if name != "stop" else "stopping", step=step)
            elif name != "withdraw":
                raise ActionError("The run is parked: its model is not in memory.", "Let it go on first.", "resume")
        except UserError as error:
            command.refuse(**refusal(error))
            return False
        finally:
            self.controls.done()
        return name == "resume"


def parked_run(run: Run, config: Config, recorder: Recorder, controls: Controls, cause: str, needs: int) -> ParkedRun:
    """A parked run that watches this machine."""
    if config.hardware.device == "cpu":
        recorder.sampler.watch(CPU_ONLY)
    elif config.hardware.gpu is not None and (card := find_gpu(look().cards, config.hardware.gpu)) is not None:
        recorder.sampler.watch(card.uuid)
    return ParkedRun(
        config,
        recorder,
        controls,
        cause,
        needs,
        free=lambda: None if (device := recorder.device) is None else device.available,
        claim=lambda: find_claim(config.parking, time.time(), recorder.device),
        taken=reason_to_wait(run),
    )
