"""A step that takes long."""

from __future__ import annotations

import threading

import pytest
import torch

from core.worker.data import batches
from core.worker.process.step_watchdog import LONG_FACTOR, LONG_SECONDS, MEDIAN_FROM, StepWatchdog, place_of, stage_of
from tests.cases import cases


def test_a_step_is_long_once_and_against_the_median() -> None:
    moment = 0.0
    watchdog = StepWatchdog(lambda: moment)
    watchdog.begin()
    moment += 1e6
    assert watchdog.look() is None, "there is no median yet"
    usual = 2 * LONG_SECONDS / LONG_FACTOR
    for seconds in [usual] * MEDIAN_FROM + [1e5]:
        watchdog.done(seconds)
    watchdog.begin()
    moment += LONG_FACTOR * usual - 1
    assert watchdog.look() is None
    moment += 2
    assert watchdog.look() == (LONG_FACTOR * usual + 1, usual)
    assert watchdog.look() is None
    watchdog.begin()
    moment += LONG_FACTOR * usual + 1
    assert watchdog.look() is not None
    watchdog.begin()
    watchdog.end()
    moment += 1e6
    assert watchdog.look() is None, "it waits for commands"
    short = StepWatchdog(lambda: moment)
    for _ in range(MEDIAN_FROM):
        short.done(0.01)
    short.begin()
    moment += LONG_SECONDS - 1
    assert short.look() is None, "a short step is never long"


class Waiting(torch.autograd.Function):
    """Waits in its backward pass, which recomputes the padding of rows."""

    inside, release = threading.Event(), threading.Event()

    @staticmethod
    def forward(_ctx: object, value: torch.Tensor) -> torch.Tensor:
        return value * 1

    @staticmethod
    def backward(_ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        batches.pad([], 0)
        return gradient


def hang(*_: object) -> int:
    Waiting.inside.set()
    Waiting.release.wait(30)
    return 0


def read_rows() -> None:
    batches.pad([], 0)


def go_backward() -> None:
    Waiting.apply(torch.ones(1, requires_grad=True)).sum().backward()  # type: ignore[no-untyped-call]


@cases(("work", "stage"), [(read_rows, "reading its rows"), (go_backward, "the backward pass"), (hang, "")])
def test_the_innermost_frame_decides_outside_of_the_backward_pass(
    work: object, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Waiting.inside.clear()
    Waiting.release.clear()
    # Whatever pads rows waits, and raises afterwards for want of rows.
    monkeypatch.setattr(batches, "padded_length", hang)
    monkeypatch.setattr(batches, "max", hang, raising=False)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()  # type: ignore[operator]
        except (RuntimeError, ValueError) as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert Waiting.inside.wait(30)
    found, place = stage_of(thread), place_of(thread)
    Waiting.release.set()
    thread.join()
    assert stage_of(thread) == place_of(thread) == "", "it is over"
    assert found == stage
    assert place == (f"{stage}, in pad (core.worker.data.batches)" if stage else "")
