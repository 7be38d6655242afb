"""Answers of runs side by side: those of the trainings themselves to their held-out rows, else of kept evaluations.

Questions are paired by their conversation and expected answer, not by their number, as held-out rows may differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from core.chat.request import BASE
from core.errors import UserError
from core.evaluation.flips import Flips, Key, flips_of, key_of
from core.evaluation.held_out import kept_steps, read_answers
from core.evaluation.prompt_set import PromptItem
from core.evaluation.record import METRICS, Answered, EvaluationRecord, folder_of, list_records, read_record
from core.evaluation.report import escaped, flip_lines, flips_to_json, flips_to_markdown
from core.evaluation.table import TITLES, EvaluationTable
from core.runs.catalog.trained import result_step, taken_step
from core.runs.record.sentences import brief_id
from core.runs.record.store import Run
from core.text import one_line

#: Most records read of a run's evaluations, the newest ones.
MOST_RECORDS = 8
#: Most questions named that only one side has.
_NAMED = 3

Source = Literal["training", "evaluation"]
_SOURCES: tuple[Source, ...] = ("training", "evaluation")


@dataclass(frozen=True)
class RunAnswers:
    """Answers side by side; those in question come first."""

    record: EvaluationRecord | None
    """The questions that can be compared, with the answers of all models; None if there is none."""
    table: EvaluationTable | None
    flips: tuple[Flips, ...]
    """From each of the other models to the first one."""
    notes: tuple[str, ...]
    """Sentences about everything that is not compared."""


@dataclass(frozen=True)
class _Sheet:
    """Answers of a model to some questions, each question once."""

    title: str
    record: EvaluationRecord
    answers: Mapping[Key, Answered]
    items: Mapping[Key, PromptItem]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, record: EvaluationRecord, target: str, title: str, *notes: str) -> _Sheet:
        answers: dict[Key, Answered] = {}
        items: dict[Key, PromptItem] = {}
        for item, answer in zip(record.items, record.answers[target], strict=True):
            key = key_of(item)
            if answer is not None and key not in answers:
                answers[key], items[key] = answer, item
        if record.state != "done":
            notes += (f"The evaluation {record.id} is unfinished: {record.done} of {record.total} answers.",)
        return cls(title, record, answers, items, notes)

    @property
    def metrics(self) -> set[str]:
        """The scores of its answers."""
        return {metric for answer in self.answers.values() for metric in answer.scores}


def answers_of_runs(runs: Sequence[Run]) -> RunAnswers:
    """The held-out answers of two or more runs: the newest run in question, compared with each of the others.

    The answers of a run are those of its result, or of its newest evaluation while it trains. Trainings are compared
    with trainings; if one kept no answers, with what ``eval`` has kept of any of the runs.
    """
    newest, *others = sorted(runs, key=lambda run: run.id, reverse=True)
    ordered, reader = [newest, *reversed(others)], _Reader()
    return _compared(
        [brief_id(run.id) for run in ordered],
        lambda source: [reader.of_run(run, runs, source) for run in ordered],
        reader.unavailable,
        "train with eval.exact_match, or ask with localtune-tui eval RUN --against RUN",
    )


def answers_of_training(run: Run) -> RunAnswers:
    """The held-out answers of a run before training, or of its first evaluation, beside those of its result."""
    reader = _Reader()
    return _compared(
        [brief_id(run.id), "the untouched model"],
        lambda source: [reader.of_run(run, [run], source), reader.before_training(run, source)],
        reader.unavailable,
        "train with eval.exact_match and eval.baseline, or ask with localtune-tui eval RUN --against base",
    )


def _compared(
    names: Sequence[str], read: Callable[[Source], list[list[_Sheet]]], unavailable: Sequence[str], remedy: str
) -> RunAnswers:
    """The answers of the first side beside those of the others.

    Args:
        names: The sides, for sentences.
        read: Returns the answers of each side from a source, the best ones first.
        unavailable: Sentences about answers that are not there yet or cannot be read.
        remedy: How to get answers, where there are none.
    """
    reasons: list[str] = []
    without: list[str] = []
    for source in _SOURCES:
        mine, *theirs = sides = read(source)
        without = without or [name for name, sheets in zip(names, sides, strict=True) if not sheets]
        found = [(sheet, [_match(sheet, sheets, reasons) for sheets in theirs]) for sheet in mine]
        sheet, matches = max(found, key=lambda pair: len([*filter(None, pair[1])]), default=(None, []))
        if sheet is not None and any(matches):
            missing = [name for name, match in zip(names[1:], matches, strict=True) if match is None]
            notes = [*(f"There is nothing to compare with of {name}." for name in missing), *unavailable]
            return _joined(sheet, [*filter(None, matches)], notes)
    if not reasons:
        reasons.append(f"There are no answers of {_and(without)} to held-out rows: {remedy}.")
    return RunAnswers(None, None, (), tuple(dict.fromkeys([*reasons, *unavailable])))


def _match(sheet: _Sheet, others: Sequence[_Sheet], reasons: list[str]) -> _Sheet | None:
    """The first of some sheets that shares a question and a score with a sheet."""
    for other in others:
        if not sheet.answers.keys() & other.answers.keys():
            reasons.append(f"{sheet.title} and {other.title} have no held-out row in common.")
        elif not _shared_metrics([sheet, other]):
            reasons.append(f"{sheet.title} and {other.title} have no score in common: {_scored(sheet, other)}.")
        else:
            return other
    return None


def _shared_metrics(sheets: Sequence[_Sheet]) -> set[str]:
    """Scores that all answers have; checks by different programs are no such score."""
    shared = set.intersection(*(sheet.metrics for sheet in sheets))
    checks = {str(sheet.record.settings.get("check")) for sheet in sheets}
    return shared - {"check"} if len(checks) > 1 else shared


def _scored(*sheets: _Sheet) -> str:
    names = [[TITLES[metric] for metric in METRICS if metric in sheet.metrics] for sheet in sheets]
    return " against ".join(", ".join(each) or "nothing" for each in names)


def _joined(after: _Sheet, befores: Sequence[_Sheet], notes: Sequence[str]) -> RunAnswers:
    """A record of the questions that the first side shares with any other side."""
    taken = [after.title]
    for other in befores:  # runs of the same id, from two places
        taken.append(next(name for name in _names(other.title) if name not in taken))
    after, *befores = sheets = [
        replace(sheet, title=title) for sheet, title in zip((after, *befores), taken, strict=True)
    ]
    metrics = _shared_metrics(sheets)
    keys = [key for key in after.answers if any(key in other.answers for other in befores)]

    def answer(sheet: _Sheet, key: Key) -> Answered | None:
        found = sheet.answers.get(key)
        if found is None:
            return None
        return replace(found, scores={name: score for name, score in found.scores.items() if name in metrics})

    record = replace(
        after.record,
        items=tuple(after.items[key] for key in keys),
        targets=tuple(sheet.title for sheet in sheets),
        identities=("",) * len(sheets),
        answers={sheet.title: [answer(sheet, key) for key in keys] for sheet in sheets},
        state="done",
        skipped=0,
    )
    table = EvaluationTable.of(record)
    told = [*notes, *itertools.chain.from_iterable(sheet.notes for sheet in sheets)]
    for other in befores:
        told += [_only(after, other), _only(other, after)]
    return RunAnswers(record, table, flips_of(record, table.deciding), tuple(dict.fromkeys(filter(None, told))))


def _names(title: str) -> Iterator[str]:
    yield title
    yield from (f"{title} ({number})" for number in itertools.count(2))


def _only(sheet: _Sheet, other: _Sheet) -> str:
    """The questions that one side alone has, counted and named; empty if there are none."""
    alone = [item.question for key, item in sheet.items.items() if key not in other.answers]
    if not alone:
        return ""
    named = "; ".join(one_line(question, 40) for question in alone[:_NAMED])
    more = f"; and {len(alone) - _NAMED} more" if len(alone) > _NAMED else ""
    asked = "1 question was" if len(alone) == 1 else f"{len(alone)} questions were"
    return f"{asked} put to {sheet.title} alone, not to {other.title}: {named}{more}"


def _and(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


class _Reader:
    """Reads the answers that runs have kept, each record once."""

    def __init__(self) -> None:
        self.unavailable: list[str] = []
        """Sentences about answers that are not there yet or cannot be read."""
        self._records: dict[Path, list[EvaluationRecord]] = {}

    def of_run(self, run: Run, runs: Sequence[Run], source: Source) -> list[_Sheet]:
        """The answers of a run, the best ones first; those of evaluations from any of the runs."""
        if source == "training":
            step = _answered_step(run)
            if step is None and not run.state().is_over:
                self.unavailable.append(f"{brief_id(run.id)} is not over, and has kept no answers yet.")
            return [] if step is None else self._kept(run, step, f"{run.id}@{step}")
        found = []
        for record in itertools.chain.from_iterable(map(self._newest, dict.fromkeys(map(folder_of, runs)))):
            target = next((name for name in record.targets if name == run.id or name.startswith(f"{run.id}@")), None)
            if target is not None:
                found.append(_Sheet.of(record, target, target))
        return found

    def before_training(self, run: Run, source: Source) -> list[_Sheet]:
        """The answers of a run before training, or of its first evaluation."""
        if source == "training":
            first, step = next(iter(kept_steps(run)), None), _answered_step(run)
            if first is None or step is None or first >= step:
                return []
            is_base = first == 0 and run.values().get("model.adapter") is None
            return self._kept(run, first, BASE if is_base else f"{run.id}@{first}")
        return [_Sheet.of(record, BASE, BASE) for record in self._newest(folder_of(run)) if BASE in record.targets]

    def _kept(self, run: Run, step: int, title: str) -> list[_Sheet]:
        try:
            record = read_answers(run, step)
        except UserError as error:
            self.unavailable.append(error.message)
            return []
        is_over = run.state().is_over
        notes = [] if is_over else [f"{brief_id(run.id)} is not over: its answers are those after step {step}."]
        if record.skipped:
            notes.append(f"{title} kept no answers to {record.skipped} more held-out rows, for their size.")
        return [_Sheet.of(record, record.targets[0], title, *notes)]

    def _newest(self, folder: Path) -> list[EvaluationRecord]:
        if folder not in self._records:
            found = self._records[folder] = []
            for path in list_records(folder)[:MOST_RECORDS]:
                try:
                    found.append(read_record(path))
                except UserError as error:
                    self.unavailable.append(error.message)
        return self._records[folder]


def _answered_step(run: Run) -> int | None:
    """The step of the answers that stand for a run: those of its result, else of its newest evaluation."""
    kept, state = kept_steps(run), run.state()
    # A run that went back to a checkpoint may have answers of later steps until its next evaluation.
    kept = [step for step in kept if step <= state.step] or kept
    wanted = (taken_step(run), result_step(run)) if state.is_over else ()
    return next((step for step in wanted if step in kept), kept[-1] if kept else None)


def answers_to_lines(answers: RunAnswers) -> list[str]:
    """Flipped answers of runs for a terminal, and everything that is not compared."""
    if answers.record is None:
        return list(answers.notes)
    lines: list[str] = []
    for flips in answers.flips:
        lines += [*flip_lines(answers.record, flips), ""]
    return [*lines[: None if answers.notes else -1], *answers.notes]


def answers_to_markdown(answers: RunAnswers) -> str:
    """Flipped answers of runs as a section of Markdown."""
    if answers.record is None:
        return "\n\n".join(["## Flipped answers", *map(escaped, answers.notes)]) + "\n"
    notes = "".join(f"\n{escaped(note)}\n" for note in answers.notes)
    return flips_to_markdown(answers.record, answers.flips) + notes


def answers_to_json(answers: RunAnswers) -> dict[str, Any]:
    """Flipped answers of runs as ``compare --json`` prints them.

    Returns:
        ``flips``, a list of :func:`core.evaluation.report.flips_to_json`, and ``flip_notes``, sentences about
        everything that is not compared.
    """
    record = answers.record
    found = [flips_to_json(record, flips) for flips in answers.flips] if record is not None else []
    return {"flips": found, "flip_notes": list(answers.notes)}
