"""The state of the app: the configuration being edited, the run being shown and the devices.

Handlers on the app change it; workers only post messages, and widgets only read it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from core.runs.outlook.energy import Tariff
from core.runs.record.state import PENDING, hostname
from tui.meters import MeterReading, SteadyMeters

if TYPE_CHECKING:
    from core.config.document import ConfigDocument
    from core.errors import UserError
    from core.hardware.snapshot import Device
    from core.runs.catalog.earlier import Origin
    from core.runs.outlook.time_left import Eta, Schedule
    from core.runs.record.history import RunHistory
    from core.runs.record.state import Rank, RunState
    from core.runs.record.store import Run
    from core.serve.options import ServerAddress


class Requests:
    """The requests that wait: those that the worker tells of and those not answered yet, without what was taken
    back."""

    def __init__(self) -> None:
        self._asked: dict[str, float] = {}
        """Requests that were sent, and when they were answered, in Unix seconds; infinity while they were not."""
        self._hidden: dict[str, float] = {}
        """Requests taken back or carried out, and until when what the worker has written of them is out of date."""

    def ask(self, name: str) -> None:
        """A request is sent."""
        self._asked[name] = math.inf
        self._hidden.pop(name, None)

    def take_back(self, name: str) -> None:
        """A request is taken back."""
        self._asked.pop(name, None)
        self._hidden[name] = math.inf

    def answered(self, name: str, now: float) -> bool:
        """A request has been carried out; its effect is in a state that may still have to be read.

        Returns:
            Whether it was asked for, and not taken back since.
        """
        was_asked = self._asked.get(name) == math.inf
        if was_asked:
            self._asked[name] = self._hidden[name] = now
        return was_asked

    def refused(self, name: str) -> None:
        """A request was refused, or came to nothing."""
        self._asked.pop(name, None)

    def taken_back(self, name: str, now: float) -> None:
        """The worker has answered that a request is taken back, or that it was too late for that."""
        self._hidden[name] = now

    def pending(self, state: RunState) -> tuple[str, ...]:
        """The requests that wait, given the newest state."""
        if state.is_over or state.state == "stopping":
            return ()
        told = {name for name in state.pending if state.updated > self._hidden.get(name, -math.inf)}
        asked = {name for name, answered in self._asked.items() if not _is_settled(name, answered, state)}
        return tuple(name for name in (*PENDING, "resume") if name in told or name in asked)


def _is_settled(name: str, answered: float, state: RunState) -> bool:
    """True if the state shows the outcome of a request."""
    if answered == math.inf:
        return False
    # The others have no effect on the state, or change it a moment after the answer.
    in_effect = {
        "pause": state.state == "paused",
        "resume": state.state != "paused",
        "park": bool(state.parked),
        "stop": False,
    }
    return in_effect.get(name, True) or state.updated > answered


#: Glyphs of the states, so that a state does not depend on color alone.
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

#: Glyph of a request that waits for the end of a step.
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
    """The server that lets other programs use a model."""

    name: str
    """The run or the model."""
    address: ServerAddress | None = None
    """Where it listens; None while it starts."""
    progress: str = ""
    """Progress of the loading, or a warning."""
    error: UserError | None = None
    """The reason of its end."""


@dataclass
class RunView:
    """The run that is shown."""

    run: Run
    state: RunState
    history: RunHistory
    model: str = ""
    """Base model and method, as the header shows them."""
    is_leftover: bool = False
    """True if the app found it already ended, and shows it only because there is nothing newer."""
    schedule: Schedule | None = None
    """Its evaluations and checkpoints, by its configuration."""
    requests: Requests = field(default_factory=Requests)
    """Requests of the user that wait for its worker."""
    is_partial: bool = False
    """True while its history has some of its steps only, and the rest is being read."""
    tariff: Tariff = field(default_factory=Tariff)
    """The price of its energy, by its configuration."""
    ranks: Sequence[Rank] = ()
    """Its processes with their signs of life; empty for a run of one."""
    meters: SteadyMeters = field(default_factory=SteadyMeters)
    """The meters of its devices."""

    def reading(self) -> MeterReading:
        """The devices and the energy to show; while the run is paused, without jitter."""
        newest = MeterReading(self.history.devices, self.history.host, self.history.energy_wh)
        return self.meters.follow(newest, rests=self.state.state == "paused")

    @property
    def activity(self) -> str:
        """The activity in a word: the state, or ``evaluating`` while steps wait for an evaluation."""
        phase = self.history.phase
        return (
            "evaluating" if self.state.state == "training" and phase and phase.name == "evaluating" else self.state.word
        )

    @property
    def pending(self) -> tuple[str, ...]:
        """The requests that wait for its worker, by the newest word of the user or of the worker."""
        return self.requests.pending(self.state)

    @property
    def is_measuring_base(self) -> bool:
        """True during the evaluation before the first step."""
        return self.is_live and self.step == 0 and self.history.timings.evaluation is not None

    def eta(self, now: float) -> Eta | None:
        """The time left at a Unix time; None while it is unknown."""
        from core.runs.outlook.time_left import Schedule, estimate

        history = self.history
        schedule = (self.schedule or Schedule()).changed(history.settings)
        return estimate(history.timings, schedule, self.state.total_steps, now)

    @property
    def is_live(self) -> bool:
        """True until it has ended."""
        return not self.state.is_over

    @property
    def step(self) -> int:
        """The last finished step, as far as is known."""
        return max(self.history.step, self.state.step)

    @property
    def saved_step(self) -> int | None:
        """The step of the newest checkpoint; None where there is none."""
        checkpoints = self.history.checkpoints
        return checkpoints[-1].step if checkpoints else None

    @property
    def has_process(self) -> bool:
        """True if its worker is a process of this machine, which can be signaled."""
        return self.is_live and self.state.pid is not None and self.state.host in ("", hostname())


@dataclass
class AppState:
    """The state that more than one widget shows."""

    document: ConfigDocument | None = None
    saved_text: str = ""
    origin: Origin | None = None
    """The run that the configuration was begun with; None for none."""
    former: str = ""
    """The name of the configuration that was there before, and can be brought back; empty for none."""
    is_opening: bool = False
    """True while the first configuration is being looked for."""
    view: RunView | None = None
    devices: Sequence[Device] = ()
    """The devices to show where no run reports any."""
    answer_awaited: bool = False
    """True while a question from the chat holds up the training."""
    serving: ServingView | None = None
    """The server for other programs; None while there is none."""
    is_starting: bool = False
    """True from the request of a run until it is shown."""
    has_worker: bool = False
    """True once the worker of that run has been started."""
    host: str = field(default_factory=hostname)

    def expect_run(self) -> None:
        """Note that a run has been asked for."""
        self.is_starting, self.has_worker = True, False

    @property
    def is_dirty(self) -> bool:
        """True if the configuration has changes that are not in its file."""
        return self.document is not None and self.document.dumps() != self.saved_text

    @property
    def file_name(self) -> str:
        """The configuration's file name; empty while it has none."""
        path = self.document.path if self.document is not None else None
        return path.name if path is not None else ""

    @property
    def config_name(self) -> str:
        """The configuration in a word or two: its file, or the name of its runs; empty for an empty one."""
        if self.document is None or self.file_name:
            return self.file_name
        from core.runs.catalog.earlier import run_name

        return run_name(self.document, self.origin)

    @property
    def is_of_config(self) -> bool:
        """True if the shown run is a run of the configuration, by its name."""
        if self.view is None or self.document is None:
            return True
        from core.runs.catalog.earlier import belongs

        return belongs(self.view.run, self.document, self.origin)

    @property
    def live_run(self) -> RunView | None:
        """The run that is shown, if it is live."""
        return self.view if self.view is not None and self.view.is_live else None
