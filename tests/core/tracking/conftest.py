"""Runs that are over or at work, and trackers that misbehave, in processes of their own."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, STDOUT
from typing import Any

import pytest

from core.config.choices import Tracker
from core.config.schema import Config, DataSection, TrackingSection
from core.launch.launcher import worker_environment
from core.runs.record import events
from core.runs.record.store import Run, create_run
from core.tracking.position import TrackerFiles
from core.tracking.start import tracker_command, tracker_environment
from tests.core.runs.helpers import live_state, step_event
from tests.forking import Forks

#: A library that records its calls, and misbehaves as FAKE says: hang, raise, exit or end the interpreter.
FAKE = """
import json, os, sys, threading
from pathlib import Path

CALLS = Path(os.environ["FAKE_CALLS"])
BEHAVIOR = os.environ.get("FAKE", "")
print("library loaded, key", os.environ.get("WANDB_API_KEY"))

def note(name, *values):
    with CALLS.open("a") as file:
        file.write(json.dumps([name, *values]) + "\\n")

def act(moment):
    what, _, when = BEHAVIOR.partition("@")
    if when != moment:
        return
    if what == "hang":
        threading.Event().wait()
    if what == "raise":
        raise RuntimeError("the server said no to " + os.environ.get("WANDB_API_KEY", "nobody"))
    if what == "exit":
        sys.exit("the library has had enough")
    if what == "die":
        os._exit(9)

def Settings(**values):
    pass

class Run:
    step = 0
    def define_metric(self, *words, **values):
        pass
    def log(self, figures, step):
        note("log", figures, step)
        act(f"log{Run.step}")
        Run.step += 1
    def finish(self):
        act("finish")
        note("finish")

def init(**values):
    note("init", {name: value for name, value in values.items() if name != "settings"})
    act("init")
    if "dir" in values and values.get("mode") == "offline":
        number = len(list((Path(values["dir"]) / "wandb").glob("*")))
        (Path(values["dir"]) / "wandb" / f"offline-run-{number}").mkdir(parents=True)
    return Run()

act("import")
"""


def steps(first: int, last: int) -> list[events.Event]:
    """Steps with an evaluation, a sample, memory and hardware between them; times are whole seconds."""
    found: list[events.Event] = []
    for number in range(first, last + 1):
        found.append(step_event(number, t=float(number), epoch=number / 10, loss=2.0 / number, seconds=0.5))
        if number % 5 == 0:
            t, device = number + 0.5, {"index": 0, "kind": "cuda", "temperature_c": 61.0, "power_w": None}
            found += [
                events.EvalEvent(t=t, step=number, loss=1.5, perplexity=4.5, seconds=1.0),
                events.SampleEvent(t=t, step=number, prompt="secret prompt", text="x", source="base"),
                events.MemoryEvent(t=t, device="cuda:0", peak_bytes=1 << 30),
                events.HardwareEvent(t=t, devices=[device], energy_wh=0.25),
            ]
    return found


@dataclass
class TrackerProcess:
    """A tracker's process, and the file with its output."""

    process: Any
    said: Path

    def end(self) -> tuple[int, str]:
        """Wait for its end; the exit code and the output."""
        return self.process.wait(120), self.said.read_text()


@dataclass
class Desk:
    """A run, and trackers for it."""

    run: Run
    directory: Path
    forks: Forks = field(default_factory=Forks)
    is_fake: bool = False
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def write(self, told: list[events.Event]) -> None:
        """Append events, as a worker does."""
        with self.run.events_path.open("a", encoding="utf-8") as file:
            file.write("".join(map(events.encode_event, told)))

    def set_state(self, state: str) -> None:
        """Set the run's state; this process is its worker."""
        live_state(state, updated=4e9).write(self.run.state_path)

    def finish(self, last: int) -> None:
        """The end of a run."""
        self.write([events.FinishedEvent(reason="all steps done", step=last)])
        self.set_state("finished")

    def recorded(self, last: int, tool: Tracker, *, is_fake: bool = True, online: bool = False) -> TrackerFiles:
        """The files of a tracker for the run once it has done so many steps; its library is fake by default."""
        if is_fake:
            self.fake(tool)
        self.write(steps(1, last))
        self.finish(last)
        return TrackerFiles(self.run, tool, online)

    def fake(self, tool: str) -> None:
        """Put a fake library of this name on the path."""
        self.is_fake = True
        (self.directory / "lib").mkdir(exist_ok=True)
        (self.directory / "lib" / f"{tool}.py").write_text(textwrap.dedent(FAKE))

    def environment(self, place: TrackerFiles, **variables: str) -> dict[str, str]:
        """As the launcher makes it, with a directory of libraries on the path unless they are fake."""
        base = worker_environment() | {"FAKE_CALLS": str(self.directory / "calls"), **variables}
        if not self.is_fake:
            base["PYTHONPATH"] = os.pathsep.join([str(self.directory / "lib"), base.get("PYTHONPATH", "")])
        return tracker_environment(base, place)

    def start(self, place: TrackerFiles, *, patience: float = 60.0, **variables: str) -> TrackerProcess:
        """A tracker's process; one with fake libraries is forked."""
        place.make()
        command = tracker_command(place, patience)
        if self.is_fake:
            command[2:3] = ["tests.core.tracking.tracker", str(self.directory / "lib")]
        said = self.directory / f"said-{next(self.numbers)}"
        with said.open("wb") as file:
            environment, out = self.environment(place, **variables), file.fileno()
            process = self.forks.popen(command, env=environment, stdin=DEVNULL, stdout=out, stderr=STDOUT)
        return TrackerProcess(process, said)

    def track(self, place: TrackerFiles, *, patience: float = 60.0, **variables: str) -> tuple[int, str]:
        """Send the run, and wait; the exit code and the output."""
        return self.start(place, patience=patience, **variables).end()

    def calls(self, name: str) -> list[Any]:
        """Calls of a fake library."""
        try:
            lines = (self.directory / "calls").read_text().splitlines()
        except OSError:
            return []
        return [values for kind, *values in map(json.loads, lines) if kind == name]


def configured(directory: Path, **tracking: Any) -> Config:
    """A configuration with a [tracking]."""
    return Config(data=DataSection(train=str(directory / "private-rows.jsonl")), tracking=TrackingSection(**tracking))


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, forks: Forks) -> Iterator[Desk]:
    """A live run without events, in a home of its own."""
    with tempfile.TemporaryDirectory(prefix="lt-") as home:
        monkeypatch.setenv("LOCALTUNE_HOME", home)
        monkeypatch.delenv("WANDB_API_KEY", raising=False)
        found = Desk(create_run(configured(tmp_path, project="mine", name="first"), "tickets"), tmp_path, forks)
        found.set_state("training")
        yield found
