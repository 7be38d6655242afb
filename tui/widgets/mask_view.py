"""One row as its tokens: what is learned lit and underlined, the rest dim, special tokens reversed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from core.text import sanitize
from tui.widgets.strips import fit

#: Tokens of one row that are shown; more than anyone reads, and still quick to wrap.
SHOWN_TOKENS = 10_000
#: Characters of one token that are shown.
_TOKEN_CHARACTERS = 200
_LEGEND = (("learned", "learned"), ("ignored", "ignored"), ("special", "ignored-special"))
_BREAK_LEGEND = "⏎ line break"
_PROMPT_LEGEND = ("generation prompt", "prompt")
_SHORT_PROMPT_LEGEND = ("prompt", "prompt")
#: Cells that the legend takes with all of the first.
_LEGEND_WIDTH = sum(len(word) + 2 for word, _ in (*_LEGEND, _PROMPT_LEGEND))


@dataclass(frozen=True)
class TokenCell:
    """One token; the text may be anything, it is sanitized before it is drawn."""

    text: str
    learned: bool
    special: bool = False
    prompt: bool = False
    """Whether it is of the generation prompt, where that is told apart."""

    @property
    def style(self) -> str:
        """The name of its style."""
        kind = "learned" if self.learned else "prompt" if self.prompt else "ignored"
        return kind + ("-special" if self.special else "")


@dataclass(frozen=True)
class TokenPart:
    """Tokens that the model sees at once; a row has several where its template shows later turns differently."""

    cells: Sequence[TokenCell]
    cut: int | None = None
    """Where the greatest length ends it."""
    cut_label: str = ""
    """What happens there, in words."""


@dataclass(frozen=True)
class _Piece:
    text: str
    style: str


class MaskView(ScrollView, can_focus=True, inherit_bindings=False):
    """Tokens wrapped by cell width; keys are bound by the pane it is in."""

    DEFAULT_CSS = """
    MaskView {
        height: 1fr;
        background: transparent;
        scrollbar-size-vertical: 1;
        overflow-x: hidden;
        & > .mask-view--learned { color: $supervised; text-style: bold underline; }
        & > .mask-view--learned-special { color: $supervised; text-style: bold underline reverse; }
        & > .mask-view--ignored { color: $muted; }
        & > .mask-view--ignored-special { color: $muted; text-style: reverse; }
        & > .mask-view--prompt { color: $primary; text-style: bold; }
        & > .mask-view--prompt-special { color: $primary; text-style: bold reverse; }
        & > .mask-view--cut { color: $near; text-style: bold; }
        & > .mask-view--note { color: $muted; }
        & > .mask-view--problem { color: $limit; }
    }
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "mask-view--learned",
        "mask-view--learned-special",
        "mask-view--ignored",
        "mask-view--ignored-special",
        "mask-view--prompt",
        "mask-view--prompt-special",
        "mask-view--cut",
        "mask-view--note",
        "mask-view--problem",
    }

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.parts: tuple[TokenPart, ...] = ()
        """What is shown."""
        self.message = ""
        """What is said instead, where there are no tokens."""
        self._is_problem = False
        self._has_prompt = False
        self._lines: list[list[_Piece]] = []
        self._wrapped_for = 0

    def show(self, parts: Sequence[TokenPart]) -> None:
        """Show tokens from their beginning."""
        self.parts, self.message = tuple(parts), ""
        self._has_prompt = any(cell.prompt for part in self.parts for cell in part.cells)
        self._renew()

    def say(self, message: str, *, problem: bool = False) -> None:
        """Show a sentence instead of tokens."""
        self.parts, self.message, self._is_problem = (), sanitize(message), problem
        self._renew()

    def on_resize(self) -> None:
        """Wrap for the new width."""
        self._wrap()

    def move(self, rows: int) -> None:
        """Scroll by so many lines."""
        self.scroll_to(y=self.scroll_y + rows, animate=False, immediate=True)

    def move_page(self, direction: int) -> None:
        """Scroll by a screenful."""
        self.move(direction * max(1, self.size.height - 2))

    def _renew(self) -> None:
        self._wrapped_for = 0
        self._wrap()
        self.scroll_to(y=0, animate=False, immediate=True)
        self.refresh()

    def _wrap(self) -> None:
        width = self.scrollable_content_region.width
        if width == self._wrapped_for or width < 1:
            return
        self._wrapped_for = width
        if self.message:
            mark = "✗ " if self._is_problem else ""
            style = "problem" if self._is_problem else "note"
            self._lines = list(wrap_pieces([_Piece(mark + self.message, style)], width, words=True))
        else:
            self._lines = [line for number, part in enumerate(self.parts) for line in self._part(number, part, width)]
        self.virtual_size = Size(width, len(self._lines) + 1)

    def _part(self, number: int, part: TokenPart, width: int) -> Iterator[list[_Piece]]:
        if number:
            label = f" as the model sees it at its turn, part {number + 1} of {len(self.parts)} "
            yield [_Piece(_rule(label, width), "note")]
        cut = len(part.cells) if part.cut is None else min(part.cut, len(part.cells))
        yield from wrap_pieces(_pieces(part.cells[: min(cut, SHOWN_TOKENS)]), width)
        if part.cut is not None and cut <= SHOWN_TOKENS:
            yield [_Piece(_rule(f" ✂ {part.cut_label} ", width), "cut")]
            yield from wrap_pieces(_pieces(part.cells[cut:SHOWN_TOKENS]), width)
        if len(part.cells) > SHOWN_TOKENS:
            rest = f"{len(part.cells) - SHOWN_TOKENS:,}".replace(",", " ")
            yield [_Piece(_rule(f" … {rest} more tokens ", width), "note")]

    def _style(self, name: str) -> Style:
        return self.rich_style + self.get_component_rich_style(f"mask-view--{name}", partial=True)

    def render_line(self, y: int) -> Strip:
        """The legend, which stays, or one wrapped line of tokens."""
        width = self.scrollable_content_region.width
        if width < 1:
            return Strip.blank(0)
        base = self.rich_style
        if y == 0:
            segments = []
            prompt = _PROMPT_LEGEND if width >= _LEGEND_WIDTH else _SHORT_PROMPT_LEGEND
            for word, style in (*_LEGEND, *([prompt] if self._has_prompt else [])) if self.parts else ():
                segments += [Segment(word, self._style(style)), Segment("  ", base)]
            if self.parts and sum(segment.cell_length for segment in segments) + cell_len(_BREAK_LEGEND) <= width:
                segments.append(Segment(_BREAK_LEGEND, self._style("note")))
            return Strip(segments).crop(0, width).adjust_cell_length(width, base)
        index = round(self.scroll_y) + y - 1
        if index >= len(self._lines):
            return Strip.blank(width, base)
        pieces = [Segment(piece.text, self._style(piece.style)) for piece in self._lines[index]]
        return Strip(pieces).adjust_cell_length(width, base)


def _rule(label: str, width: int) -> str:
    return fit(f"──{label}" + "─" * max(0, width - cell_len(label) - 2), width)


def _pieces(cells: Sequence[TokenCell]) -> Iterator[_Piece]:
    for cell in cells:
        text = cell.text
        if len(text) > _TOKEN_CHARACTERS:
            text = text[:_TOKEN_CHARACTERS] + "…"
        yield _Piece(sanitize(text).replace("\t", "→"), cell.style)


def wrap_pieces(
    pieces: Iterator[_Piece] | Sequence[_Piece], width: int, *, words: bool = False
) -> Iterator[list[_Piece]]:
    """Lines of pieces; a line break is shown as ``⏎`` and ends its line. Blank where there is nothing to show.

    Args:
        pieces: What to wrap; a token that does not fit goes to the next line, one longer than a line is divided.
        width: Cells of a line.
        words: Divide at spaces, for sentences.
    """
    line: list[_Piece] = []
    used = 0
    if words:
        pieces = [_Piece(word, piece.style) for piece in pieces for word in _words(piece.text)]
    for piece in pieces:
        text = piece.text if words else piece.text.replace("\n", "⏎\n")
        for number, stretch in enumerate(text.split("\n")):
            if number:
                yield line
                line, used = [], 0
            size = cell_len(stretch)
            if used and used + size > width:
                yield line
                line, used = [], 0
            while size > width:
                head = _head(stretch, width)
                yield [_Piece(head, piece.style)]
                stretch = stretch[len(head) :]
                size = cell_len(stretch)
            if stretch:
                _append(line, _Piece(stretch, piece.style))
                used += size
    if line:
        yield line


def _append(line: list[_Piece], piece: _Piece) -> None:
    """Add a piece, to the last one where they look alike: less goes over the wire."""
    if line and line[-1].style == piece.style and not piece.style.endswith("-special"):
        line[-1] = _Piece(line[-1].text + piece.text, piece.style)
    else:
        line.append(piece)


def _words(text: str) -> Iterator[str]:
    for line in text.splitlines(keepends=True):
        words = line.split(" ")
        yield from (f"{word} " for word in words[:-1])
        yield words[-1]


def _head(text: str, width: int) -> str:
    """As much of a text as fits, at least one character."""
    used = 0
    for place, character in enumerate(text):
        used += cell_len(character)
        if used > width and place:
            return text[:place]
    return text
