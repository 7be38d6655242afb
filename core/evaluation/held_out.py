"""Answers of a training run to its held-out rows: records of its first, its best and its newest evaluation, in the run.

They exist where ``eval.exact_match`` is on, and are what flipped answers of two trainings are found in.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from core.errors import UserError
from core.evaluation.prompt_set import PromptItem
from core.evaluation.record import Answered, EvaluationRecord, RecordFile, make_folder, read_record
from core.evaluation.score import Scorer
from core.redact import redact
from core.runs.record.store import Run

#: Directory of the records in a run's directory.
FOLDER = "answers"
#: Most characters of questions, expected and given answers in a record; rows beyond them are left out and counted.
MOST_CHARACTERS = 4 << 20
_NAME = re.compile(r"step-(\d{8,10})\.json")


def answers_path(run: Run, step: int) -> Path:
    """The file of the answers after ``step`` optimizer steps."""
    return run.path / FOLDER / f"step-{step:08d}.json"


def kept_steps(run: Run) -> list[int]:
    """The steps whose answers are kept, rising."""
    try:
        names = [path.name for path in (run.path / FOLDER).iterdir()]
    except OSError:
        return []
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match is not None)


def read_answers(run: Run, step: int) -> EvaluationRecord:
    """The answers after ``step`` optimizer steps, of a single model.

    Raises:
        UserError: If they cannot be read, or are invalid.
    """
    record = read_record(answers_path(run, step))
    if len(record.targets) != 1:
        raise UserError(f"{answers_path(run, step).name} has answers of {len(record.targets)} models.", "Train again.")
    return record


def keep_answers(
    run: Run, step: int, items: Sequence[PromptItem], texts: Sequence[str], longest: int, *, best: int | None
) -> None:
    """Write the answers of an evaluation, and remove those of all steps but the first, the best and this one.

    Secrets in the texts are replaced, as in the events of the run.

    Args:
        run: The run.
        step: Its optimizer steps.
        items: The held-out rows with a question.
        texts: The answers to them.
        longest: Maximum length of an answer, in tokens.
        best: The step with the lowest held-out loss; None before there is one.

    Raises:
        UserError: If they cannot be written.
    """
    scorer = Scorer(items)
    kept: list[PromptItem] = []
    answers: list[Answered | None] = []
    room = MOST_CHARACTERS
    for place, (item, text) in enumerate(zip(items, texts, strict=True)):
        room -= sum(len(message["content"]) for message in item.messages) + len(item.expected or "") + len(text)
        if room < 0:
            break
        kept.append(_redacted(item))
        answers.append(Answered(redact(text), scores=scorer.score(place, text)))
    record = EvaluationRecord(
        id=f"step-{step:08d}",
        created=time.time(),
        prompts="held-out rows",
        prompts_sha256="",
        skipped=len(items) - len(kept),
        items=tuple(kept),
        targets=(f"{run.id}@{step}",),
        identities=("",),
        settings={"max_new_tokens": longest, "check": None},
        answers={f"{run.id}@{step}": answers},
        state="done",
    )
    make_folder(run.path / FOLDER)
    RecordFile(answers_path(run, step), record).write()
    _remove_others(run, step, {step, best})


def _remove_others(run: Run, step: int, kept: Collection[int | None]) -> None:
    for torn in (run.path / FOLDER).glob(".*.tmp"):  # of a killed worker
        torn.unlink(missing_ok=True)
    steps = kept_steps(run)
    # Steps after this one were done before the run went back to a checkpoint.
    for other in steps:
        if other > step or (other != steps[0] and other not in kept):
            answers_path(run, other).unlink(missing_ok=True)


def _redacted(item: PromptItem) -> PromptItem:
    messages = tuple({**message, "content": redact(message["content"])} for message in item.messages)
    return PromptItem(item.id, messages, None if item.expected is None else redact(item.expected))
