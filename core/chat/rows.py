"""Rows of a run's data as questions: the answer that was wanted, and the choice between single questions and a
conversation."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace

from core.analysis.result import AnalysisRequest, request_for
from core.analysis.row_samples import rights_for
from core.data.conversation import Example, RowError
from core.data.registries.resolve import flat_sources
from core.errors import UserError
from core.runs.record.store import Run
from core.sandbox.pool import sandboxed

#: CPU seconds of a look at the rows, a few hundred thousand. Rows behind them are not known.
_SECONDS = 10
#: Most different answers to a question that are shown.
_ANSWERS = 3
#: Between different answers.
OR = "\n\nor\n\n"


def look_up(run: Run | None, question: str = "") -> tuple[bool, str]:
    """Look a question up in the training and held-out rows of a run; blocks, as the sandbox reads all of them.

    Args:
        run: The run; None for a model, of whose data nothing is known.
        question: The question, regardless of case and whitespace.

    Returns:
        True if the rows are questions and none has a second turn, so that the model has never seen a conversation; and
        the answers of the rows that begin with the question, empty without one.
    """
    # Data that is gone or cannot be read any more is data of which nothing is known.
    with suppress(UserError, OSError):
        if run is not None:
            request = request_for(run.config(), model=None)
            look = sandboxed(_look, "The data", rights=rights_for(request), seconds=3 * _SECONDS)
            alone, answers = look(replace(request, train=(*request.train, *request.eval)), _words(question))
            return alone, OR.join(answers[:_ANSWERS])
    return False, ""


def _look(request: AnalysisRequest, question: str) -> tuple[bool, list[str]]:
    """True if no row has a second turn, and the different answers to a question."""
    turns, answers, end = set[bool](), dict[str, None](), time.process_time() + _SECONDS
    for source in flat_sources(list(request.train), request.format, request.columns):
        file = source.open()
        detection = source.recognize(file)
        for row in source.rows(file):
            if row.index % 256 == 0 and time.process_time() > end:
                break
            with suppress(RowError):
                asked, answer, goes_on = _first_turn(detection.example(row))
                turns |= {goes_on} if asked else set()
                if asked and answer.strip() and _words(asked) == question:
                    answers[answer] = None
    return turns == {False}, list(answers)


def _first_turn(example: Example) -> tuple[str, str, bool]:
    """Question and answer of the first turn, and True if a second one follows; all empty for rows without turns.

    An answer that is labeled bad was not wanted.
    """
    turns = (*example.messages, *example.chosen)
    asked = [place for place, turn in enumerate(turns) if turn.role == "user"]
    if not asked:
        return "", "", False
    first = turns[asked[0] : asked[1] if len(asked) > 1 else None]
    answers = [turn.content for turn in first if turn.role == "assistant" and example.label is not False]
    return first[0].content, answers[-1] if answers else "", len(asked) > 1


def _words(text: str) -> str:
    return " ".join(text.casefold().split())
