"""Sentences of a run: its activity, and events that need somebody."""

from __future__ import annotations

from core.runs.record.events import Event, GovernorEvent, NoticeEvent
from core.runs.record.sentences import evaluation_count, needed_for
from core.runs.record.state import StepProgress
from tests.cases import cases


@cases(
    ("event", "why"),
    [
        (NoticeEvent(level="error", code="checkpoint_failed", message="No room is left."), "No room is left."),
        (
            GovernorEvent(action="pause", cause="disk", value=4.0, limit=5.0),
            "room on the disk is at 4.0 GB (least 5.0 GB)",
        ),
        (NoticeEvent(level="warning", code="memory_cut", message="Smaller micro-batches from now on."), ""),
        (GovernorEvent(action="pause", cause="temperature", value=86.0, limit=83.0), ""),
        (GovernorEvent(action="pause", cause="quiet hours"), ""),
        (GovernorEvent(action="resume", cause="disk", value=6.0, limit=5.0), ""),
    ],
)
def test_somebody_is_needed_where_a_run_does_not_go_on_by_itself(event: Event, why: str) -> None:
    assert needed_for(event) == why


@cases(
    ("progress", "done", "total", "words"),
    [
        (None, 40, 40, "40/40"),
        (None, None, None, ""),
        (StepProgress("evaluation", 18, 40), 17, 40, "17/40"),
        (StepProgress("answers", 3, 80), 40, 40, "answers 3/80"),
        (StepProgress("probe", 19, 40), 40, 40, "probe 19/40"),
        (StepProgress("samples", 0, 3), 40, 40, "samples 0/3"),
        (StepProgress("samples", 0, 0), 40, 40, "samples"),
        (StepProgress("checkpoint", 0, 0), None, None, ""),
    ],
)
def test_what_comes_after_the_loss_is_counted_by_itself(
    progress: StepProgress | None, done: int | None, total: int | None, words: str
) -> None:
    assert evaluation_count(progress, done, total) == words
