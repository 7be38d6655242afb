"""The token side of the data pane: the row as the model learns it, and the lengths in the list."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from textual import on, work
from textual.message import Message
from textual.worker import get_current_worker

from core.analysis.problems import Level
from core.config.document import ConfigDocument
from core.data.conversation import RowError
from core.errors import UserError
from core.template.preview import PreviewRow, Refusal
from core.template.preview import RowLength as Measured
from core.template.sandboxed import RowMasks
from tui.datasets.plan import TokenPlan, plan_data
from tui.datasets.rows import RowCells
from tui.datasets.summary import counted, spaced
from tui.datasets.tasks import ReadAgain, read_again
from tui.datasets.view import DatasetView, label_word
from tui.panes.data.session import DatasetPane
from tui.widgets.lists.mask_view import TokenCell, TokenPart

#: Rows whose lengths are kept; the oldest are forgotten.
KEPT_LENGTHS = 20_000
#: Rows masked between two looks at whether they are still wanted.
_BATCH = 16

Length: TypeAlias = "Measured | Refusal | RowError | UserError"

_CUT_LABELS = {
    "drop": "train.max_length = {limit}: longer rows are dropped",
    "truncate": "train.max_length = {limit}: what follows is cut off",
    "refuse": "train.max_length = {limit}: longer rows stop the run",
}


@dataclass(frozen=True)
class RowLength:
    """What the list says of a row as tokens."""

    tokens: str = "–"
    learned: str = "–"
    level: Level | Literal[""] = ""
    """Whether it is used."""


@dataclass
class MaskerLoaded(Message):
    """The tokenizer and template of a plan are there, or cannot be."""

    plan: TokenPlan
    masks: RowMasks | None
    error: UserError | None = None


@dataclass
class RowMasked(Message):
    """A row has become tokens, or cannot."""

    view: DatasetView
    masks: RowMasks
    index: int
    result: tuple[PreviewRow, ...] | Refusal | RowError | UserError
    label: bool | None = None
    """Whether its answer is called good; None for other rows."""


@dataclass
class LengthsKnown(Message):
    """Rows of the list have been counted."""

    view: DatasetView
    masks: RowMasks
    lengths: dict[int, RowLength]


class DatasetMasks(DatasetPane):
    """Shows the row under the cursor as tokens, and fills the columns ``tok`` and ``sup``."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.shows_tokens = False
        self.masks: RowMasks | None = None
        self.masker_error: UserError | None = None
        self._is_loading = False
        self._lengths: OrderedDict[int, RowLength] = OrderedDict()

    def configure(self, document: ConfigDocument) -> None:
        """Follow a configuration: how rows are read, and what of them is learned.

        What does not change the plan changes nothing that is shown.
        """
        before, self.plan = self.plan, plan_data(document)
        if self.view is not None:
            self.read_as_planned(self.view)
        if self.plan.tokens != before.tokens or (self.masks is None and not self._is_loading):
            self.masks = None
            self.forget_tokens()
            if self.view is not None:
                self.load_masker()
        elif self.plan.reading.overlong != before.reading.overlong:
            self.forget_tokens()
            self.show_tokens()
        if self.plan != before:
            self.plan_changed()

    def plan_changed(self) -> None:
        """Called when rows are read or made into tokens in another way, and when the tokenizer is there for it."""

    def read_as_planned(self, view: DatasetView) -> None:
        """Recognize the rows anew where the configuration has them read in another way than they are."""
        reading = self.plan.reading.of(view.path)
        if reading != view.reading:
            self.run_worker(
                lambda: read_again(view, reading, self.post_message), thread=True, exclusive=True, group="data-reading"
            )

    @on(ReadAgain)
    def _read_again(self, message: ReadAgain) -> None:
        view = message.view
        if view is not self.view or message.recognized.reading != self.plan.reading.of(view.path):
            return
        view.read_as(message.recognized)
        self.forget_tokens()
        self.show_row()
        self.refresh_title()
        self.plan_changed()

    def load_masker(self) -> None:
        """Read tokenizer and template in a thread, unless they are there already."""
        if self.masks is None:
            self._is_loading = True
            self._load(self.plan.tokens)

    @work(thread=True, exclusive=True, group="data-masker")
    def _load(self, plan: TokenPlan) -> None:
        try:
            masks = RowMasks(plan.mask_settings())
            masks.check()
        except UserError as error:
            self.post_message(MaskerLoaded(plan, None, error))
            return
        self.post_message(MaskerLoaded(plan, masks))

    @on(MaskerLoaded)
    def _loaded(self, message: MaskerLoaded) -> None:
        if message.plan != self.plan.tokens:
            return
        self._is_loading = False
        self.masks, self.masker_error = message.masks, message.error
        self.forget_tokens()
        self.show_tokens()
        self.plan_changed()

    def forget_tokens(self) -> None:
        """Count the tokens of the rows anew."""
        self._lengths.clear()
        if self.view is not None:
            self.rows.columns = self.columns
        self.rows.invalidate()

    @property
    def _has_counts(self) -> bool:
        """Whether the list has columns for tokens; they stay while another tokenizer is read."""
        known = self.view is not None and self.view.detection is not None
        return known and (self.masks is not None or (self._is_loading and self.masker_error is None))

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings of the list; lengths only where a tokenizer is there to tell them."""
        if self.view is None:
            return ()
        return (*(("tok", "sup") if self._has_counts else ()), *self.view.columns)

    # The row under the cursor.

    def action_toggle_tokens(self) -> None:
        """The row as tokens, or as a conversation again."""
        self.shows_tokens = not self.shows_tokens
        self.arrange_row()

    def arrange_row(self) -> None:
        """Show the row in the form that is wanted; the keys go along."""
        had_focus = self.conversation.has_focus or self.mask_view.has_focus
        self.set_class(self.shows_tokens, "-tokens")
        self.conversation.display = not self.shows_tokens
        self.mask_view.display = self.shows_tokens
        if had_focus:
            (self.mask_view if self.shows_tokens else self.conversation).focus()
        self.show_place()
        self.show_tokens()

    def show_tokens(self) -> None:
        """Show the row under the cursor as tokens, where tokens are shown."""
        view, index = self.view, self.index
        if not self.shows_tokens or view is None or index >= view.count:
            return
        if self.masker_error is not None:
            self.mask_view.say(str(self.masker_error), problem=True)
        elif view.unknown is not None:
            self.mask_view.say(str(view.unknown), problem=True)
        elif self.masks is None:
            self.mask_view.say("Reading the tokenizer …")
        else:
            self._mask_row(view, self.masks, index)

    @work(thread=True, exclusive=True, group="data-mask")
    def _mask_row(self, view: DatasetView, masks: RowMasks, index: int) -> None:
        label = None
        result: tuple[PreviewRow, ...] | Refusal | RowError | UserError
        try:
            example = view.example(index)
            label = example.label
            result = masks.row(example)
        except (RowError, UserError) as error:
            result = error
        self.post_message(RowMasked(view, masks, index, result, label))

    def _measured(self, view: DatasetView, masks: RowMasks, indices: Sequence[int]) -> list[Length]:
        """The lengths of rows; for each that has none, the reason."""
        found: dict[int, Length] = {}
        examples = []
        for index in indices:
            try:
                examples.append((index, view.example(index)))
            except (RowError, UserError) as error:
                found[index] = error
        try:
            lengths = masks.lengths([example for _, example in examples])
        except UserError as error:
            found.update((index, error) for index, _ in examples)
        else:
            found.update((index, length) for (index, _), length in zip(examples, lengths, strict=True))
        return [found[index] for index in indices]

    @on(RowMasked)
    def _row_masked(self, message: RowMasked) -> None:
        stale = message.view is not self.view or message.masks is not self.masks
        if stale or message.index != self.index or not self.shows_tokens:
            return
        result = message.result
        if not isinstance(result, tuple):
            text = str(result) if isinstance(result, UserError) else result.message
            self.mask_view.say(text, problem=True)
            self.show_place()
            return
        label = _CUT_LABELS[self.plan.reading.overlong].format(limit=spaced(self.plan.tokens.max_length))
        self.mask_view.show(
            [
                TokenPart(
                    [TokenCell(token.text, token.learned, token.special) for token in part.tokens],
                    part.cut,
                    label,
                    _heading(part, message.label),
                )
                for part in result
            ]
        )
        tokens, learned = sum(part.length for part in result), sum(part.learned for part in result)
        counts = _pair_lengths(result) if result[0].answer else counted(tokens, "token")
        self.show_place(f"{counts} · {spaced(learned)} learned · {learned / max(tokens, 1):.0%}")
        self.tokens_shown()

    def tokens_shown(self) -> None:
        """Called when the tokens of the row under the cursor are on the screen."""

    # The list.

    def cells(self, start: int, count: int) -> list[RowCells]:
        """A window of the list with lengths where they are known; the others are asked for."""
        view = self.view
        if view is None:
            return []
        order = range(view.count) if self.filter is None else self.filter.indices
        indices = order[start : start + count]
        seen = view.marks.count
        for index in indices:
            if (length := self._lengths.get(index)) is not None and length.level:
                view.note(index, length.level)
        rows = view.cells(indices)
        if view.marks.count != seen:
            self.call_later(self.refresh_status)
        if not self._has_counts:
            return rows
        if self.masks is not None and any(index not in self._lengths for index in indices):
            self.call_later(self._want_lengths, list(indices))
        return [
            row if row.problem else self._with_length(row, self._lengths.get(index))
            for index, row in zip(indices, rows, strict=False)
        ]

    @staticmethod
    def _with_length(row: RowCells, length: RowLength | None) -> RowCells:
        known = length or RowLength()
        return replace(row, cells=(known.tokens, known.learned, *row.cells))

    def _want_lengths(self, indices: Sequence[int]) -> None:
        if self.view is not None and self.masks is not None:
            missing = [index for index in indices if index not in self._lengths]
            if missing:
                self._measure(self.view, self.masks, missing, self.plan.reading.overlong == "truncate")

    @work(thread=True, exclusive=True, group="data-lengths")
    def _measure(self, view: DatasetView, masks: RowMasks, indices: Sequence[int], cuts: bool) -> None:
        worker = get_current_worker()
        for begin in range(0, len(indices), _BATCH):
            if worker.is_cancelled:
                return
            batch = indices[begin : begin + _BATCH]
            results = self._measured(view, masks, batch)
            known = {index: _length_of(result, cuts) for index, result in zip(batch, results, strict=True)}
            self.post_message(LengthsKnown(view, masks, known))

    @on(LengthsKnown)
    def _lengths_known(self, message: LengthsKnown) -> None:
        if message.view is not self.view or message.masks is not self.masks:
            return
        self._lengths.update(message.lengths)
        while len(self._lengths) > KEPT_LENGTHS:
            self._lengths.popitem(last=False)
        self.rows.invalidate()


def _heading(part: PreviewRow, label: bool | None) -> str:
    """What stands over a part: the answers of a pair, and those with a label, are named."""
    name = part.answer if label is None else label_word(label)
    return f"{name} answer · {counted(part.length, 'token')} · {spaced(part.learned)} learned" if name else ""


def _pair_lengths(parts: Sequence[PreviewRow]) -> str:
    return f"pair of {' and '.join(spaced(part.length) for part in parts)} tokens"


def _length_of(result: Length, cuts: bool) -> RowLength:
    if isinstance(result, UserError):
        return RowLength("✗")
    if not isinstance(result, Measured):
        return RowLength("✗", level="drop")
    level: Level | Literal[""] = ("warn" if cuts else "drop") if result.is_long else ""
    return RowLength(str(result.tokens), str(result.learned), level)
