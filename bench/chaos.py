"""Random kills over one run, which is continued each time, against a run that nothing disturbs.

``python bench/chaos.py --kills 1000`` trains a tiny model with dropout, evaluations and a checkpoint every third step.
Its worker is killed (``SIGKILL``) at a random moment: before its first step, while a checkpoint is written, in an
evaluation, or at any time. The run is continued as a user would continue it, and killed again. At the end adapter,
optimizer and losses are compared with those of the run that nothing disturbed, byte for byte. Workers are forked from a
process that has imported the libraries, which saves each of them four seconds. ``--ranks 2`` kills one of the two
processes of a run, or all of them. Values go to ``bench/results/chaos-DATE.json``.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import pytest

from core.helper import start_detached
from core.launch import launcher
from core.runs.record.events import CheckpointEvent, EvalEvent, Event, NoticeEvent, PhaseEvent, StepEvent
from core.runs.record.history import read_history
from core.runs.record.state import EventTail
from core.runs.record.store import Run, complete_checkpoints
from core.worker.checkpoint.checkpoint import newest_valid
from tests.e2e.workers import Workers, adapter_bytes, events, log, only
from tests.forking import FAULT_VARIABLE, Forks
from tests.tiny_model import write_tiny_model

#: Steps that a life of a worker makes on average: the run is as long as its kills need it.
STEPS_A_LIFE = 2
#: What a kill is aimed at, and how often.
AIMS = {"any time": 5, "before the first step": 2, "checkpoint": 2, "evaluation": 1}
#: Seconds between two looks at a worker; a checkpoint of the tiny model takes ten times as long.
_LOOK = 0.001
#: Seconds that a worker may take to whatever it is killed in.
_PATIENCE = 300.0
#: Phases of a worker that is not there yet or has told nothing.
_SILENT = "before its first word"


def recipe(steps: int, ranks: int = 1) -> dict[str, dict[str, Any]]:
    """Configuration of the run: frequent evaluations with answers and checkpoints, so that kills hit them."""
    sections: dict[str, dict[str, Any]] = {
        "train": {"max_steps": steps, "learning_rate": 1e-3},
        "eval": {"every_steps": 10, "exact_match": True},
        "checkpoint": {"every_steps": 3, "keep": 2},
        "chat": {"max_new_tokens": 4},
    }
    # A run that has lost a process begins again by itself, as often as there are kills.
    several = {"distributed": {"strategy": "replicate", "processes": ranks, "restarts": 1000, "timeout": 60.0}}
    return sections | (several if ranks > 1 else {})


@dataclass(frozen=True)
class Fall:
    """Kill, as the files show it afterwards."""

    phase: str
    lost_steps: int
    """Steps done that no checkpoint has."""
    left_partial: bool
    """True if a checkpoint was left half-written."""
    ready_seconds: float | None
    """From its start to its first new step; None if it did not get there."""


@dataclass
class Pace:
    """How long things take here, from what was seen: moments are drawn from that."""

    ready: list[float] = field(default_factory=list)
    checkpoint: list[float] = field(default_factory=list)
    evaluation: list[float] = field(default_factory=list)

    def look_at(self, told: list[Event], began: float) -> float | None:
        """Learn from the events of a life; the seconds to its first step, None if there was none."""
        self.checkpoint += [event.seconds for event in only(CheckpointEvent, told)]
        self.evaluation += [event.seconds for event in only(EvalEvent, told)]
        steps = only(StepEvent, told)
        if not steps:
            return None
        self.ready.append(steps[0].t - began)
        return self.ready[-1]

    def seconds(self, aim: str) -> float:
        """The longest that is waited for a kill, from the moment that it is aimed at."""
        ready = statistics.median(self.ready or [1.0])
        if aim == "checkpoint":
            return statistics.median(self.checkpoint or [0.02]) * 1.2
        if aim == "evaluation":
            return statistics.median(self.evaluation or [0.1])
        return ready if aim == "before the first step" else ready * 2.2


class Launches:
    """The process that the launcher has started last, and those that it has started where a run has several.

    Args:
        forks: Forks them.
        ranks: Processes of a run.
    """

    def __init__(self, forks: Forks, ranks: int) -> None:
        self._forks, self._ranks = forks, ranks
        self._newest: subprocess.Popen[bytes] | None = None

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, workers are forked and seen."""

        def start(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
            self._newest = start_detached(*args, **kwargs)
            return self._newest

        with self._forks.replacing(), pytest.MonkeyPatch.context() as patch:
            patch.setattr("core.launch.launcher.start_detached", start)
            if self._ranks > 1:
                patch.setenv(FAULT_VARIABLE, "fork_ranks:0")
            yield

    @property
    def is_over(self) -> bool:
        """True if the process started by the launcher is gone."""
        assert self._newest is not None
        return self._newest.poll() is not None

    @property
    def pids(self) -> list[int]:
        """The run's processes that write or train: the worker, or those below the supervisor of several."""
        assert self._newest is not None
        return [self._newest.pid] if self._ranks == 1 else _children(self._newest.pid)

    def end(self) -> None:
        """Kill all of the run's processes."""
        assert self._newest is not None
        there = [self._newest.pid, *self.pids]
        for pid in there:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _wait(lambda: self.is_over and not any(map(_lives, there)))

    def kill(self, dice: random.Random) -> None:
        """Kill one of the run's processes at random, and wait until all that ends with it is gone: of several, those
        of the same start, whoever starts the next ones."""
        assert self._newest is not None
        there = self.pids
        victim = dice.choice([self._newest.pid, *there]) if self._ranks > 1 else self._newest.pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        if victim == self._newest.pid:
            _wait(lambda: self.is_over)
        _wait(lambda: not any(map(_lives, there)))


class Chaos:
    """Kills over one run.

    Args:
        workers: Start it.
        launches: See its processes.
        dice: Draws the moments.
        sections: Its recipe.
    """

    def __init__(
        self, workers: Workers, launches: Launches, dice: random.Random, sections: dict[str, dict[str, Any]]
    ) -> None:
        self._workers, self._launches, self._dice, self._sections = workers, launches, dice, sections
        self.pace = Pace()
        self.falls: list[Fall] = []
        self.finished: list[Run] = []
        self.damaged = 0
        self._begin()

    def _begin(self) -> None:
        launcher.reap()
        self._began = time.time()
        self.run = self._workers.start("chaos", **self._sections)
        self._tail, self._resumes = EventTail(self.run.events_path), False

    def undisturbed(self) -> Run:
        """The same run without a kill; what it takes is learned from it."""
        _wait(lambda: self._launches.is_over, patience=None)
        _assert_finished(self.run)
        told = self._tail.read_all()
        # Not from its start: the process that workers are forked from imported the libraries then.
        self.pace.look_at(told, told[0].t)
        run = self.run
        self._begin()
        return run

    def survive(self, kills: int, starts: int, progress: bool = False) -> None:
        """Kill so often, and let it come to its end; a run that ends before is begun again.

        Args:
            kills: How often.
            starts: How many of them are before the first checkpoint of a run, which is then begun anew.
            progress: Print a line now and then.
        """
        aims, weights = list(AIMS), list(AIMS.values())
        while len(self.falls) < kills:
            is_start = len(self.falls) < starts
            aim = "before the first step" if is_start else self._dice.choices(aims, weights)[0]
            self._reach(aim)
            pids = self._launches.pids
            if not self._launches.is_over:
                self._launches.kill(self._dice)
            if self.run.state().state == "finished":
                self._end()
                self._begin()
                continue
            self.falls.append(self._post_mortem(pids))
            if progress and len(self.falls) % 50 == 0:
                print(f"{len(self.falls)} kills, step {self.run.state().step}", flush=True)
            self._go_on(anew=is_start)
        _wait(lambda: self._launches.is_over, patience=None)
        self._end()

    def _reach(self, aim: str) -> None:
        """Wait until the moment to kill at, or until the worker has ended."""
        if aim == "checkpoint":
            self._wait_for(self._writes_checkpoint)
        elif aim == "evaluation":
            self._wait_for(self._evaluates)
        until = time.monotonic() + self._dice.uniform(0, self.pace.seconds(aim))
        self._wait_for(lambda: time.monotonic() >= until)

    def _wait_for(self, condition: Any) -> None:
        _wait(lambda: condition() or self._launches.is_over)

    def _writes_checkpoint(self) -> bool:
        return self._half_written(self._launches.pids)

    def _half_written(self, pids: list[int]) -> bool:
        signs = [f".{pid}." for pid in pids]
        try:
            names = os.listdir(self.run.checkpoints_path)
        except FileNotFoundError:
            return False
        return any(name.startswith(".step-") and sign in name for name in names for sign in signs)

    def _evaluates(self) -> bool:
        told = self._peek.read_all()
        return any(event.name == "evaluating" for event in only(PhaseEvent, told))

    @property
    def _peek(self) -> EventTail:
        """Reads what this life has told so far, without taking it from the post-mortem."""
        return EventTail(self.run.events_path, self._tail.offset)

    def _post_mortem(self, pids: list[int]) -> Fall:
        told = self._tail.read_all()
        saved = [int(path.name.removeprefix("step-")) for path in complete_checkpoints(self.run)]
        newest = saved[-1] if saved else 0
        done = max([event.step for event in only(StepEvent, told)], default=0)
        partial = self._half_written(pids)
        self.damaged += sum(event.code == "checkpoint_damaged" for event in only(NoticeEvent, told))
        return Fall(
            phase=self._phase(told, newest, partial),
            lost_steps=max(done - newest, 0),
            left_partial=partial,
            ready_seconds=self.pace.look_at(told, self._began),
        )

    def _phase(self, told: list[Event], newest: int, partial: bool) -> str:
        if partial:
            return "writing a checkpoint"
        known = [event.step for event in only(CheckpointEvent, told)]
        if self._done_here(told, newest) and newest not in known:
            return "a checkpoint just renamed"
        phases = [event.name for event in only(PhaseEvent, told)]
        name = phases[-1] if phases else _SILENT
        if name == "training":
            return "training"
        stepped = bool(only(StepEvent, told))
        return name if stepped else f"{'resume' if self._resumes else 'start'}: {name}"

    @staticmethod
    def _done_here(told: list[Event], step: int) -> bool:
        return any(event.step == step for event in only(StepEvent, told))

    def _go_on(self, *, anew: bool) -> None:
        """Continue the run, unless it does so by itself; before its first checkpoint it is begun again, as there is
        nothing to go on from."""
        if not self._launches.is_over and not anew:
            self._began, self._resumes = time.time(), True
            return
        if not self._launches.is_over:
            self._launches.end()
        if anew or not complete_checkpoints(self.run):
            self._begin()
            return
        launcher.reap()
        self._began, self._resumes = time.time(), True
        self._workers.resume(self.run)

    def _end(self) -> None:
        _assert_finished(self.run)
        self.pace.look_at(told := self._tail.read_all(), self._began)
        self.damaged += sum(event.code == "checkpoint_damaged" for event in only(NoticeEvent, told))
        self.finished.append(self.run)


def _children(pid: int) -> list[int]:
    """The processes that a process has started in sessions of their own, and that it has not yet collected."""
    found = []
    # It may end at any moment, and they too.
    with contextlib.suppress(OSError):
        for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if os.getsid(int(word)) == int(word):
                found.append(int(word))
    return found


def _lives(pid: int) -> bool:
    """True if a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _wait(condition: Any, patience: float | None = _PATIENCE) -> None:
    deadline = time.monotonic() + (patience or float("inf"))
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"The worker did not get there within {patience:g} s.")
        time.sleep(_LOOK)


def _assert_finished(run: Run) -> None:
    state = run.state()
    if state.state != "finished":
        raise AssertionError(f"{run.id} is {state.state}: {state.reason}\n{log(run)[-3000:]}")


def optimizer_hash(run: Run) -> str:
    """SHA-256 of the optimizer's states in the last checkpoint of a run."""
    found, _ = newest_valid(run.checkpoints_path)
    assert found is not None
    return str(found.manifest["files"]["optimizer.pt"]["sha256"])


def same(run: Run, undisturbed: Run) -> dict[str, bool]:
    """Files of two runs that are equal, byte for byte."""
    losses = [list(read_history(found).loss.values) for found in (run, undisturbed)]
    return {
        "adapter": adapter_bytes(run) == adapter_bytes(undisturbed),
        "optimizer": optimizer_hash(run) == optimizer_hash(undisturbed),
        "losses": losses[0] == losses[1],
    }


def summary(chaos: Chaos, undisturbed: Run) -> dict[str, Any]:
    """The figures."""
    falls = chaos.falls
    ready = sorted(fall.ready_seconds for fall in falls if fall.ready_seconds is not None)
    lost = [fall.lost_steps for fall in falls]
    phases = collections.Counter(fall.phase for fall in falls)
    equal = [same(run, undisturbed) for run in chaos.finished]
    notices = [event.code for run in chaos.finished for event in only(NoticeEvent, events(run))]
    return {
        "kills": len(falls),
        "runs": len(chaos.finished),
        "phases": dict(phases.most_common()),
        "steps_lost": {"median": statistics.median(lost), "most": max(lost), "total": sum(lost)},
        "checkpoints_left_half_written": sum(fall.left_partial for fall in falls),
        "checkpoints_damaged": chaos.damaged,
        "resumed": notices.count("resumed"),
        "seconds_to_the_next_step": {
            "median": round(statistics.median(ready), 3),
            "most": round(ready[-1], 3),
        }
        if ready
        else None,
        "bit_equal": {name: all(found[name] for found in equal) for name in ("adapter", "optimizer", "losses")},
    }


def measure(
    place: Path, *, kills: int, steps: int, seed: int, ranks: int = 1, progress: bool = False
) -> dict[str, Any]:
    """Kill a run so often; what came of it.

    Args:
        place: A directory for model, data and runs.
        kills: How often.
        steps: Optimizer steps of the run.
        seed: Of the moments.
        ranks: Processes of the run.
        progress: Print a line now and then.
    """
    workers = Workers(place, write_tiny_model(place / "model"))
    forks = Forks()
    launches = Launches(forks, ranks)
    try:
        with launches.watched():
            chaos = Chaos(workers, launches, random.Random(seed), recipe(steps, ranks))
            undisturbed = chaos.undisturbed()
            chaos.survive(kills, starts=max(kills // 50, 1), progress=progress)
            return summary(chaos, undisturbed)
    finally:
        workers.close()
        forks.close()


def main() -> int:
    """Kill a run again and again; the exit code says whether it ended as the one that nothing disturbed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="how often its worker is killed")
    parser.add_argument("--ranks", type=int, default=1, help="processes of the run")
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps of the run (default: 2 a kill)")
    parser.add_argument("--seed", type=int, default=None, help="of the moments")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 30)
    steps = args.steps or max(args.kills * STEPS_A_LIFE, 30)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        found = measure(Path(place), kills=args.kills, steps=steps, seed=seed, ranks=args.ranks, progress=True)
    setup = {"machine": platform.platform(), "cores": os.cpu_count(), "ranks": args.ranks, "steps": steps, "seed": seed}
    result = {**setup, **found, "minutes": round((time.monotonic() - began) / 60, 1)}
    name = f"chaos{f'-{args.ranks}-ranks' if args.ranks > 1 else ''}-{datetime.date.today().isoformat()}.json"
    (ROOT / "bench" / "results" / name).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    return 0 if all(found["bit_equal"].values()) and not found["checkpoints_damaged"] else 1


if __name__ == "__main__":
    sys.exit(main())
