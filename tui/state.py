"""State of the app: the edited configuration, the shown run and the devices.

Controllers change it; threads only post their results, and widgets only read it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from core.governor.policy import QUIET_HOURS
from core.runs.outlook.energy import Tariff
from core.runs.outlook.time_left import Eta, Schedule, SteadyEta, estimate
from core.runs.record.state import PENDING, hostname
from tui.meters import MeterReading, SteadyMeters

if TYPE_CHECKING:
    from core.config.document import ConfigDocument
    from core.errors import UserError
    from core.hardware.snapshot import Device
    from core.jobs.running import RunningJob
    from core.runs.catalog.earlier import Origin
    from core.runs.record.history import RunHistory
    from core.runs.record.state import Rank, RunState
    from core.runs.record.store import Run
    from core.serve.options import ServerAddress


class Requests:
    """Pending requests to a worker: the reported and the unanswered ones, without withdrawn ones."""

    def __init__(self) -> None:
        self._asked: dict[str, float] = {}
        """Unix times at which sent requests were answered; infinity until then."""
        self._hidden: dict[str, float] = {}
        """Unix times up to which the worker's reports of withdrawn or completed requests are out of date."""

    def ask(self, name: str) -> None:
        """Note that a request was sent."""
        self._asked[name] = math.inf
        self._hidden.pop(name, None)

    def take_back(self, name: str) -> None:
        """Note that a request was withdrawn."""
        self._asked.pop(name, None)
        self._hidden[name] = math.inf

    def answered(self, name: str, now: float) -> bool:
        """Note that a request was carried out; the state with its effect may not have been read yet.

        Returns:
            True if it was sent, and not withdrawn since.
        """
        was_asked = self._asked.get(name) == math.inf
        if was_asked:
            self._asked[name] = self._hidden[name] = now
        return was_asked

    def refused(self, name: str) -> None:
        """Note that a request was refused or failed."""
        self._asked.pop(name, None)

    def taken_back(self, name: str, now: float) -> None:
        """Note that the worker has answered a withdrawal, even if it came too late."""
        self._hidden[name] = now

    def pending(self, state: RunState) -> tuple[str, ...]:
        """The pending requests, given the newest state."""
        if state.is_over or state.state == "stopping":
            return ()
        told = {name for name in state.pending if state.updated > self._hidden.get(name, -math.inf)}
        asked = {name for name, answered in self._asked.items() if not _is_settled(name, answered, state)}
        return tuple(name for name in (*PENDING, "resume") if name in told or name in asked)


def _is_settled(name: str, answered: float, state: RunState) -> bool:
    """True if the state shows the outcome of a request."""
    if answered == math.inf:
        return False
    # Other requests have no effect on the state, or change it shortly after the answer.
    in_effect = {
        "pause": state.state == "paused",
        "resume": state.state != "paused",
        "park": bool(state.parked),
        "stop": False,
    }
    return in_effect.get(name, True) or state.updated > answered


#: Glyphs of the states, so that they differ in more than color.
STATE_GLYPHS = {
    "queued": "◌",
    "starting": "◌",
    "training": "●",
    "paused": "‖",
    "stopping": "◍",
    "finished": "✓",
    "stopped": "■",
    "failed": "✗",
    "lost": "?",
    "stalled": "!",
}

#: Glyph of a pending request.
PENDING_GLYPH = "◌"

#: Theme variables of the states.
STATE_COLORS = {
    "training": "ok",
    "finished": "ok",
    "paused": "near",
    "stopping": "near",
    "stalled": "near",
    "failed": "limit",
    "lost": "limit",
}


@dataclass
class ServingView:
    """The API server of a model."""

    name: str
    """The run or the model."""
    address: ServerAddress | None = None
    """The address that it listens on; None while it starts."""
    progress: str = ""
    """The progress of loading, or a warning."""
    error: UserError | None = None
    """The reason for its end."""


@dataclass
class RunView:
    """The shown run."""

    run: Run
    state: RunState
    history: RunHistory
    model: str = ""
    """Base model and method, for the header."""
    is_leftover: bool = False
    """True if it had already ended when the app found it, and is shown for want of a newer one."""
    schedule: Schedule | None = None
    """The configured evaluations and checkpoints."""
    requests: Requests = field(default_factory=Requests)
    """The user's pending requests to its worker."""
    is_partial: bool = False
    """True while its history has only some of its steps, and the rest is being read."""
    tariff: Tariff = field(default_factory=Tariff)
    """The configured price of energy."""
    ranks: Sequence[Rank] = ()
    """Heartbeats of its processes; empty for a run of one."""
    meters: SteadyMeters = field(default_factory=SteadyMeters)
    """The meters of its devices."""
    steady_eta: SteadyEta = field(default_factory=SteadyEta)
    """The time left as shown last."""

    @property
    def reports_devices(self) -> bool:
        """True while its worker reports the devices. A parked one has given them back: other programs use them now."""
        return self.is_live and not self.state.parked and bool(self.history.devices)

    def reading_age(self, now: float) -> float | None:
        """Seconds since its devices were read, at a Unix time; None if they never were."""
        read = self.history.devices_read
        return None if read is None else now - read

    def reading(self) -> MeterReading:
        """The devices and the energy to show, without jitter while the run is paused."""
        newest = MeterReading(self.history.devices, self.history.host, self.history.energy_wh)
        return self.meters.follow(newest, rests=self.state.state == "paused")

    @property
    def activity(self) -> str:
        """The activity in a word: the state, or ``evaluating`` during an evaluation."""
        phase = self.history.phase
        return (
            "evaluating" if self.state.state == "training" and phase and phase.name == "evaluating" else self.state.word
        )

    @property
    def is_quiet(self) -> bool:
        """True if quiet hours pause it."""
        return self.state.state == "paused" and self.state.reason.startswith(QUIET_HOURS)

    @property
    def pending(self) -> tuple[str, ...]:
        """The pending requests to its worker."""
        return self.requests.pending(self.state)

    @property
    def is_measuring_base(self) -> bool:
        """True during the evaluation before the first step."""
        return self.is_live and self.step == 0 and self.history.timings.evaluation is not None

    def eta(self, now: float) -> Eta | None:
        """The time left at a Unix time; None if unknown."""
        history = self.history
        schedule = (self.schedule or Schedule()).changed(history.settings)
        return self.steady_eta.follow(estimate(history.timings, schedule, self.state.total_steps, now), now)

    @property
    def is_live(self) -> bool:
        """True until the run has ended."""
        return not self.state.is_over

    @property
    def step(self) -> int:
        """The last known finished step."""
        return max(self.history.step, self.state.step)

    @property
    def saved_step(self) -> int | None:
        """The step of the newest checkpoint; None if there is none."""
        checkpoints = self.history.checkpoints
        return checkpoints[-1].step if checkpoints else None

    @property
    def has_process(self) -> bool:
        """True if its worker is a process on this machine, which can be signaled."""
        return self.is_live and self.state.pid is not None and self.state.host in ("", hostname())


@dataclass
class AppState:
    """State shown by more than one widget."""

    document: ConfigDocument | None = None
    saved_text: str = ""
    origin: Origin | None = None
    """The run that the configuration was copied from; None for none."""
    former: str = ""
    """The name of the previous configuration, which can be brought back; empty for none."""
    is_opening: bool = False
    """True while the initial configuration is being opened."""
    view: RunView | None = None
    other_live: str = ""
    """The name of a live run while an ended one is shown; empty for none."""
    devices: Sequence[Device] = ()
    """The devices to show while no run reports any."""
    answer_awaited: bool = False
    """True while a question from the chat holds up the training."""
    serving: ServingView | None = None
    """The API server; None while there is none."""
    jobs: Sequence[RunningJob[Any, Any]] = ()
    """The jobs that are on, and those whose end has not been seen."""
    is_starting: bool = False
    """True from the request for a run until it is shown."""
    has_worker: bool = False
    """True once that run's worker has been started."""
    host: str = field(default_factory=hostname)

    def expect_run(self) -> None:
        """Note that a run was requested."""
        self.is_starting, self.has_worker = True, False

    @property
    def is_dirty(self) -> bool:
        """True if the configuration has changes that are not in its file."""
        return self.document is not None and self.document.dumps() != self.saved_text

    @property
    def file_name(self) -> str:
        """The configuration's file name; empty if it has none."""
        path = self.document.path if self.document is not None else None
        return path.name if path is not None else ""

    @property
    def config_name(self) -> str:
        """The configuration's file name, or the name of its runs; empty for an empty configuration."""
        if self.document is None or self.file_name:
            return self.file_name
        from core.runs.catalog.earlier import run_name

        return run_name(self.document, self.origin)

    @property
    def is_of_config(self) -> bool:
        """True if the name of the shown run is that of the configuration's runs."""
        if self.view is None or self.document is None:
            return True
        from core.runs.catalog.earlier import belongs

        return belongs(self.view.run, self.document, self.origin)

    @property
    def live_run(self) -> RunView | None:
        """The shown run if it is live, else None."""
        return self.view if self.view is not None and self.view.is_live else None
