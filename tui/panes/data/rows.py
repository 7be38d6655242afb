"""Rows of the Data pane: the list, and the row under its cursor as a conversation or as tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from textual import on, work
from textual.app import ComposeResult
from textual.cache import FIFOCache
from textual.containers import Container, Vertical
from textual.content import Content
from textual.message import Message

from core.analysis.problems import Level
from core.data.conversation import RowError
from core.errors import UserError
from core.template.preview import PreviewRow, Refusal
from core.template.preview import RowLength as Measured
from core.template.sandboxed import RowMasks
from core.units import format_count
from tui.datasets.losses import CORRECTED, KEPT, OUT
from tui.datasets.marks import OF_THE_WHOLE, RowFilter
from tui.datasets.plan import DataPlan
from tui.datasets.summary import counted
from tui.datasets.view import DatasetView, RowCells, label_word
from tui.panes.data.session import DatasetSession
from tui.widgets.lists.conversation import Conversation
from tui.widgets.lists.mask_view import MaskView, TokenCell, TokenPart
from tui.widgets.lists.row_list import RowList
from tui.widgets.strips import style_of

#: Columns of the frame of a title, with its blanks.
_TITLE_FRAME = 4
#: Maximum cached row lengths.
KEPT_LENGTHS = 20_000

TokenRows: TypeAlias = tuple[PreviewRow, ...] | Refusal | RowError | UserError

_CUT_LABELS = {
    "drop": "train.max_length = {limit}: longer rows are dropped",
    "truncate": "train.max_length = {limit}: what follows is cut off",
    "refuse": "train.max_length = {limit}: longer rows stop the run",
}


@dataclass(frozen=True)
class RowLength:
    """Token columns of a row in the list."""

    tokens: str = "–"
    learned: str = "–"
    level: Level | Literal[""] = ""
    """The level of its length problem; empty for none."""


# In threads.


def mask_row(view: DatasetView, masks: RowMasks, index: int) -> tuple[TokenRows, bool | None]:
    """The tokens of a row, or the error that prevents them; and the label of its answer, None if it has none."""
    try:
        example = view.example(index)
        return masks.row(example), example.label
    except (RowError, UserError) as error:
        return error, None


def measure_rows(view: DatasetView, masks: RowMasks, indices: Sequence[int], *, cuts: bool) -> dict[int, RowLength]:
    """The lengths of rows.

    Args:
        view: The dataset.
        masks: Tokenizer and template.
        indices: The rows.
        cuts: True if overlong rows are truncated; otherwise they are dropped.
    """
    found: dict[int, RowLength] = {}
    examples = {}
    for index in indices:
        try:
            examples[index] = view.example(index)
        except RowError:
            found[index] = RowLength("✗", level="drop")
        except UserError:
            found[index] = RowLength("✗")
    try:
        lengths = masks.lengths(list(examples.values()))
    except UserError:
        return found | dict.fromkeys(examples, RowLength("✗"))
    return found | {index: _length_of(length, cuts) for index, length in zip(examples, lengths, strict=True)}


def _length_of(result: Measured | Refusal | UserError, cuts: bool) -> RowLength:
    if not isinstance(result, Measured):
        return RowLength("✗", level="drop" if isinstance(result, Refusal) else "")
    level: Level | Literal[""] = ("warn" if cuts else "drop") if result.is_long else ""
    return RowLength(str(result.tokens), str(result.learned), level)


# Display.


def token_parts(rows: Sequence[PreviewRow], label: bool | None, plan: DataPlan) -> list[TokenPart]:
    """The parts of a row for display, with the cut at the maximum length."""
    cut_label = _CUT_LABELS[plan.reading.overlong].format(limit=format_count(plan.tokens.max_length))
    return [
        TokenPart(
            [TokenCell(token.text, token.learned, token.special) for token in row.tokens],
            row.cut,
            cut_label,
            _heading(row, label),
        )
        for row in rows
    ]


def describe_tokens(rows: Sequence[PreviewRow]) -> tuple[str, ...]:
    """The numbers of tokens and of supervised tokens of a row and their share, in words."""
    tokens, learned = sum(row.length for row in rows), sum(row.learned for row in rows)
    pair = f"pair of {' and '.join(format_count(row.length) for row in rows)} tokens"
    counts = pair if rows[0].answer else counted(tokens, "token")
    return counts, f"{format_count(learned)} learned", f"{learned / max(tokens, 1):.0%}"


def _heading(row: PreviewRow, label: bool | None) -> str:
    """The heading of a part: names the answers of a pair and labeled answers; empty for other rows."""
    name = row.answer if label is None else label_word(label)
    return f"{name} answer · {counted(row.length, 'token')} · {format_count(row.learned)} learned" if name else ""


def _joined(told: Sequence[Content]) -> Content:
    """A title of its parts."""
    return Content(" · ").join(told)


#: Rows counted between two checks for newly requested rows.
_BATCH = 16


class DataRows(Container):
    """List of rows, whose columns ``tok`` and ``learned`` are filled as rows become visible, and a row to read.

    Args:
        session: The session of the Data pane.
    """

    DEFAULT_CSS = style_of("DataRows")

    class ProblemsSeen(Message):
        """New problems have been found in visible rows."""

    def __init__(self, session: DatasetSession, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.shows_tokens = False
        """True if the row is shown as tokens."""
        self.rows = RowList(id="data-rows")
        self.conversation = Conversation(id="data-conversation")
        self.mask_view = MaskView(id="data-mask")
        self._box = Vertical(id="data-row")
        self._session = session
        self._lengths: FIFOCache[int, RowLength] = FIFOCache(KEPT_LENGTHS)
        self._wanted: Sequence[int] = ()
        self._is_counting = False
        self._landing: tuple[int, int] | None = None
        self._detail: Sequence[str] = ()

    def compose(self) -> ComposeResult:
        """The list, and both forms of the row."""
        yield self.rows
        with self._box:
            yield self.conversation
            yield self.mask_view

    def on_mount(self) -> None:
        """Show the chosen form of the row."""
        self._show_form()

    def on_resize(self) -> None:
        """Fit the title of the row to its width, which is known after the layout."""
        self.call_after_refresh(self.show_problems)

    @property
    def reader(self) -> Conversation | MaskView:
        """The widget that shows the row."""
        return self.mask_view if self.shows_tokens else self.conversation

    @property
    def index(self) -> int:
        """The number of the row under the cursor."""
        return self._session.index_at(self.rows.cursor)

    # The list.

    def show_file(self) -> None:
        """Show the rows of another file from the beginning."""
        self._forget_lengths()
        self._landing = None
        self.rows.show(self.cells, self._session.columns, len(self._session.listed))

    def show_listed(self, index: int) -> None:
        """Show the rows of a new filter; the cursor goes to a row, or to the next listed row."""
        session = self._session
        if session.filter is None:
            self.rows.show_part(len(session.listed), index)
        else:
            highest = session.view.count if session.view is not None else 0
            self.rows.show_part(len(session.listed), session.filter.nearest(index), highest)

    def go_to(self, index: int, landing: int = 0) -> None:
        """Move the cursor to a listed row.

        Args:
            index: The row.
            landing: 1 to scroll the row to its first match, -1 to its last, 0 for neither.
        """
        self._landing = (index, landing) if landing else None
        place = self._session.place_of(index)
        if place is not None:
            self.rows.cursor = place

    def count_again(self) -> None:
        """Count the tokens of the rows again."""
        self._forget_lengths()
        self.show_columns()

    def show_columns(self) -> None:
        """Show the columns that there are now, and read the visible rows again."""
        if self._session.view is not None:
            self.rows.columns = self._session.columns
        self.rows.invalidate()

    def cells(self, start: int, count: int) -> list[RowCells]:
        """The cells of a window of the list; unknown lengths are requested."""
        view = self._session.view
        if view is None:
            return []
        indices = self._session.listed[start : start + count]
        seen = view.marks.count
        for index in indices:
            if (length := self._lengths.get(index)) is not None and length.level:
                view.note(index, length.level)
        rows = view.cells(indices)
        if view.marks.count != seen:
            self.post_message(self.ProblemsSeen())
        if self._session.has_counts and self._missing(indices):
            self.call_later(self._want_lengths, indices)
        return [
            row if row.problem else replace(row, cells=(*self._narrow(index), *row.cells))
            for index, row in zip(indices, rows, strict=False)
        ]

    def _narrow(self, index: int) -> tuple[str, ...]:
        """The narrow cells of a row: its tokens, if they are counted, and its loss, if it was measured."""
        session, length = self._session, self._lengths.get(index) or RowLength()
        counts = (length.tokens, length.learned) if session.has_counts else ()
        return (*counts, *((session.loss_word(index),) if session.losses is not None else ()))

    def _missing(self, indices: Sequence[int]) -> list[int]:
        """The rows of a selection with unknown length."""
        return [index for index in indices if index not in self._lengths]

    def _want_lengths(self, indices: Sequence[int]) -> None:
        """Count the tokens of rows; a newer request replaces this one."""
        self._wanted = indices
        if not self._is_counting:
            self._is_counting = True
            self._count_rows()

    @work(group="data-lengths")
    async def _count_rows(self) -> None:
        session = self._session
        try:
            while batch := self._missing(self._wanted)[:_BATCH]:
                view, masks, lengths = session.view, session.masks, self._lengths
                if view is None or masks is None:
                    return
                cuts = session.plan.reading.overlong == "truncate"
                for index, length in (await asyncio.to_thread(measure_rows, view, masks, batch, cuts=cuts)).items():
                    lengths.set(index, length)
                self.rows.invalidate()
        finally:
            self._is_counting = False

    def _forget_lengths(self) -> None:
        # Counts in progress go to the old cache.
        self._lengths, self._wanted = FIFOCache(KEPT_LENGTHS), ()

    @on(RowList.Moved)
    def _moved(self) -> None:
        self.show_row()

    @on(RowList.Opened)
    def _row_opened(self) -> None:
        self.reader.focus()

    # The row under the cursor.

    def show_row(self) -> None:
        """Show the row under the cursor."""
        view, index = self._session.view, self.index
        if view is None or index >= view.count:
            return
        self.conversation.show(self._session.turns(index))
        self._show_place()
        self.show_tokens()
        if not self.shows_tokens:
            self._land()

    def toggle_tokens(self) -> None:
        """Switch the row between tokens and conversation, keeping the focus."""
        had_focus = self.reader.has_focus
        self.shows_tokens = not self.shows_tokens
        self._show_form()
        if had_focus:
            self.reader.focus()
        self._show_place()
        self.show_tokens()

    def highlight(self, term: str) -> None:
        """Highlight a text in the list and the row; an empty text removes the highlight."""
        self.rows.highlight(term)
        self.conversation.highlight(term)
        self.mask_view.highlight(term)

    def show_tokens(self) -> None:
        """Show the row under the cursor as tokens, if that form is chosen."""
        session, view, index = self._session, self._session.view, self.index
        if not self.shows_tokens or view is None or index >= view.count:
            return
        if (problem := session.masker_error or view.unknown) is not None:
            self.mask_view.say(str(problem), problem=True)
        elif session.masks is None:
            self.mask_view.say("Reading the tokenizer …")
        else:
            self._mask_row(view, session.masks, index)

    @work(exclusive=True, group="data-mask")
    async def _mask_row(self, view: DatasetView, masks: RowMasks, index: int) -> None:
        result, label = await asyncio.to_thread(mask_row, view, masks, index)
        stale = view is not self._session.view or masks is not self._session.masks
        if stale or index != self.index or not self.shows_tokens:
            return
        if isinstance(result, tuple):
            self.mask_view.show(token_parts(result, label, self._session.plan))
            self._show_place(describe_tokens(result))
            self._land()
        else:
            self.mask_view.say(str(result) if isinstance(result, UserError) else result.message, problem=True)
            self._show_place()

    def _show_form(self) -> None:
        self.set_class(self.shows_tokens, "-tokens")
        self.conversation.display = not self.shows_tokens
        self.mask_view.display = self.shows_tokens

    def _show_place(self, detail: Sequence[str] = ()) -> None:
        """Show the number of the row in its title, with its problems and details."""
        self._detail = detail
        self.show_problems()

    def show_problems(self) -> None:
        """Update the title of the row, after the problems of the rows have been found."""
        view, index, detail = self._session.view, self.index, self._detail
        if view is None or index >= view.count:
            return
        line = view.line_of(index)
        place = f"row {format_count(index + 1)}" + (
            f" · line {format_count(line)}" if line and line != index + 1 else ""
        )
        words = [place, *(["as tokens"] if self.shows_tokens else []), *detail]
        told = [*map(Content, words), *self._told_loss(index), *self._problems(view, index)]
        # Without room, what can be seen or is in the list goes first.
        for spare in ("as tokens", *reversed(detail)):
            if _joined(told).cell_length <= self._box.outer_size.width - _TITLE_FRAME:
                break
            told = [part for part in told if part.plain != spare]
        self._box.border_title = Content.assemble(" ", _joined(told), " ")

    def _told_loss(self, index: int) -> list[Content]:
        """The loss of the row after a run, and what has been done about it."""
        found = self._session.losses
        if found is None or (word := self._session.loss_word(index)) == "–":
            return []
        loss = found.loss(index)
        done = {KEPT: "kept", OUT: "left out", CORRECTED: "corrected"}.get(word, "")
        told = [f"loss {loss:.2f}"] if loss is not None else []
        return [*map(Content, told), *([Content.styled(done, "$near")] if done else [])]

    def _problems(self, view: DatasetView, index: int) -> list[Content]:
        """The problems for which the row is marked in the list; none of a row whose error is among its turns."""
        if view.analysis is None or any(turn.role == "problem" for turn in self.conversation.turns[:1]):
            return []
        told = []
        for problem in view.analysis.problems:
            level = problem.kind.level
            if level == "note" or problem.code in OF_THE_WHOLE or RowFilter.of(problem).place(index) is None:
                continue
            mark, style = ("✗", "$limit") if level == "drop" else ("!", "$near")
            told.append(Content.styled(f"{mark} {problem.kind.title}", style))
        return told

    def _land(self) -> None:
        """Scroll the row to its first or last match, if a search has just moved there."""
        landing, self._landing = self._landing, None
        if landing is not None and landing[0] == self.index:
            # The scroll range is known only after the layout.
            self.call_after_refresh(self.reader.move_match, landing[1])
