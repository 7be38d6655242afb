"""Processes forked from one that has imported a worker's libraries: a training of 20 steps takes a second there, where
the imports alone take six. Each begins as a new worker does: nothing that another model has left is in it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, TypeVar

import pytest

from core.config.schema import Config
from core.models.architecture import measuring
from core.runs.record.store import Run, create_run
from tests.measured_here import run_here, share_measurements

T = TypeVar("T")

#: Seconds for a process to end on a busy machine.
PATIENCE = 180.0


def call(function: Callable[..., T], *args: Any, log: Path) -> T:
    """The result of a function in a new process.

    Args:
        function: Of a module.
        args: Its arguments; they and the result are pickled.
        log: The file that the process prints into.
    """
    found = log.with_suffix(".pickle")
    code = _run(_call, (function, args, found, log))
    assert code == 0, f"exit code {code}:\n{log.read_text(encoding='utf-8', errors='replace')[-4000:]}"
    result: T = pickle.loads(found.read_bytes())  # noqa: S301 - our own
    return result


def begin(
    config: Config,
    home: Path,
    name: str,
    *,
    dies_in_step: int | None = None,
    first: Callable[[], None] | None = None,
) -> tuple[Run, int]:
    """Do a run from its beginning.

    Args:
        config: Of the run.
        home: The home that it is in.
        name: Its subject.
        dies_in_step: The step in which ``SIGKILL`` ends the worker; None for none.
        first: A function of a module, called in the process before the worker.

    Returns:
        The run and the exit code of its worker, negative for the signal that killed it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALTUNE_HOME", str(home))
        run = create_run(config, name)
    return run, _run(_work, (run.path, home, False, dies_in_step, first))


def resume(run: Run, home: Path) -> int:
    """Let a run go on from its newest checkpoint; the exit code of its worker."""
    return _run(_work, (run.path, home, True, None, None))


def _run(target: Callable[..., None], args: tuple[Any, ...]) -> int:
    context = multiprocessing.get_context("forkserver")
    with pytest.MonkeyPatch.context() as patch:
        # The environment of the process that the others are forked from, which is started once.
        patch.setenv("OMP_NUM_THREADS", "1")
        context.set_forkserver_preload(["tests.families.warm"])
        forkserver.ensure_running()
    process = context.Process(target=target, args=args)
    process.start()
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        process.join()
        pytest.fail(f"it took more than {PATIENCE:g} s: {args}")
    return process.exitcode


# In the process.


def _print_to(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def _call(function: Callable[..., Any], args: tuple[Any, ...], found: Path, log: Path) -> None:
    _print_to(log)
    found.write_bytes(pickle.dumps(function(*args)))


def _work(run: Path, home: Path, resumes: bool, dies_in_step: int | None, first: Callable[[], None] | None) -> None:
    """A worker with a session and a log of its own, as the launcher starts it."""
    os.setsid()
    _print_to(run / "worker.log")
    os.environ["LOCALTUNE_HOME"] = str(home)
    share_measurements()
    _measure_beside()
    if dies_in_step is not None:
        _die_in_step(dies_in_step)
    if first is not None:
        first()
    from core.worker.__main__ import main

    sys.exit(main([str(run), *(["--resume"] if resumes else [])]))


def _measure_beside() -> None:
    """Measure models in a process forked from this one at its start, instead of one that imports everything anew."""
    here, there = multiprocessing.Pipe()
    if os.fork() == 0:
        here.close()
        with contextlib.suppress(EOFError):  # the worker has ended
            while True:
                there.send(run_here(there.recv()))
        os._exit(0)
    there.close()

    def ask(job: dict[str, Any]) -> dict[str, Any]:
        here.send(job)
        found: dict[str, Any] = here.recv()
        return found

    measuring._run = ask


def _die_in_step(step: int) -> None:
    """Have the process killed in a step, when its gradients are there and its weights are not yet changed."""
    from core.worker.train import FinetuneRecipe, Gradients

    usual = FinetuneRecipe.accumulate

    def accumulate(self: FinetuneRecipe, micro_batches: list[list[int]], **options: Any) -> Gradients:
        gradients = usual(self, micro_batches, **options)
        if self.parts.state.step == step - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return gradients

    FinetuneRecipe.accumulate = accumulate  # type: ignore[method-assign]
