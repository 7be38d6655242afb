from __future__ import annotations

from core.runs.record.sentences import evaluation_count
from core.runs.record.state import StepProgress
from tests.cases import cases


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
