"""List of runs on Textual's Line API; the least important columns are left out to fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip

from core.runs.catalog.table import DEFAULT_SORT
from core.runs.record.sentences import brief_id
from core.text import one_line, steady
from core.units import coarse_ago, exact_number, format_bytes, format_duration, format_fixed, format_number, format_rate
from tui.meters import energy_has_moved
from tui.state import STATE_COLORS, STATE_GLYPHS
from tui.widgets.lists.cursor_list import CursorList
from tui.widgets.strips import component_classes, fit, style_of

if TYPE_CHECKING:
    from core.runs.catalog.rows import RunFigures, RunRow

    #: The text of a run with its figures, once they are known, at a Unix time.
    _Cell = Callable[[RunRow, RunFigures | None, float], str]

#: Blanks after a column.
_GAP = 2


@dataclass(frozen=True)
class _Column:
    title: str
    width: int
    cell: _Cell
    right: bool = False
    priority: int = 0
    """Low numbers get room first, 0 always."""
    sort: str = ""
    """The name of the sort order; empty for none."""
    least: int = 0
    """Minimum width; 0 for a fixed width."""

    @property
    def narrowest(self) -> int:
        """Minimum width with the gap."""
        return (self.least or self.width) + _GAP


def _state(row: RunRow, _now: float) -> str:
    return f"{STATE_GLYPHS.get(row.state, '?')} {'refused' if row.refused else row.word or row.state}"


def _steps(row: RunRow, _now: float) -> str:
    return f"{row.step}/{row.total_steps}" if row.total_steps else str(row.step or "–")


def _age(row: RunRow, now: float) -> str:
    """The time since the start, in a single unit."""
    return coarse_ago(now - row.started).removesuffix(" ago") if row.started else "–"


def _options(row: RunRow, _now: float) -> str:
    """Learning rate and batch size: ``5e-4·4``."""
    rate = exact_number(float(f"{row.learning_rate:.3g}")) if row.learning_rate is not None else ""
    return "·".join(part for part in (rate, str(row.batch_size or "")) if part)


def _speed(_row: RunRow, figures: RunFigures) -> str:
    return "–" if figures.tokens_per_second is None else format_rate(figures.tokens_per_second).removesuffix(" tok/s")


def _energy(_row: RunRow, figures: RunFigures) -> str:
    return "–" if figures.energy_wh is None else f"{format_number(figures.energy_wh)} Wh"


def _known(words: Callable[[RunRow, RunFigures], str]) -> _Cell:
    """The cell of a figure; empty until the figures are known."""
    return lambda row, figures, _now: words(row, figures) if figures is not None else ""


def _listed(words: Callable[[RunRow, float], str]) -> _Cell:
    """The cell of a value that the list itself has, at a Unix time."""
    return lambda row, _figures, now: words(row, now)


_COLUMNS = (
    _Column("state", 10, _listed(_state), sort="state"),
    # The display name, or else the id.
    _Column("run", 24, _listed(lambda row, _: steady(row.labels.name) or one_line(row.run.id, 64)), sort="name"),
    _Column("model", 16, _listed(lambda row, _: steady(row.base_name)), priority=7, sort="model", least=10),
    _Column("method", 10, _listed(lambda row, _: row.method_words), priority=6, sort="method"),
    _Column("data", 14, _listed(lambda row, _: steady(", ".join(row.data))), priority=9, sort="data", least=9),
    _Column("lr·batch", 9, _listed(_options), right=True, priority=13),
    _Column("step", 11, _listed(_steps), right=True, sort="step"),
    _Column("loss", 7, _listed(lambda row, _: format_number(row.loss)), right=True, priority=2, sort="loss"),
    _Column("best", 7, _known(lambda _, known: format_number(known.best_loss)), right=True, priority=1, sort="best"),
    _Column("exact", 5, _known(lambda _, known: format_fixed(known.exact_match, 2)), right=True, priority=10),
    _Column("tok/s", 7, _known(_speed), right=True, priority=3, sort="speed"),
    _Column("energy", 8, _known(_energy), right=True, priority=4, sort="energy"),
    _Column("cost", 10, _known(lambda row, known: row.tariff.words(known.energy_wh) or "–"), right=True, priority=4),
    # Of work, without pauses.
    _Column(
        "took", 7, _known(lambda _, known: format_duration(known.working_seconds)), right=True, priority=11, sort="took"
    ),
    _Column("size", 7, _known(lambda _, known: format_bytes(known.size)), right=True, priority=12, sort="size"),
    _Column("age", 8, _listed(_age), right=True, priority=5, sort="started"),
    _Column("note", 16, _listed(lambda row, _: steady(note_words(row))), priority=8, least=8),
)
#: Priority of the energy if its cost is known, which is the more useful figure.
_ENERGY_BESIDE_COST = 10
#: Maximum columns by which a wide list widens names and notes.
_WIDER_NAME, _WIDER_NOTE = 14, 40


def note_words(row: RunRow) -> str:
    """Archive state, the run that it trains further, tags and note on one line: ``#keep  best so far``."""
    labels, tags = row.labels, " ".join(f"#{tag}" for tag in row.labels.tags)
    return "  ".join(filter(None, ("archived" if labels.archived else "", row.origin, tags, labels.note)))


class RunList(CursorList):
    """A list of runs with a cursor.

    Args:
        clock: Returns the current time, in Unix seconds.
    """

    DEFAULT_CSS = style_of("RunList")
    COMPONENT_CLASSES: ClassVar[set[str]] = component_classes(DEFAULT_CSS)

    @dataclass
    class SortWanted(Message):
        """The title of a column has been clicked."""

        column: str

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._rows: Sequence[RunRow] = ()
        self.figures: dict[str, RunFigures] = {}
        """Known figures by run id."""
        self._marked: dict[str, None] = {}
        self._sorted = (DEFAULT_SORT, True)
        self._has_notes = self._has_costs = False
        self._ages: Sequence[str] = ()

    @property
    def marked(self) -> Sequence[RunRow]:
        """The marked rows, in the order of marking."""
        by_id = {row.run.id: row for row in self._rows}
        return [by_id[identity] for identity in self._marked if identity in by_id]

    def toggle_mark(self) -> None:
        """Mark or unmark the row under the cursor."""
        if (row := self.selected) is None:
            return
        if row.run.id in self._marked:
            del self._marked[row.run.id]
        else:
            self._marked[row.run.id] = None
        self.refresh_row(self.cursor)

    def clear_marks(self) -> None:
        """Remove all marks."""
        if self._marked:
            self._marked = {}
            self.refresh()

    def show_order(self, column: str, *, descending: bool) -> None:
        """Show the sort column, a name of :data:`~core.runs.catalog.table.SORT_COLUMNS`."""
        if (column, descending) != self._sorted:
            self._sorted = column, descending
            self.refresh(Region(0, 0, self.size.width, 1))

    @property
    def page_rows(self) -> int:
        """Number of rows in view."""
        return self.size.height - 1

    @property
    def selected(self) -> RunRow | None:
        """The row under the cursor."""
        return self._rows[self.cursor] if self.cursor < len(self._rows) else None

    @property
    def in_view(self) -> Sequence[RunRow]:
        """The rows in view, the row under the cursor first."""
        top = self.scroll_offset.y
        shown = [row for row in self._rows[top : top + max(self.page_rows, 0)] if row is not self.selected]
        return [self.selected, *shown] if self.selected is not None else shown

    @property
    def older(self) -> RunRow | None:
        """The row below the cursor: the previous run."""
        return self._rows[self.cursor + 1] if self.cursor + 1 < len(self._rows) else None

    def figures_of(self, row: RunRow) -> RunFigures | None:
        """The figures of a run, if known."""
        return self.figures.get(row.run.id)

    def show_figures(self, figures: Mapping[str, RunFigures]) -> None:
        """Show the figures of runs."""
        for index, row in enumerate(self._rows):
            identity = row.run.id
            if identity in figures and not (row.state == "paused" and self._is_idling(identity, figures[identity])):
                self.figures[identity] = figures[identity]
                self.refresh_row(index)
        listed = {row.run.id for row in self._rows}
        self.figures.update((identity, value) for identity, value in figures.items() if identity not in listed)

    def _is_idling(self, identity: str, figures: RunFigures) -> bool:
        """True if only the energy of an idle device, and the size of the record, have changed."""
        shown = self.figures.get(identity)
        if shown is None or replace(figures, energy_wh=shown.energy_wh, size=shown.size) != shown:
            return False
        return not energy_has_moved(shown.energy_wh, figures.energy_wh)

    def show(self, rows: Sequence[RunRow]) -> None:
        """Show other rows; the cursor stays on its run if possible. Only changed rows are repainted."""
        before, chosen = self._rows, self.selected
        self._rows, self.count = rows, len(rows)
        has_notes = any(map(note_words, rows))
        has_costs = any(row.tariff.per_kwh is not None for row in rows)
        if (has_notes, has_costs) != (self._has_notes, self._has_costs):
            self._has_notes, self._has_costs = has_notes, has_costs
            self.refresh()
        if chosen is not None:
            same = next((i for i, row in enumerate(rows) if row.run.id == chosen.run.id), None)
            kept = same if same is not None else self.validate_cursor(self.cursor)
            self.set_reactive(CursorList.cursor, kept)
        ages, now = self._ages, self._clock()
        self._ages = [_age(row, now) for row in rows]
        if [row.run.id for row in before] != [row.run.id for row in rows]:
            self.refresh()
            return
        for index, (old, new) in enumerate(zip(before, rows, strict=True)):
            if old != new or (index < len(ages) and ages[index] != self._ages[index]):
                self.refresh_row(index)

    def on_click(self, event: events.Click) -> None:
        """Request the order of a clicked title."""
        end = _GAP
        for column, width in self._columns() if event.y == 0 else ():
            end += width + _GAP
            if event.x < end:
                if column.sort:
                    self.post_message(self.SortWanted(column.sort))
                return

    def on_resize(self) -> None:
        """Report that other rows are in view."""
        self.post_message(self.Moved())

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Report that other rows are in view."""
        super().watch_scroll_y(old_value, new_value)
        self.post_message(self.Moved())

    def _columns(self) -> list[tuple[_Column, int]]:
        """Columns that fit, with their widths. Spare room goes to narrowed columns, the run's id, and the notes."""
        room = self.scrollable_content_region.width - 1
        chosen: list[_Column] = []
        used = 0
        for column in sorted(_COLUMNS, key=self._rank):
            if self._is_told(column) and (column.priority == 0 or used + column.narrowest <= room):
                chosen.append(column)
                used += column.narrowest
        spare = max(room - used, 0)
        widths: dict[str, int] = {}
        for column in chosen:
            more = min(spare, column.width + _GAP - column.narrowest)
            widths[column.title] = column.narrowest - _GAP + more
            spare -= more
        for title, most in (("run", _WIDER_NAME), ("note", _WIDER_NOTE)):
            if title in widths:
                more = min(spare, most)
                widths[title] += more
                spare -= more
        return [(column, widths[column.title]) for column in _COLUMNS if column.title in widths]

    @property
    def left_out(self) -> int:
        """Number of columns that have no room."""
        return sum(map(self._is_told, _COLUMNS)) - len(self._columns()) if self.size.width else 0

    def _is_told(self, column: _Column) -> bool:
        """True if any run has a value in a column."""
        return {"note": self._has_notes, "cost": self._has_costs}.get(column.title, True)

    def _rank(self, column: _Column) -> tuple[bool, int]:
        """Sort key of a column's claim to room."""
        # The sort column is always shown, except in the default order.
        wanted = self._sorted[0] if self._sorted[0] != DEFAULT_SORT else ""
        is_doubled = column.title == "energy" and self._has_costs
        return not wanted or column.sort != wanted, _ENERGY_BESIDE_COST if is_doubled else column.priority

    def _title(self, column: _Column) -> str:
        """The title of a column, with an arrow if the rows are sorted by it."""
        name, descending = self._sorted
        # The latest start has the smallest age.
        descending = descending != (column.title == "age")
        return f"{column.title}{'↓' if descending else '↑'}" if column.sort == name else column.title

    def draw_header(self, width: int) -> Strip:
        """Titles of the columns."""
        style = self.get_component_rich_style("run-list--header")
        cells = [fit(self._title(column), size, right=column.right) for column, size in self._columns()]
        return Strip([Segment("  " + "  ".join(cells), style)]).adjust_cell_length(width, self.rich_style)

    def draw_row(self, index: int, width: int) -> Strip:
        """Cells of a run."""
        row, now = self._rows[index], self._clock()
        figures = self.figures_of(row)
        at_cursor = index == self.cursor
        base: Style = self.get_component_rich_style("run-list--cursor") if at_cursor else self.rich_style
        segments = [Segment("▸" if at_cursor else " ", base)]
        is_marked = row.run.id in self._marked
        segments.append(
            Segment("*" if is_marked else " ", base + self.get_component_rich_style("run-list--mark", partial=True))
        )
        for column, size in self._columns():
            style = base
            if column.title == "state" and row.state in STATE_COLORS:
                color = self.get_component_rich_style(f"run-list--{STATE_COLORS[row.state]}").color
                style = base + Style(color=color)
            elif row.labels.archived and not at_cursor:
                style = self.get_component_rich_style("run-list--header")
            text = column.cell(row, figures, now)
            if column.title == "run" and not row.labels.name and cell_len(text) > size:
                text = brief_id(row.run.id)
            segments.append(Segment(fit(text, size, right=column.right), style))
            segments.append(Segment("  ", base))
        return Strip(segments).adjust_cell_length(width, base)
