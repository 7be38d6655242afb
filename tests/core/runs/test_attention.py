from __future__ import annotations

from core.runs.record.events import Event, GovernorEvent, NoticeEvent
from core.runs.record.sentences import needed_for
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
