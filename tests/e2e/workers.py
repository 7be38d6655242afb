"""Real workers on a tiny model: started, watched, killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from core.config.schema import Config
from core.launch import launcher
from core.models.architecture import measuring
from core.runs.outlook.estimate import PaceBook
from core.runs.outlook.forecast import forecast_here
from core.runs.record.events import Event, FailedEvent, FinishedEvent, NoticeEvent, PhaseEvent, StepEvent
from core.runs.record.state import EventTail, RunState
from core.runs.record.store import Run, list_runs
from tests.forking import FAULT_VARIABLE
from tests.waiting import has_ended, wait_for

E = TypeVar("E", bound=Event)

#: Seconds for a worker to get anywhere: it takes a few by itself, and many where the machine is busy.
PATIENCE = 120.0
STEPS = 48
#: Default configuration of the runs, with dropout and evaluations with answers. Only the undisturbed reference run has
#: the probe, which takes an eighth of its time and does not change the training.
RECIPE: dict[str, dict[str, Any]] = {
    "method": {"name": "qlora", "rank": 4, "alpha": 8, "dropout": 0.1},
    "train": {"max_steps": STEPS, "batch_size": 4, "max_length": 256, "learning_rate": 5e-3, "seed": 7},
    "eval": {"every_steps": 10, "exact_match": True, "probe": False},
    "checkpoint": {"every_steps": 5, "keep": 3},
    "hardware": {"device": "cpu"},
    "chat": {"max_new_tokens": 8},
}
_AREAS = ("billing", "login", "printer", "network", "refund")


def write_rows(path: Path, count: int, seed: int = 1) -> Path:
    """Write conversations of different lengths, the same ones for the same arguments."""
    dice = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            words = " ".join(dice.choice(_AREAS) for _ in range(dice.randint(1, 12)))
            answer = json.dumps({"area": dice.choice(_AREAS), "ref": number})
            turns = [{"role": "user", "content": f"ticket {words}"}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


def held_at(*steps: int) -> dict[str, str]:
    """Variables of a run that waits after some steps, 0 for before the first, until something is asked of it by its
    socket or a signal, or it is killed.

    A step takes 20 ms: other runs may be over before a busy machine gets to their test again.
    """
    return {FAULT_VARIABLE: f"hold:{','.join(map(str, steps))}"}


#: Variables of a run that waits where a rollback has taken it back to, as :func:`held_at` does.
HELD_BACK = {FAULT_VARIABLE: "hold_back:1"}


def import_hook(variable: str, module: str, change: str) -> str:
    """The text of a ``sitecustomize`` that changes a module when it is imported.

    Args:
        variable: Of the environment; nothing is changed where it is not set.
        module: Name of the module.
        change: Statements, which know it as ``module``.
    """
    return f"""
import importlib.machinery, os, sys

class Patcher:
    def find_spec(self, name, path=None, target=None):
        if name != "{module}":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        real = spec.loader.exec_module
        def exec_module(module):
            real(module)
            change(module)
        spec.loader.exec_module = exec_module
        return spec

def change(module):
{textwrap.indent(textwrap.dedent(change).strip(), "    ")}

if os.environ.get("{variable}"):
    sys.meta_path.insert(0, Patcher())
"""


def hooked(directory: Path, text: str, **variables: str) -> dict[str, str]:
    """Variables of a process that runs some lines before anything else, beside others.

    Args:
        directory: To hold a ``sitecustomize`` with the lines.
        text: The lines.
        variables: The others.
    """
    directory.mkdir(exist_ok=True)
    (directory / "sitecustomize.py").write_text(text)
    return variables | {"PYTHONPATH": f"{directory}{os.pathsep}{launcher.worker_environment()['PYTHONPATH']}"}


#: Injects the fault of a spawned process when it imports the control point between two steps.
_HOOK = import_hook(
    FAULT_VARIABLE,
    "core.worker.control_point",
    f"""
    from tests.faults.injections import inject
    inject(os.environ["{FAULT_VARIABLE}"])
    """,
)


@dataclass
class Workers:
    """Starts workers in a home of their own.

    Args:
        directory: Holds the home and the data.
        model: The base model.
    """

    directory: Path
    model: Path

    def __post_init__(self) -> None:
        self.train_data = write_rows(self.directory / "train.jsonl", 40, seed=1)
        self.eval_data = write_rows(self.directory / "eval.jsonl", 5, seed=2)
        self.home = self.directory / "home"
        # A started worker would measure the model anew, in a process that imports everything once more.
        (self.home / "cache").mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.home / "cache" / "measured").symlink_to(measuring._directory())

    def measure(self, config: Config) -> None:
        """Measure the model as a run has it, before workers that are not forked do."""
        forecast_here(config, None, None, PaceBook())

    def config(self, **sections: dict[str, Any]) -> Config:
        """The recipe with some options changed."""
        values: dict[str, dict[str, Any]] = {name: dict(section) for name, section in RECIPE.items()}
        values["model"] = {"base": str(self.model)}
        values["data"] = {"train": str(self.train_data), "eval": str(self.eval_data)}
        for name, section in sections.items():
            values[name] = values.get(name, {}) | section
        return Config.model_validate(values)

    @contextlib.contextmanager
    def environment(self, **variables: str) -> Any:
        """The environment that workers are started in."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"LOCALTUNE_HOME": str(self.home), "OMP_NUM_THREADS": "1", **variables}.items():
                patch.setenv(name, value)
            yield

    def start(self, name: str = "tiny", variables: dict[str, str] | None = None, **sections: dict[str, Any]) -> Run:
        """Start a run of the recipe with some options changed."""
        config = self.config(**sections)
        with self.environment(**(variables or {})):
            return launcher.start_run(config, name)

    def held(self, name: str, step: int, **sections: dict[str, Any]) -> Run:
        """A run of the recipe with some options changed, that waits after a step."""
        run = self.start(name, held_at(step), **sections)
        wait_until_step(run, step)
        return run

    def finished(self, name: str, variables: dict[str, str] | None = None, **sections: dict[str, Any]) -> Run:
        """A run of the recipe with some options changed, that has finished."""
        run = self.start(name, variables, **sections)
        finish(run)
        return run

    def held_anew(self, *steps: int) -> dict[str, str]:
        """As :func:`held_at`, for a run with processes that are started and not forked: in a test marked ``anew``, in
        another environment, or by a supervisor."""
        return self.anew(held_at(*steps))

    def anew(self, fault: dict[str, str]) -> dict[str, str]:
        """Variables with a fault, for processes that are started and not forked."""
        return hooked(self.directory / "holding", _HOOK, **fault)

    def resume(self, run: Run, variables: dict[str, str] | None = None) -> None:
        """Let an ended run go on."""
        with self.environment(**(variables or {})):
            launcher.continue_run(run)

    def complete(self, run: Run) -> None:
        """Let an ended run go on, and wait for it to finish."""
        self.resume(run)
        finish(run)

    def copy(self, run: Run, name: str) -> Run:
        """An ended run once more, to be damaged."""
        twin = Run(run.path.with_name(f"{run.id}-{name}"))
        shutil.copytree(run.path, twin.path)
        return twin

    def close(self) -> None:
        """Kill the remaining processes."""
        with self.environment():
            runs = list_runs()
        for run in runs:
            state = RunState.read(run.state_path)
            if state is not None and state.pid is not None and not run.state().is_over:
                with contextlib.suppress(ProcessLookupError):  # it may end by itself at this moment
                    os.kill(state.pid, signal.SIGKILL)
                wait_for(partial(has_ended, state.pid), PATIENCE, f"the worker of {run.id} to end")
        launcher.reap()


def pid_of(run: Run) -> int:
    """The pid of a run's worker, once it has written it."""

    def written() -> int | None:
        state = RunState.read(run.state_path)
        return state.pid if state else None

    pid = wait_for(written, PATIENCE, f"the worker of {run.id} to begin")
    assert pid is not None
    return pid


def exit_code(run: Run) -> int:
    """Wait for the newest worker of a run to end; its exit code, negative for the signal that killed it.

    The worker is looked at, not collected, so that it can be asked again.
    """
    pid = pid_of(run)
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    ended = wait_for(lambda: os.waitid(os.P_PID, pid, flags), PATIENCE, f"the worker of {run.id} to end")
    assert ended is not None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def signal_worker(run: Run, number: signal.Signals) -> None:
    """Send the worker of a run a signal."""
    os.kill(pid_of(run), number)


def kill(run: Run) -> None:
    """``kill -9`` the worker of a run and wait until it is gone."""
    signal_worker(run, signal.SIGKILL)
    assert exit_code(run) == -signal.SIGKILL


def wait_until(run: Run, is_reached: Callable[[RunState], object], what: str, interval: float = 0.01) -> RunState:
    """Wait for a state of a run, which must not be over before."""

    def reached() -> RunState | None:
        state = run.state()
        if is_reached(state):
            return state
        assert not state.is_over, (state, log(run))
        return None

    state = wait_for(reached, PATIENCE, f"{run.id} to be {what}", interval=interval)
    assert state is not None
    return state


def wait_until_step(run: Run, step: int) -> None:
    """Wait until a step of a run is done."""

    def is_done(state: RunState) -> bool:
        return state.step >= step and state.state not in ("queued", "starting")

    wait_until(run, is_done, f"at step {step}", 0.002)


def wait_until_parked(run: Run) -> RunState:
    """Wait until a run waits without its device, and takes commands there."""
    return wait_until(run, lambda state: state.parked and state.socket, "parked")


def stop_at(run: Run, step: int) -> None:
    """Stop a run by a signal once it has done a step."""
    wait_until_step(run, step)
    signal_worker(run, signal.SIGTERM)
    assert exit_code(run) == 3, log(run)


def wait_until_listening(run: Run) -> None:
    """Wait until a run takes commands."""
    wait_for(lambda: only(PhaseEvent, run), PATIENCE, f"{run.id} to listen")


def wait_until_state(run: Run, *states: str) -> RunState:
    """Wait for a run to reach any of several states."""
    return wait_until(run, lambda state: state.state in states, " or ".join(states))


def log(run: Run) -> str:
    """Output of the workers of a run."""
    return run.log_path.read_text(encoding="utf-8", errors="replace") if run.log_path.exists() else ""


def events(run: Run) -> list[Event]:
    """All events of a run."""
    return EventTail(run.events_path).read_all()


def only(kind: type[E], source: Run | Iterable[Event]) -> list[E]:
    """The events of one type."""
    found = events(source) if isinstance(source, Run) else source
    return [event for event in found if type(event) is kind]


def steps(run: Run) -> list[StepEvent]:
    """The steps of a run."""
    return only(StepEvent, run)


def losses(run: Run) -> list[float]:
    """The loss of each step, in the order in which they were done."""
    return [step.loss for step in steps(run)]


def wait_until_evaluating(run: Run) -> None:
    """Wait until a run evaluates its model."""
    wait_for(lambda: "evaluating" in [event.name for event in only(PhaseEvent, run)], PATIENCE, "the measurement")


def notice_codes(run: Run) -> list[str]:
    """Notices of a run."""
    return [notice.code for notice in only(NoticeEvent, run)]


def ending(run: Run) -> FinishedEvent:
    """The last event of a run."""
    last = events(run)[-1]
    assert isinstance(last, FinishedEvent), (last, log(run))
    return last


def failure(run: Run) -> FailedEvent:
    """How a run failed: it left with 4, and the record of it is a sentence, not a traceback."""
    assert exit_code(run) == 4, log(run)
    state, last = run.state(), ending(run)
    assert state.state == "failed"
    assert isinstance(last, FailedEvent)
    assert state.reason == last.reason
    assert "Traceback" not in run.events_path.read_text()
    assert "should not happen" not in last.reason, log(run)
    assert "\n" not in last.reason
    assert last.reason.endswith((".", ")"))
    return last


def adapter_bytes(run: Run) -> bytes:
    """The weights of the final adapter."""
    return (run.adapter_path / "adapter_model.safetensors").read_bytes()


def finish(run: Run) -> None:
    """Wait for a run to finish."""
    code = exit_code(run)
    assert code == 0, (run.state(), log(run))
    assert run.state().state == "finished"


def kill_and_finish(workers: Workers, run: Run, step: int) -> None:
    """Kill a run that is held after a step, and let it go on and finish."""
    wait_until_step(run, step)
    kill(run)
    workers.complete(run)
    assert "resumed" in notice_codes(run)
