"""The governor in real workers: rests change nothing, and pauses are the governor's or the user's."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from core.errors import UserError
from core.runs.control.client import ControlClient
from core.runs.record.events import CheckpointEvent, GovernorEvent, NightEvent, NoticeEvent
from core.runs.record.history import read_history
from core.runs.record.store import Run
from tests.core.hardware.conftest import fake_driver as fake_driver
from tests.waiting import wait_for

from .workers import (
    PATIENCE,
    Workers,
    adapter_bytes,
    ending,
    exit_code,
    finish,
    hooked,
    log,
    only,
    steps,
    wait_until_state,
    wait_until_step,
)

SHORT = {"max_steps": 10}
#: A worker with a duty cycle from the beginning, which writes down how long it has rested.
RESTING = """
import atexit, os
from pathlib import Path
from core.worker.process.governor import Throttle
begin = Throttle.__init__
def resting(self, controls, *args, **options):
    begin(self, controls, float(os.environ["TEST_DUTY"]), *args, **options)
    atexit.register(lambda: Path(os.environ["TEST_RESTED"]).write_text(str(self.rested_seconds)))
Throttle.__init__ = resting
"""

#: A worker on the CPU with the meters of the driver's card. Its governor runs 400 times as fast, and its wall clock
#: starts just after 23:00 and runs 7,200 times as fast.
HOOKS = """
import time
from datetime import datetime
from core.worker.process import governor, recorder
began, evening = time.monotonic(), datetime(2026, 11, 26, 23, 1).timestamp()
watch, begin = recorder.Recorder.watch, governor.Governor.__init__
recorder.Recorder.watch = lambda self, device: watch(self, "GPU-00000010-1111-2222-3333-444455556666")
def fast(self, *args, **options):
    wall = lambda: evening + (time.monotonic() - began) * 7200
    begin(self, *args, **options, interval=0.02, clock=lambda: time.monotonic() * 400, wall=wall)
governor.Governor.__init__ = fast
"""

#: A worker with the driver card's meters that measures its pace and plans instantly.
QUICK_HOOKS = """
from core.governor import night
from core.worker.process import governor, recorder
watch, begin = recorder.Recorder.watch, governor.Governor.__init__
recorder.Recorder.watch = lambda self, device: watch(self, "GPU-00000010-1111-2222-3333-444455556666")
governor.Governor.__init__ = lambda self, *args, **options: begin(self, *args, **options, interval=0.02)
night.TRIAL_SECONDS, night.PLAN_SECONDS = 0.05, 0.1
"""


class Card:
    """The card of a fake driver, and the environment of workers that read its meters."""

    def __init__(self, directory: Path, driver: Path, hooks: str = HOOKS) -> None:
        self._readings = directory / "readings"
        meters = {"LD_LIBRARY_PATH": str(driver), "FAKE_NVML": "", "FAKE_NVML_FILE": str(self._readings)}
        self.variables = hooked(directory / "hooks", hooks, **meters)

    def show(self, temperature: int) -> None:
        """Have the driver report a temperature, in °C."""
        new = self._readings.with_suffix(".new")
        new.write_text(f"temperature={temperature}\npower=200000\n")
        new.replace(self._readings)


def train_at(workers: Workers, duty: float) -> tuple[Run, float]:
    """A short run at a duty cycle, and the seconds that it rested."""
    rested = workers.directory / f"rested-{duty}"
    name = f"at-{duty}"
    told = {"TEST_DUTY": str(duty), "TEST_RESTED": str(rested)}
    run = workers.finished(name, hooked(workers.directory / name, RESTING, **told), train=SHORT)
    return run, float(rested.read_text())


@pytest.mark.long
def test_rests_change_no_bit_of_what_is_trained(workers: Workers) -> None:
    (full, none), (half, rested) = train_at(workers, 1.0), train_at(workers, 0.5)
    assert none == 0.0
    assert rested > 0.3 * sum(event.seconds for event in steps(half)), "it did rest"
    assert adapter_bytes(half) == adapter_bytes(full)
    assert [event.loss for event in steps(half)] == [event.loss for event in steps(full)]


def test_a_pause_of_the_governor_and_one_of_the_user_end_apart(workers: Workers) -> None:
    run = workers.held("governed", 2, train=SHORT)
    with ControlClient(run) as client:
        client.request("set", **{"hardware.disk_free_min_gb": 1_000_000})
        state = wait_until_state(run, "paused")
        assert state.reason.startswith("room on the disk is at ")
        assert state.reason.endswith("GB)")
        with pytest.raises(UserError, match="The governor pauses the run: room on the disk") as refused:
            client.request("resume")
        assert refused.value.hint.endswith(f"sooner with another limit: 'localtune-tui set {run.id}'.")
        client.request("pause")
        client.request("set", **{"hardware.disk_free_min_gb": None})
        wait_for(lambda: not run.state().reason, PATIENCE, "the governor's pause to end")
        assert run.state().state == "paused", "that of the user is on"
        for told in ("night.deadline", "hardware.temperature_limit_c"):
            value = {"night.deadline": "25:00", "hardware.temperature_limit_c": 80}[told]
            with pytest.raises(UserError):
                client.request("set", **{told: value})
        client.request("set", **{"night.deadline": "07:00"})
        client.request("resume")
    finish(run)
    actions = [event.action for event in only(GovernorEvent, run)]
    assert actions == ["pause", "resume"]
    history = read_history(run)
    assert history.settings == {"hardware.disk_free_min_gb": None, "night.deadline": "07:00"}
    assert [mark.kind for mark in history.marks].count("governor") == 2
    assert history.paused_seconds > 0


@pytest.mark.long
def test_heat_that_no_pause_cools_stops_the_run_after_a_checkpoint(workers: Workers, fake_driver: Path) -> None:
    card = Card(workers.directory, fake_driver)
    card.show(60)
    limit = {"temperature_limit_c": 80.0}
    run = workers.start(
        "hot", variables=card.variables, train={"max_steps": 2000}, eval={"every_steps": None}, hardware=limit
    )
    wait_until_step(run, 3)
    assert not only(GovernorEvent, run), "it is cool"
    card.show(95)
    state = wait_until_state(run, "paused", "stopped")
    assert exit_code(run) == 3, (state, log(run))
    end = ending(run)
    assert end.reason.startswith("stopped by the governor, as the device is at 95 °C (limit 80 °C)")
    events = only(GovernorEvent, run)
    assert [event.action for event in events if event.action not in ("slow", "full")] == ["pause", "stop"]
    assert only(CheckpointEvent, run)[-1].step == end.step
    assert {(event.cause, event.limit) for event in events} == {("temperature", 80.0)}
    card.show(60)
    with workers.environment(**card.variables):
        workers.resume(run)
    wait_until_step(run, end.step + 1)
    assert only(GovernorEvent, run) == events, "it is cool again"
    ControlClient(run).request("stop")
    assert exit_code(run) == 3
    done = [event.step for event in steps(run)]
    assert done == list(range(1, done[-1] + 1)), "no step is lost or done twice"


@pytest.mark.long
def test_a_run_started_in_quiet_hours_waits_for_the_morning(workers: Workers, fake_driver: Path) -> None:
    card = Card(workers.directory, fake_driver)
    card.show(60)
    quiet = {"quiet_hours": "23:00-07:00"}
    run = workers.start(
        "quiet", variables=card.variables, train={"max_steps": 400}, eval={"every_steps": None}, night=quiet
    )
    wait_for(lambda: len(only(GovernorEvent, run)) >= 2, PATIENCE, "the night to be over")
    ControlClient(run).request("stop", now=True)
    assert exit_code(run) == 3
    pause, resume = only(GovernorEvent, run)[:2]
    assert [(event.action, event.cause) for event in (pause, resume)] == [
        ("pause", "quiet hours"),
        ("resume", "quiet hours"),
    ]
    # Eight hours by the wall; the night was on when the run began.
    assert 0 < (resume.t - pause.t) * 7200 / 3600 < 8.5
    assert not [event for event in steps(run) if pause.t + 1.0 < event.t < resume.t]


@pytest.mark.long
def test_a_deadline_that_cannot_be_met_is_given_up_and_a_new_one_refused(workers: Workers, fake_driver: Path) -> None:
    def soon(minutes: int) -> str:
        return time.strftime("%H:%M", time.localtime(time.time() + 60 * minutes))

    card = Card(workers.directory, fake_driver, QUICK_HOOKS)
    card.show(60)
    run = workers.start(
        "late",
        variables=card.variables,
        train={"max_steps": 50_000},  # half an hour at the least
        eval={"every_steps": None},
        night={"deadline": soon(3)},
    )
    wait_for(lambda: only(NightEvent, run), PATIENCE, "the first minutes to be measured")
    first = only(NightEvent, run)[0]
    assert first.cause == "given_up"
    assert first.deadline is not None
    assert first.nearest_deadline is not None
    assert first.deadline < first.finish < first.nearest_deadline
    wait_for(lambda: "night_deadline" in [event.code for event in only(NoticeEvent, run)], PATIENCE, "the notice")
    with ControlClient(run) as client:
        with pytest.raises(UserError, match="cannot be met: at full speed it ends at") as error:
            client.request("set", **{"night.deadline": soon(5)})
        nearest = re.fullmatch(r"Set (\d\d):(\d\d) or later\.", error.value.hint)
        assert nearest is not None
        assert not read_history(run).settings, "the old wish stays"
        # Two hours later, in case that the machine becomes slower meanwhile.
        client.request("set", **{"night.deadline": f"{(int(nearest[1]) + 2) % 24:02}:{nearest[2]}"})
        kept = wait_for(
            lambda: [event for event in only(NightEvent, run) if event.deadline != first.deadline],
            PATIENCE,
            "a promise",
        )
        assert kept[0].nearest_deadline is None
        client.request("stop", now=True)
    assert exit_code(run) == 3
