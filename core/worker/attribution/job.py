"""Jobs: the index of a run, and the rows behind an answer."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.attribution.result import ROWS_AGAINST, ROWS_FOR, AttributedRow, Attribution, AttributionRequest
from core.directories import Progress
from core.errors import UserError
from core.jobs.process import Answers
from core.runs.record.store import Run
from core.text import one_line
from core.units import format_duration
from core.worker.attribution.index import IndexMaker, index_facts, read_index, trace_path
from core.worker.attribution.scores import FloatRows, alike, direction, nearest
from core.worker.attribution.subject import Subject, opened
from core.worker.data.dataset import TrainedExample
from core.worker.data.encode import TokenizedRow
from core.worker.oom.retry import is_out_of_memory, shortage_reason
from core.worker.process import environment
from core.worker.process.openmp import SpinControl

#: Rows whose gradients are compared where there is no index, by type of device: about a minute's work.
CANDIDATES = {"cpu": 100, "cuda": 300}
#: Characters of a question and an answer that are shown.
_SHOWN = 400
#: Least share of the strongest word's part that a marked word has, and the most words marked.
_WORD_SHARE, _MOST_WORDS = 1 / 3, 8


def attribute(job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Find the rows behind an answer.

    Args:
        job: ``request``, an :class:`~core.attribution.result.AttributionRequest`, and ``steps``, ascending.
        answers: Receives the progress.

    Returns:
        An :class:`~core.attribution.result.Attribution`.
    """
    request = AttributionRequest.from_dict(job["request"])
    with _ready(Run(Path(request.run)), answers.progress) as subject:
        return Tracer(subject, job["steps"]).trace(request).to_dict()


def make_index(job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Make the index of a run.

    Args:
        job: ``run``, and ``steps``, ascending.
        answers: Receives the progress: examples done, over all checkpoints.

    Returns:
        The fields of an :class:`~core.attribution.job.IndexResult`.
    """
    began = time.monotonic()
    run, steps = Run(Path(job["run"])), list(job["steps"])
    with _ready(run, answers.progress) as subject:
        makers = [IndexMaker(subject, step) for step in steps]
        count, first = len(subject.examples), time.monotonic()
        for number, maker in enumerate(makers):

            def tell(done: int, before: int = number * count) -> None:
                made, rest = sum(each.made for each in makers), len(steps) * count - before - done
                spent = time.monotonic() - first
                left = f", {format_duration(spent / made * rest)} left" if made and rest else ""
                answers.progress(f"gradients of the rows{left}", before + done, len(steps) * count)

            maker.make(tell)
        size = sum(file.stat().st_size for step in steps for file in trace_path(run, step).iterdir())
    return {
        "steps": steps,
        "rows": count,
        "bytes": size,
        "seconds": round(time.monotonic() - began, 3),
        "made": sum(each.made for each in makers),
    }


@contextlib.contextmanager
def _ready(run: Run, progress: Progress) -> Iterator[Subject]:
    """The subject of a run, in a process that does nothing else.

    Raises:
        UserError: Also if memory is short.
    """
    config = run.config()
    if config.hardware.device != "cpu":
        environment.choose_gpu(config.hardware.gpu)
    SpinControl().start()
    try:
        with opened(run, progress) as subject:
            yield subject
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"There is not enough memory for the gradients of rows: {shortage_reason(error)}",
            "Close other programs that use the device.",
        ) from error


class Tracer:
    """Traces answers to rows.

    Args:
        subject: The run's model and rows.
        steps: Steps of the checkpoints that are compared, ascending; the last one gives the answers.
        candidates: Rows whose gradients are compared where there is no index; None for as many as the device computes
            in about a minute.
    """

    def __init__(self, subject: Subject, steps: Sequence[int], candidates: int | None = None) -> None:
        self._subject, self._steps = subject, list(steps)
        self._most = candidates or CANDIDATES[subject.loaded.device.type]

    def trace(self, request: AttributionRequest) -> Attribution:
        """The rows behind an answer.

        Args:
            request: The question; an empty answer is generated.

        Raises:
            UserError: As :class:`~core.worker.attribution.subject.Subject`.
        """
        subject, messages, wanted = self._subject, request.messages, request.wanted
        subject.progress("asking the run and its base", None, None)
        subject.restore(self._steps[-1])
        answer = request.answer or subject.answer(messages)
        base = subject.answer(messages, base=True)
        asked = [subject.encode(messages, answer)]
        if wanted:
            asked.append(subject.encode(messages, wanted))
            if np.array_equal(asked[0].input_ids, asked[1].input_ids):
                raise UserError("The wanted answer is the answer that was given.", "Name another, or leave it out.")
        scores, considered, toward = self.scores(asked)
        order = sorted(considered, key=lambda at: -scores[at])
        # Where no row is for the answer, the strongest against it is -1.
        top = max(float(scores[order[0]]), 0.0) or abs(float(scores[order[-1]])) or 1.0
        like = alike([float(scores[at]) for at in order])
        strong = [at for at in order[: max(ROWS_FOR, like)] if scores[at] > 0]
        weak = [at for at in order[: -ROWS_AGAINST - 1 : -1] if scores[at] < 0]
        subject.progress("the words that matter", None, None)
        rows = [
            self._row(at, float(scores[at]) / top, toward if scores[at] > 0 else -toward) for at in [*strong, *weak]
        ]
        return Attribution(
            answer=answer,
            wanted=wanted,
            base=base,
            rows=tuple(rows[: len(strong)]),
            against=tuple(rows[len(strong) :]),
            like=like,
            steps=tuple(self._steps),
            considered=len(considered),
            total=len(subject.examples),
        )

    def scores(self, asked: Sequence[TokenizedRow]) -> tuple[FloatRows, list[int], FloatRows]:
        """Scores of the rows, the checkpoint of the answers first and the middle last, where the model stays.

        Args:
            asked: Question and answer as a row, and the question with the wanted answer, if there is one.

        Returns:
            The score of each example, ``(examples,)``, 0 where none was computed; the examples compared at all
            checkpoints; and the direction of the last comparison, ``(size,)``.
        """
        subject = self._subject
        scores = np.zeros(len(subject.examples), dtype=np.float32)
        considered, toward = list(range(len(scores))), np.zeros(0, dtype=np.float32)
        for step in reversed(self._steps):
            checkpoint = subject.checkpoint
            if checkpoint is None or checkpoint.step != step:
                checkpoint = subject.restore(step)
            index = read_index(subject.run, index_facts(checkpoint, subject.examples))
            if index is None and len(considered) > self._most:
                considered = self._choose(scores, asked[0])
            units = self._sketches(considered) if index is None else index[considered]
            question = subject.sketch_rows(asked)
            toward = direction(units, question[0] - question[1:].sum(axis=0), subject.loaded.device)
            scores[considered] += units @ toward
        return scores, considered, toward

    def _choose(self, scores: FloatRows, asked: TokenizedRow) -> list[int]:
        """Candidates by their scores so far, or else by their hidden states."""
        subject = self._subject
        if scores.any():
            return sorted(np.argsort(-scores, kind="stable")[: self._most].tolist())
        total = len(subject.examples)
        rows = [example.rows[-1] for example in subject.examples]
        hidden = subject.hidden([*rows, asked], lambda done: subject.progress("reading the rows", done, total + 1))
        return sorted(nearest(hidden[:-1], hidden[-1], self._most))

    def _sketches(self, places: Sequence[int]) -> FloatRows:
        subject = self._subject
        examples = [subject.examples[at] for at in places]
        total = sum(len(example.rows) for example in examples)
        return subject.sketch(examples, lambda done: subject.progress("gradients of the rows", done, total))

    def _row(self, at: int, score: float, toward: FloatRows) -> AttributedRow:
        """A row with its words that matter.

        Args:
            at: The example.
            score: Its score.
            toward: The direction in which its words count.
        """
        example = self._subject.examples[at]
        prompt = example.example.prompt
        text = example.example.answer or example.example.text or self._decode(example.rows[-1].input_ids.tolist())
        return AttributedRow(
            example.place.file,
            example.place.line,
            score,
            one_line(prompt[-1].content, _SHOWN) if prompt else "",
            one_line(text, _SHOWN),
            self._words(example, text, toward),
        )

    def _words(self, example: TrainedExample, text: str, toward: FloatRows) -> tuple[tuple[int, int], ...]:
        shown = one_line(text, _SHOWN)
        if len(one_line(text, len(text))) != len(text):
            return ()  # characters were replaced by longer ones
        for row in reversed(example.rows):
            if (spans := self._spans(row, text)) is not None:
                (parts,) = self._subject.token_parts([row], toward)
                words = [(found.start(), min(found.end(), len(shown))) for found in re.finditer(r"\S+", text)]
                return strongest(
                    [word for word in words if word[0] < len(shown)], [(*span, parts[at]) for at, span in spans.items()]
                )
        return ()

    def _spans(self, row: TokenizedRow, text: str) -> dict[int, tuple[int, int]] | None:
        """Characters of a text behind the tokens of a row's last answer; None if it is not that answer."""
        learned = np.flatnonzero(row.supervised)
        breaks = np.flatnonzero(np.diff(learned) > 1)
        own = learned[breaks[-1] + 1 if len(breaks) else 0 :]
        ids = row.input_ids[own].tolist()
        begin = self._decode(ids).find(text)
        if begin < 0:
            return None
        ends: list[int] = []
        # Decoded from the start each time, as a character may be of several tokens; no further than the text is shown.
        while len(ends) < len(ids) and (not ends or ends[-1] < _SHOWN):
            ends.append(len(self._decode(ids[: len(ends) + 1])) - begin)
        return {int(at): (start, end) for at, start, end in zip(own, [-begin, *ends], ends, strict=False)}

    def _decode(self, ids: list[int]) -> str:
        return str(
            self._subject.loaded.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )


def strongest(words: Sequence[tuple[int, int]], parts: Sequence[tuple[int, int, float]]) -> tuple[tuple[int, int], ...]:
    """The words with the largest parts of a row's score, in the order of the text.

    Args:
        words: Spans of the words, in characters.
        parts: Spans of the tokens, and their parts.
    """

    def part(word: tuple[int, int]) -> float:
        own = ((min(word[1], end) - max(word[0], begin), end - begin, value) for begin, end, value in parts)
        return sum(float(value) * shared / length for shared, length, value in own if shared > 0)

    weighed = sorted(((part(word), word) for word in words), reverse=True)
    if not weighed or weighed[0][0] <= 0:
        return ()
    return tuple(sorted(word for own, word in weighed[:_MOST_WORDS] if own >= _WORD_SHARE * weighed[0][0]))
