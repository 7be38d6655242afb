"""Losses of a file's rows after a run: a column, orders with the worst first, and the model's own answers."""

from __future__ import annotations

import math
import os
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from io import BufferedReader
from pathlib import Path

from core.analysis.problems import FileLine
from core.evaluation.row_losses import (
    RowLosses,
    RowReview,
    WorstRow,
    read_losses,
    read_review,
    runs_trained_on,
)
from core.runs.record.store import Run
from core.small_files import open_regular
from tui.datasets.marks import RowOrder
from tui.datasets.view import BATCH, DatasetView, Turn

#: Codes of the orders, as filters of the list.
WORST, BY_LOSS = "not_learned", "by_loss"
#: Words of a row in the column instead of its loss, once it has been dealt with.
KEPT, OUT, CORRECTED = "kept", "out", "fixed"
_TITLES = {WORST: "worst learned", BY_LOSS: "by loss"}
#: Answers for a row, by its place, whether ``data.exclude`` leaves it out.
IsOut = Callable[[FileLine], bool]
# Long scans sleep between two batches, so that keys need not wait for the interpreter lock.
_BREATH_SECONDS = 0.002


@dataclass(frozen=True)
class FileLosses:
    """Losses of the rows of an open file.

    Args:
        run: The run.
        losses: Its record.
        review: The user's decisions.
        by_index: Loss of each row; NaN for rows that were not measured.
        places: File and line of each measured row, as the run names it.
        corrected: Rows of a corrected copy that differ from the original.
        descending: Measured rows, the highest loss first.
    """

    run: Run
    losses: RowLosses
    review: RowReview
    by_index: array[float]
    places: Mapping[int, FileLine]
    corrected: frozenset[int]
    descending: array[int]

    def word(self, index: int, is_out: IsOut) -> str:
        """Cell of a row: its loss, or a word if it has been dealt with.

        Args:
            index: The row.
            is_out: True for rows that ``data.exclude`` leaves out.
        """
        place = self.places.get(index)
        if place is not None and is_out(place):
            return OUT
        if index in self.corrected:
            return CORRECTED
        loss = self.loss(index)
        return "–" if loss is None else KEPT if place in self.review.kept else f"{loss:.2f}"

    def loss(self, index: int) -> float | None:
        """Loss of a row; None if it was not measured, or has been corrected."""
        found = self.by_index[index] if index < len(self.by_index) else math.nan
        return None if math.isnan(found) or index in self.corrected else found

    def order(self, code: str, is_out: IsOut, hint: str = "") -> RowOrder:
        """Measured rows with the highest loss first, those dealt with last.

        Args:
            code: :data:`WORST` for the rows that the model has answered itself, :data:`BY_LOSS` for all.
            is_out: As for :meth:`word`.
            hint: The keys for them, with their actions.
        """
        worst = {row.place for row in self.losses.worst}
        rows = [index for index in self.descending if code == BY_LOSS or self.places[index] in worst]
        words = (KEPT, OUT, CORRECTED)
        done = {index for index in rows if self.word(index, is_out) in words}
        indices = array("I", [*(index for index in rows if index not in done), *(i for i in rows if i in done)])
        return RowOrder(code, _TITLES[code], hint, indices, len(indices))

    def turns(self, index: int) -> Iterator[Turn]:
        """The model's own answer to a row, and rows with the same question."""
        row = self._worst.get(self.places[index]) if index in self.places else None
        if row is None or index in self.corrected:
            return
        if row.own is not None:
            yield Turn("model", row.own)
        for twin in row.twins:
            yield Turn("same", f"{twin.file}:{twin.line} has the same question, and the answer {twin.answer}")

    @cached_property
    def _worst(self) -> Mapping[FileLine, WorstRow]:
        return {row.place: row for row in self.losses.worst}

    def reviewed(self, review: RowReview) -> FileLosses:
        """The same after another decision."""
        return replace(self, review=review)


@dataclass(frozen=True)
class Lookup:
    """Runs of a file."""

    ended: Run | None
    """The newest ended run that trained on it; None if there is none."""
    found: FileLosses | None
    """The losses of the newest run that was measured; None if none was."""


def look_up(view: DatasetView, first: Run | None = None) -> Lookup:
    """Find the losses of an open file, once all of its rows are indexed; blocks.

    Args:
        view: The file.
        first: A run that goes before newer ones, if it trained on the file.

    Raises:
        UserError: If the file can no longer be read.
    """
    ended: Run | None = None
    runs = list(runs_trained_on(view.path))
    for run in sorted(runs, key=lambda run: first is None or run.path != first.path):
        if not run.state().is_over:
            continue
        ended = ended or run
        if (losses := read_losses(run)) is not None and (found := _find(view, run, losses)) is not None:
            return Lookup(ended, found)
        if view.is_closed:
            break
    return Lookup(ended, None)


def _find(view: DatasetView, run: Run, losses: RowLosses) -> FileLosses | None:
    """The losses of a file by its rows; None if the run did not measure them as they are now."""
    review = read_review(run)
    original = review.copies.get(os.path.realpath(view.data_path))
    known = losses.of_data(original or view.data_path)
    if not known:
        return None
    changed = _changed_lines(Path(original), view.data_path) if original is not None else frozenset[int]()
    by_index, places, corrected = array("d"), dict[int, FileLine](), set[int]()
    for row, place in enumerate(_places(view)):
        named = place if original is None else FileLine(Path(original).name, place.line)
        if (loss := known.get(named)) is not None:
            places[row] = named
            if place.line in changed:
                corrected.add(row)
        by_index.append(math.nan if loss is None else loss.loss)
    descending = array("I", sorted(places, key=lambda row: (-by_index[row], row)))
    return FileLosses(run, losses, review, by_index, places, frozenset(corrected), descending)


def _places(view: DatasetView) -> Iterator[FileLine]:
    """File and line of each row; ends early if the view is closed."""
    for start in range(0, view.count, BATCH):
        if view.is_closed:
            return
        yield from view.places(start, min(BATCH, view.count - start))
        time.sleep(_BREATH_SECONDS)


def _changed_lines(original: Path, copy: Path) -> frozenset[int]:
    """Lines of a copy that differ from the original's, from 1."""
    with (
        suppress(OSError),
        BufferedReader(open_regular(original)) as before,
        BufferedReader(open_regular(copy)) as after,
    ):
        return frozenset(line for line, (one, other) in enumerate(zip(before, after, strict=False), 1) if one != other)
    return frozenset()
