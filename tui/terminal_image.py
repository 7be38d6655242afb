"""Image of the terminal, cell by cell, which reduces each update to the cells that differ.

At 120×34, a cursor move costs 6 kB in Data, 4 kB in Runs and 14 kB in the list of presets without it, and 0.4 to
1.5 kB with it (``bench/results/terminal-image-2026-11-30.json``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import ne
from typing import Any, cast

from rich.cells import cell_len, get_character_cell_size
from rich.color import ColorSystem
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate, CompositorUpdate, LayoutUpdate
from textual.app import App
from textual.screen import Screen
from textual.strip import SGR_STYLES

#: Maximum gap of unchanged cells that is rewritten, as a cursor movement would be as long.
_GAP = 4
#: Rows that a list may scroll between two frames.
_SCROLLS = (1, -1, 2, -2, 3, -3)
#: Changed cells from which scrolling is tried, and cells that it must save.
_MANY, _WORTH = 300, 120
#: Maximum cached styles; a theme change brings new ones.
_PENS = 4096
#: Codes that end an attribute. One that has no such code is ended by a reset of all.
_ENDS = {"1": "22", "2": "22", "3": "23", "4": "24", "7": "27", "9": "29"}
#: Attributes of a style in the order of their codes, and the attributes that are invisible on a space.
_ATTRIBUTES = (
    *("bold", "dim", "italic", "underline", "blink", "blink2", "reverse", "conceal", "strike"),
    *("underline2", "frame", "encircle", "overline"),
)
_UNSEEN = {"bold", "dim", "italic", "conceal"}


@lru_cache(maxsize=256)
def _ends(before: str, after: str) -> str | None:
    """The codes that end attributes; None if only a reset ends one."""
    gone = [code for code in before.split(";") if code and code not in after.split(";")]
    return ";".join(dict.fromkeys(_ENDS[code] for code in gone)) if all(code in _ENDS for code in gone) else None


@dataclass(frozen=True, eq=False)
class Pen:
    """SGR codes of a style. Pens are unique, and compared by identity."""

    attributes: str
    foreground: str
    background: str
    link: str
    blank: Pen | None = None
    """The pen for spaces, which has the background alone; None if that is this pen."""

    def codes_after(self, before: Pen | None) -> str:
        """The shortest escape sequence that switches from another pen to this one."""
        whole = ["0", self.attributes, self.foreground, self.background]
        codes = ";".join(filter(None, whole))
        if before is not None and (ends := _ends(before.attributes, self.attributes)) is not None:
            parts = [
                ends,
                self.attributes if self.attributes != before.attributes else "",
                (self.foreground or "39") if self.foreground != before.foreground else "",
                (self.background or "49") if self.background != before.background else "",
            ]
            codes = min(codes, ";".join(filter(None, parts)), key=len)
        select = f"\x1b[{codes}m" if codes else ""
        if self.link != (before.link if before is not None else ""):
            select += f"\x1b]8;{self.link or ';'}\x1b\\"
        return select


Cell = tuple[str, Pen]
"""Character and pen. The second cell of a wide character has no text."""
Row = list[Cell | None]
"""Row of the terminal; None for an unknown cell."""


class Pens:
    """Cache of pens by style."""

    def __init__(self) -> None:
        self._by_style: dict[Style | None, Pen] = {}
        self._by_codes: dict[tuple[str, str, str, str], Pen] = {}
        self._system: ColorSystem | None = None

    def use(self, system: ColorSystem | None) -> None:
        """Set the color system of new pens."""
        if system is not self._system or len(self._by_style) > _PENS:
            self._system = system
            # Pens by codes stay: cells of the image refer to them.
            self._by_style.clear()

    def of(self, style: Style | None) -> Pen:
        """The pen of a style."""
        pen = self._by_style.get(style)
        if pen is None:
            pen = self._by_style[style] = self._make(style)
        return pen

    def _make(self, style: Style | None) -> Pen:
        if style is None:
            return self._intern("", "", "", "", shows_on_blank=False)
        system = self._system
        on = [bool(getattr(style, name)) for name in _ATTRIBUTES]
        attributes = ";".join(code for code, is_on in zip(SGR_STYLES, on, strict=True) if is_on)
        foreground = background = ""
        if system is not None:
            if style.color is not None:
                foreground = ";".join(style.color.downgrade(system).get_ansi_codes())
            if style.bgcolor is not None:
                background = ";".join(style.bgcolor.downgrade(system).get_ansi_codes(foreground=False))
        link = f"id={style.link_id};{style.link}" if style.link else ""
        shows = any(is_on for name, is_on in zip(_ATTRIBUTES, on, strict=True) if name not in _UNSEEN) or bool(link)
        return self._intern(attributes, foreground, background, link, shows_on_blank=shows)

    def _intern(self, attributes: str, foreground: str, background: str, link: str, *, shows_on_blank: bool) -> Pen:
        codes = (attributes, foreground, background, link)
        pen = self._by_codes.get(codes)
        if pen is None:
            blank = None
            if not shows_on_blank and (attributes or foreground):
                blank = self._intern("", "", background, "", shows_on_blank=False)
            pen = self._by_codes[codes] = Pen(attributes, foreground, background, link, blank)
        return pen


@lru_cache(maxsize=8192)
def _split(text: str) -> tuple[str, ...] | None:
    """The text of each cell, empty for the second cell of a wide character; None if each character has one cell."""
    if text.isascii() or cell_len(text) == len(text) == sum(map(get_character_cell_size, text)):
        return None
    cells: list[str] = []
    for character in text:
        width = get_character_cell_size(character)
        if width == 0 and cells:
            place = len(cells) - 1 if cells[-1] or len(cells) == 1 else len(cells) - 2
            cells[place] += character
        elif width:
            cells += [character] if width == 1 else [character, ""]
    if len(cells) != cell_len(text):
        # Characters that are measured together become one cell with empty cells after it.
        return (text, *[""] * (cell_len(text) - 1))
    return tuple(cells)


def _is_plain(text: str) -> bool:
    """True if terminals agree on the width of a cell's text."""
    return len(text) == 1 and ord(text) < 0x1F000


class _Painted(CompositorUpdate):
    """Update with its finished output."""

    def __init__(self, output: str) -> None:
        self._output = output

    def render_segments(self, console: Console) -> str:  # noqa: ARG002 - Textual calls it
        """The output."""
        return self._output

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The output, as a control segment, which rich writes unchanged."""
        yield Segment(self._output, None, ())


class TerminalImage:
    """Image of a terminal, which computes the minimal output for an update."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._pens = Pens()
        self._is_known = False

    def rest_of(
        self, renderable: RenderableType | None, app: App[Any], screen: Screen[object]
    ) -> RenderableType | None:
        """The part of an update that changes the terminal, for :meth:`textual.app.App._display`.

        None if the terminal already shows all of it; the renderable itself if it is no update of cells.
        """
        # Textual's own conditions for writing: an update that it skips must not enter the image. It writes the cursor
        # position with every update.
        is_written = app._running and not app._closed and not app._batch_count and not app.is_headless
        update = cast(object, renderable)
        if not is_written or not isinstance(update, CompositorUpdate):
            return renderable
        output = self.bring(update, app.console._color_system, screen.outer_size)
        if output is None:
            return renderable
        is_still = app.screen.outer_size.clamp_offset(app.cursor_position) == app._previous_cursor_position
        return None if is_still and not output else _Painted(output)

    def forget(self) -> None:
        """Mark all cells as unknown: the terminal was resized, or another program wrote to it."""
        self._is_known = False

    def bring(self, update: CompositorUpdate, system: ColorSystem | None, size: tuple[int, int]) -> str | None:
        """The output for an update of the screen; None for an update of another kind, which is written unchanged.

        Args:
            update: The update.
            system: The color system; None without colors.
            size: Columns and rows of the terminal.
        """
        if not isinstance(update, (LayoutUpdate, ChopsUpdate)):
            return None
        width, height = size
        if not self._is_known or len(self._rows) != height or len(self._rows[0]) != width:
            self._is_known = True
            self._rows = [[None] * width for _ in range(height)]
        self._pens.use(system)
        changed: dict[int, Row] = {}
        rows = self._rows
        for y, x, segments in _pieces(update):
            if not 0 <= y < height:
                continue
            row = changed.get(y)
            if row is None:
                row = changed[y] = rows[y].copy()
            cells = self._cells(segments)
            _put(row, x, cells)
            del row[width:]
        changed = {y: row for y, row in changed.items() if row != rows[y]}
        if not changed:
            return ""
        output: list[str] = []
        self._scroll(changed, output)
        pen: Pen | None = None
        for y in sorted(changed):
            pen = _write_row(y, rows[y], changed[y], pen, output)
            rows[y] = changed[y]
        if pen is not None:
            output.append("\x1b[0m" + ("\x1b]8;;\x1b\\" if pen.link else ""))
        return "".join(output)

    def _cells(self, segments: Iterable[Segment]) -> list[Cell]:
        """The cells of segments."""
        cells: list[Cell] = []
        pen_of = self._pens.of
        for text, style, control in segments:
            if control:
                continue
            pen = pen_of(style)
            blank = pen.blank
            characters = _split(text) or text
            if blank is None:
                cells += [(character, pen) for character in characters]
            else:
                cells += [(character, blank if character == " " else pen) for character in characters]
        return cells

    def _scroll(self, changed: dict[int, Row], output: list[str]) -> None:
        """Scroll a part of the terminal if that saves much output."""
        rows = self._rows
        cost = {y: _differences(rows[y], row) for y, row in changed.items()}
        if len(changed) < 4 or sum(cost.values()) < _MANY:
            return
        best, distance, first, last = 0, 0, 0, 0
        for step in _SCROLLS:
            gain, begin, end = _best_part(rows, changed, cost, step)
            gain -= abs(step) * len(rows[0])
            if gain > best:
                best, distance, first, last = gain, step, begin, end
        if best < _WORTH:
            return
        # Rows first to last get the content `distance` rows below; the rows scrolled in are unknown.
        top, bottom = (first, last + distance) if distance > 0 else (first + distance, last)
        goes = "\x1bD" * distance if distance > 0 else "\x1bM" * -distance
        output.append(f"\x1b[{top + 1};{bottom + 1}r\x1b[{(bottom if distance > 0 else top) + 1};1H{goes}\x1b[r")
        before = {y: changed.get(y, rows[y]) for y in range(top, bottom + 1)}
        unknown: list[Row] = [[None] * len(rows[0]) for _ in range(abs(distance))]
        part = rows[top : bottom + 1]
        rows[top : bottom + 1] = part[distance:] + unknown if distance > 0 else unknown + part[:distance]
        changed.update(before)


def _put(row: Row, x: int, cells: list[Cell]) -> None:
    """Put cells into a row; half of an overwritten wide character becomes a blank, as in a terminal."""
    begin, end = x, x + len(cells)
    while 0 < begin < len(row) and _goes_on(row[begin]):
        begin -= 1
    stop = end
    while stop < len(row) and _goes_on(row[stop]):
        stop += 1
    for place in (*range(begin, x), *range(end, stop)):
        if (cell := row[place]) is not None:
            row[place] = (" ", cell[1].blank or cell[1])
    row[x:end] = cells


def _best_part(rows: list[Row], changed: dict[int, Row], cost: dict[int, int], step: int) -> tuple[int, int, int]:
    """The block of rows that saves most if scrolled by ``step`` rows: saved cells, first row, last row."""
    best = gain = 0
    first = begin = last = 0
    for y in range(len(rows)):
        row = changed.get(y, rows[y])
        if 0 <= y + step < len(rows):
            gain += cost.get(y, 0) - _differences(rows[y + step], row)
        else:
            gain = 0
        if gain <= 0:
            gain, begin = 0, y + 1
        elif gain > best:
            best, first, last = gain, begin, y
    return best, first, last


def _differences(before: Row, after: Row) -> int:
    """The number of cells that differ."""
    return 0 if before == after else sum(map(ne, before, after))


def _pieces(update: LayoutUpdate | ChopsUpdate) -> Iterator[tuple[int, int, Sequence[Segment]]]:
    """The pieces of rows in an update: row, column, segments."""
    if isinstance(update, LayoutUpdate):
        for y, strips in enumerate(update.strips, update.region.y):
            x = update.region.x
            for strip in strips:
                # Faster than iterating over the strip, which matters for every painted cell.
                yield y, x, strip._segments
                x += strip.cell_length
        return
    for y, begin, stop in update.spans:
        for end, (x, chop) in zip(update.chop_ends[y], update.chops[y].items(), strict=False):
            if chop is None or x > stop or end <= begin:
                continue
            # A piece that begins before the span is written from its beginning, as in the compositor.
            piece = chop if begin <= x < stop and end <= stop else chop.crop(0, min(end, stop) - x)
            yield y, x, piece._segments


def _write_row(y: int, before: Row, after: Row, pen: Pen | None, output: list[str]) -> Pen | None:
    """Write the cells of a row that differ; returns the selected pen."""
    at = -1
    for begin, end in _parts(before, after):
        if at < 0:
            output.append(f"\x1b[{y + 1};{begin + 1}H")
        elif at != begin:
            output.append(f"\x1b[{begin - at}C")
        is_sure = True
        for x in range(begin, end):
            cell = after[x]
            if cell is None:
                continue
            text, wanted = cell
            if not text:
                continue
            if not is_sure:
                # Terminals disagree on the width of the character before.
                output.append(f"\x1b[{x + 1}G")
            if wanted is not pen and not (text == " " and pen is not None and pen.blank is wanted):
                output.append(wanted.codes_after(pen))
                pen = wanted
            output.append(text)
            is_sure = _is_plain(text)
        if not is_sure:
            output.append(f"\x1b[{end + 1}G")
        at = end
    return pen


def _parts(before: Row, after: Row) -> Iterator[tuple[int, int]]:
    """The ranges of cells to write, as start and end. Wide characters are written whole."""
    begin = end = -1
    for x in [x for x, differs in enumerate(map(ne, before, after)) if differs]:
        if after[x] is None:
            continue
        # Include the first half of a wide character that ends here, before or after.
        start = x
        while start > 0 and (_goes_on(after[start]) or _goes_on(before[start])):
            start -= 1
        stop = x + 1
        while stop < len(after) and (_goes_on(after[stop]) or _goes_on(before[stop])):
            stop += 1
        if begin < 0:
            begin, end = start, stop
        elif start - end <= _GAP:
            end = max(end, stop)
        else:
            yield begin, end
            begin, end = start, stop
    if begin >= 0:
        yield begin, end


def _goes_on(cell: Cell | None) -> bool:
    return cell is not None and not cell[0]
