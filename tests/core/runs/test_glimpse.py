"""A glimpse of a long record: steps from all over it, in order."""

from __future__ import annotations

import os

import pytest

from core.runs.record import history as glimpse
from core.runs.record.events import NoticeEvent, StepEvent, encode_event
from core.runs.record.history import is_long, read_glimpse
from core.runs.record.store import Run
from tests.cases import cases


def line(step: int) -> str:
    return encode_event(
        StepEvent(
            t=float(step), step=step, epoch=0.1, loss=1.0 / step, lr=1e-4, grad_norm=1.0, tokens=100,
            supervised_tokens=5, seconds=2.0, tokens_per_second=50.0,
        )
    )  # fmt: skip


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of this test count as long."""
    monkeypatch.setattr(glimpse, "LONG_BYTES", 10_000)
    monkeypatch.setattr(glimpse, "PLACES", 50)


def test_steps_from_all_over_a_record(run: Run) -> None:
    run.events_path.write_text("".join(map(line, range(1, 2001))), encoding="utf-8")
    assert is_long(run)
    found = read_glimpse(run)
    assert found is not None
    assert 40 <= len(found.loss) <= 50
    assert found.loss.steps[0] <= 3
    assert found.step >= 1990
    gaps = [after - before for before, after in zip(found.loss.steps, found.loss.steps[1:], strict=False)]
    assert max(gaps) < 60
    assert all(
        value == pytest.approx(1.0 / step) for step, value in zip(found.loss.steps, found.loss.values, strict=True)
    )


def test_of_replayed_steps_the_last_ones_are_kept(run: Run) -> None:
    run.events_path.write_text("".join(map(line, [*range(1, 1000), *range(500, 800)])), encoding="utf-8")
    found = read_glimpse(run)
    assert found is not None
    assert list(found.loss.steps) == sorted(set(found.loss.steps))
    assert found.loss.steps[-1] < 800


@cases("content", ["", "x" * 50_000, "\n" * 50_000])
def test_a_record_without_steps_has_none(run: Run, content: str) -> None:
    run.events_path.write_text(content, encoding="utf-8")
    assert read_glimpse(run) is None
    notice = encode_event(NoticeEvent(level="info", code="", message="x" * 3000))
    run.events_path.write_text(notice * 20, encoding="utf-8")
    assert read_glimpse(run) is None
    os.unlink(run.events_path)
    assert read_glimpse(run) is None
