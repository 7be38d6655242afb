"""The stage of a step, from the stack of its thread."""

from __future__ import annotations

import threading

import pytest
import torch

from core.worker.data import batches
from core.worker.process.step_watchdog import place_of, stage_of
from tests.cases import cases


class Waiting(torch.autograd.Function):
    """Waits in its backward pass, and pads rows there: what is computed again inside is part of it."""

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


@cases(
    ("work", "stage"),
    [(read_rows, "reading its rows"), (go_backward, "the backward pass"), (hang, "")],
)
def test_the_innermost_frame_tells_but_within_the_backward_pass(
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
    assert found == stage
    assert place == (f"{stage}, in pad (core.worker.data.batches)" if stage else "")


def test_a_thread_that_is_over_is_at_nothing() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    assert stage_of(thread) == place_of(thread) == ""
