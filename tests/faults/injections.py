"""Faults inside a forked worker: functions of libraries that fail, or do not return, at a given step.

A test names one in the environment of the worker that it starts: ``LOCALTUNE_TEST_FAULT=lost_gpu:8``. The code under
test knows nothing of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

#: Error of torch at the next call after a card has fallen off the bus.
LOST_GPU = (
    "CUDA error: unspecified launch failure\n"
    "CUDA kernel errors might be asynchronously reported at some other API call."
)
#: Until the file that it names is there, :func:`hang_in_rows` does not return; :func:`wait_within` has one a step.
RELEASE_VARIABLE = "LOCALTUNE_TEST_RELEASE"


def inject(fault: str) -> None:
    """Put a fault in: its name and a step, or several; of more faults, one after the other with a semicolon between."""
    for one in fault.split(";"):
        name, _, steps = one.partition(":")
        FAULTS[name](*map(int, steps.split(",")))


def lost_gpu(step: int) -> None:
    """A backward pass that fails as on a card that is gone."""
    import torch

    backward, done = torch.Tensor.backward, 0

    def failing(self: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        nonlocal done
        backward(self, *args, **kwargs)  # type: ignore[no-untyped-call]
        done += 1
        if done >= step:
            raise torch.AcceleratorError(LOST_GPU)

    torch.Tensor.backward = failing  # type: ignore[method-assign]


def hang_in_rows(step: int) -> None:
    """Padding of rows that does not return; any step counts as long that takes ten times more than the others."""
    from core.worker.data import batches
    from core.worker.process import step_watchdog

    step_watchdog.LONG_SECONDS = 0.0
    pad, done = batches.pad, 0

    def hanging(rows: Any, pad_id: int) -> Any:
        nonlocal done
        done += 1
        while done == step and not Path(os.environ[RELEASE_VARIABLE]).exists():
            time.sleep(0.01)
        return pad(rows, pad_id)

    batches.pad = hanging


def hang_between(step: int) -> None:
    """A first process that hangs after this step; later processes do not."""
    from core.worker.control_point import ControlPoint

    attend = ControlPoint.attend

    def hanging(self: ControlPoint) -> None:
        if self.state.step == step:
            with contextlib.suppress(FileExistsError):
                (self.recorder.run.path / "hung").touch(exist_ok=False)
                while True:
                    time.sleep(0.01)
        attend(self)

    ControlPoint.attend = hanging  # type: ignore[method-assign]


def tell_pulse(_: int) -> None:
    """No fault: long operations write the pulse of the first process, a line each."""
    from core.worker.checkpoint.checkpointer import Checkpointer
    from core.worker.control_point import ControlPoint
    from core.worker.evaluate.evaluate import Evaluator

    def told(kind: type, name: str, orders: Callable[[Any], Any]) -> None:
        work = getattr(kind, name)

        def telling(self: Any, *args: Any, **kwargs: Any) -> Any:
            line = f"{name} {orders(self).ranks.pulse.count}\n"
            with Path(os.environ[RELEASE_VARIABLE]).open("a") as file:
                file.write(line)
            return work(self, *args, **kwargs)

        setattr(kind, name, telling)

    last: list[Any] = [None]

    def of_control(point: Any) -> Any:
        last[0] = point.strategy.orders
        return last[0]

    for name in ("_carry_out", "_wait", "attend"):
        told(ControlPoint, name, of_control)
    told(Checkpointer, "_save", lambda keeper: keeper.strategy.orders)
    told(Evaluator, "measure", lambda _: last[0])


def wait_within(*steps: int) -> None:
    """No fault: each of these steps waits before its second micro-batch until a file of that step exists, so that a
    request arrives in the middle of the step."""
    from core.worker.process.recorder import Recorder

    tell = Recorder.progress

    def waiting(self: Recorder, what: str, done: int = 0, total: int = 0) -> None:
        tell(self, what, done, total)
        step = self.state.step + 1
        release = Path(f"{os.environ[RELEASE_VARIABLE]}-{step}")
        while what == "micro_batches" and done and step in steps and not release.exists():
            time.sleep(0.002)

    Recorder.progress = waiting  # type: ignore[method-assign]


def hold(*steps: int) -> None:
    """No fault: when each of these steps is done (0: before the first), the run waits until something is asked of it,
    by its socket or by a signal, so that a test meets it there however busy the machine is."""
    from core.worker.control_point import ControlPoint

    attend, left, begun = ControlPoint.attend, sorted(steps), False

    def waiting(self: ControlPoint) -> None:
        nonlocal begun
        if not begun and self.state.step:
            # It goes on: the steps before were another process's.
            left[:] = [step for step in left if step > self.state.step]
        begun = True
        while left and self.state.step >= left[0]:
            if self.controls.waiting_count or self.controls.pending:
                del left[0]
            else:
                time.sleep(0.002)
        attend(self)

    ControlPoint.attend = waiting  # type: ignore[method-assign]


def hold_back(_: int) -> None:
    """No fault: a run that has gone back to an earlier step waits there until something is asked of it."""
    from core.worker.control_point import ControlPoint

    attend, newest = ControlPoint.attend, 0

    def waiting(self: ControlPoint) -> None:
        nonlocal newest
        while self.state.step < newest and not (self.controls.waiting_count or self.controls.pending):
            time.sleep(0.002)
        newest = self.state.step
        attend(self)

    ControlPoint.attend = waiting  # type: ignore[method-assign]


def fork_ranks(_: int) -> None:
    """No fault: a forked supervisor forks the processes of its run, which saves their imports too."""
    from core.worker.supervise import process

    process.subprocess = SimpleNamespace(  # type: ignore[attr-defined,assignment]
        Popen=ForkedRank, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired
    )


class ForkedRank:
    """A process of a run, forked instead of started, as its supervisor looks at it."""

    def __init__(self, command: list[str], *, stdout: int, env: dict[str, str], **_: object) -> None:
        self.returncode: int | None = None
        if (pid := os.fork()) == 0:
            self._become(command[command.index("core.worker") + 1 :], stdout, env)
        self.pid = pid

    @staticmethod
    def _become(words: list[str], log: int, environment: dict[str, str]) -> None:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.clear()
        os.environ.update(environment)
        from core.worker.__main__ import main
        from tests.forking import Forks

        code = 1
        try:
            # The helpers of the supervisor would not become children of this process.
            with Forks.beside(max(map(int, os.listdir("/proc/self/fd")))).replacing():
                code = main(words)
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        """Its exit code; None while it lives."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Wait for its end."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired("a process", timeout)
            time.sleep(0.002)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)


FAULTS: dict[str, Callable[..., None]] = {
    fault.__name__: fault
    for fault in (lost_gpu, hang_in_rows, hang_between, hold, hold_back, tell_pulse, wait_within, fork_ranks)
}
