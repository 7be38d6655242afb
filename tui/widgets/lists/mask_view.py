"""View of a row's tokens: supervised tokens are bold and underlined, special tokens reversed.

Nothing depends on color alone. Matches of a search are reversed, and a labeled line marks the truncation at the
maximum length.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from rich.cells import cell_len, chop_cells
from rich.segment import Segment
from rich.style import Style
from textual.content import Content
from textual.geometry import Size
from textual.strip import Strip

from core.text import sanitize, steady
from core.units import format_count
from tui.widgets.strips import SearchView, component_classes, find_matches, fit, style_of

#: Maximum number of tokens shown of a row, which is still quick to wrap.
SHOWN_TOKENS = 10_000
#: Maximum characters shown of a token.
_TOKEN_CHARACTERS = 200
_LEGEND = (("learned", "learned"), ("ignored", "ignored"), ("special", "ignored-special"))
_BREAK_LEGEND = "⏎ line break"
_PROMPT_LEGEND = ("generation prompt", "prompt")
_SHORT_PROMPT_LEGEND = ("prompt", "prompt")
#: Width of the full legend in cells.
_LEGEND_WIDTH = sum(len(word) + 2 for word, _ in (*_LEGEND, _PROMPT_LEGEND))


@dataclass(frozen=True)
class TokenCell:
    """A token; its text is sanitized before it is drawn."""

    text: str
    learned: bool
    special: bool = False
    prompt: bool = False
    """True for a token of the generation prompt, if known."""

    @property
    def style(self) -> str:
        """Name of its style."""
        kind = "learned" if self.learned else "prompt" if self.prompt else "ignored"
        return kind + ("-special" if self.special else "")


@dataclass(frozen=True)
class TokenPart:
    """Tokens of a sequence for the model.

    A row has several parts if its template renders later turns differently, or if it compares two answers.
    """

    cells: Sequence[TokenCell]
    cut: int | None = None
    """Index of the truncation at the maximum length."""
    cut_label: str = ""
    """The label of the cut."""
    label: str = ""
    """The heading; if empty, the first part has none and later parts a default."""


@dataclass(frozen=True)
class _Piece:
    text: str
    style: str
    match: int = 0
    """Number of its search match, from 1; 0 for none."""


class MaskView(SearchView, can_focus=True, inherit_bindings=False):
    """Tokens wrapped by cell width; the pane binds the keys."""

    COVERED = 1

    DEFAULT_CSS = style_of("MaskView")

    COMPONENT_CLASSES: ClassVar[set[str]] = component_classes(DEFAULT_CSS)

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.parts: tuple[TokenPart, ...] = ()
        """The parts shown."""
        self.message = ""
        """The message shown instead of tokens."""
        self._is_problem = False
        self._has_prompt = False
        self._lines: list[list[_Piece]] = []
        self._wrapped_for = 0

    def show(self, parts: Sequence[TokenPart]) -> None:
        """Show tokens from the beginning."""
        self.parts, self.message = tuple(parts), ""
        self._has_prompt = any(cell.prompt for part in self.parts for cell in part.cells)
        self._renew()

    def say(self, message: str, *, problem: bool = False) -> None:
        """Show a message instead of tokens."""
        self.parts, self.message, self._is_problem = (), sanitize(message), problem
        self._renew()

    def highlight(self, term: str) -> None:
        """Highlight all matches of a text, across tokens and ignoring case; an empty text clears them."""
        self.term = steady(term).lower()
        self._wrapped_for = 0
        self._wrap()
        self.refresh()

    def _renew(self) -> None:
        self._wrapped_for, self._match = 0, -1
        self._wrap()
        self.scroll_to(y=0, animate=False, immediate=True)
        self.refresh()

    def _wrap(self) -> None:
        width = self.scrollable_content_region.width
        if width == self._wrapped_for or width < 1:
            return
        self._wrapped_for = width
        self._match = -1
        self._match_lines = []
        if self.message:
            mark = "✗ " if self._is_problem else ""
            style = "problem" if self._is_problem else "note"
            self._lines = [[_Piece(line.plain, style)] for line in Content(mark + self.message).wrap(width)]
        else:
            self._lines = []
            matches = 0
            for number, part in enumerate(self.parts):
                tokens = [_piece(cell) for cell in part.cells[:SHOWN_TOKENS]]
                marked, matches = _mark(tokens, self.term, matches)
                self._lines += self._part(number, part, marked, width)
            self._find_lines()
        self.virtual_size = Size(width, len(self._lines) + 1)

    def _find_lines(self) -> None:
        """Find the first line of each match."""
        for number, line in enumerate(self._lines):
            for piece in line:
                if piece.match > len(self._match_lines):
                    self._match_lines.append(number)

    def _part(
        self, number: int, part: TokenPart, tokens: Sequence[Sequence[_Piece]], width: int
    ) -> Iterator[list[_Piece]]:
        label = part.label
        if number and not label:
            label = f"as the model sees it at its turn, part {number + 1} of {len(self.parts)}"
        if label:
            yield [_Piece(_rule(f" {label} ", width), "label" if part.label else "note")]
        cut = len(part.cells) if part.cut is None else min(part.cut, len(part.cells))
        yield from wrap_pieces(itertools.chain.from_iterable(tokens[:cut]), width)
        if part.cut is not None and cut <= SHOWN_TOKENS:
            yield [_Piece(_rule(f" ✂ {part.cut_label} ", width), "cut")]
            yield from wrap_pieces(itertools.chain.from_iterable(tokens[cut:]), width)
        if len(part.cells) > SHOWN_TOKENS:
            rest = format_count(len(part.cells) - SHOWN_TOKENS)
            yield [_Piece(_rule(f" … {rest} more tokens ", width), "note")]

    def _style(self, name: str) -> Style:
        return self.rich_style + self.get_component_rich_style(f"mask-view--{name}", partial=True)

    def _piece_style(self, piece: _Piece) -> Style:
        style = self._style(piece.style)
        if piece.match:
            name = "match-here" if piece.match == self._match + 1 else "match"
            # Added to its style, so that a match still shows its supervision.
            style += self.get_component_rich_style(f"mask-view--{name}", partial=True)
        return style

    def render_line(self, y: int) -> Strip:
        """The fixed legend, or a wrapped line of tokens."""
        width = self.scrollable_content_region.width
        if width < 1:
            return Strip.blank(0)
        base = self.rich_style
        if y == 0:
            segments = []
            prompt = _PROMPT_LEGEND if width >= _LEGEND_WIDTH else _SHORT_PROMPT_LEGEND
            for word, style in (*_LEGEND, *([prompt] if self._has_prompt else [])) if self.parts else ():
                segments += [Segment(word, self._style(style)), Segment("  ", base)]
            if self.parts and self.term:
                count = len(self._match_lines)
                word = f"{count} match{'' if count == 1 else 'es'}"
                segments += [Segment(word, self._style("match")), Segment("  ", base)]
            if self.parts and sum(segment.cell_length for segment in segments) + cell_len(_BREAK_LEGEND) <= width:
                segments.append(Segment(_BREAK_LEGEND, self._style("note")))
            return Strip(segments).crop(0, width).adjust_cell_length(width, base)
        index = round(self.scroll_y) + y - 1
        if index >= len(self._lines):
            return Strip.blank(width, base)
        pieces = [Segment(piece.text, self._piece_style(piece)) for piece in self._lines[index]]
        return Strip(pieces).adjust_cell_length(width, base)


def _rule(label: str, width: int) -> str:
    return fit(f"──{label}" + "─" * max(0, width - cell_len(label) - 2), width)


def _piece(cell: TokenCell) -> _Piece:
    text = cell.text
    if len(text) > _TOKEN_CHARACTERS:
        text = text[:_TOKEN_CHARACTERS] + "…"
    return _Piece(steady(sanitize(text)).replace("\t", "→"), cell.style)


def _mark(tokens: Sequence[_Piece], term: str, before: int) -> tuple[list[list[_Piece]], int]:
    """Split tokens at the ends of matches, which may be inside a token.

    Args:
        tokens: A piece for each token.
        term: The search term, in lower case.
        before: The number of earlier matches.

    Returns:
        The pieces of each token, and the number of matches so far.
    """
    matches = find_matches("".join(token.text for token in tokens), term)
    if not matches:
        return [[token] for token in tokens], before
    waiting = deque((begin, end, number) for number, (begin, end) in enumerate(matches, before + 1))
    marked: list[list[_Piece]] = []
    position = 0
    for token in tokens:
        pieces: list[_Piece] = []
        start, stop = position, position + len(token.text)
        while waiting and waiting[0][0] < stop:
            begin, end, number = waiting[0]
            if begin > start:
                pieces.append(replace(token, text=token.text[start - position : begin - position]))
                start = begin
            inside = min(end, stop)
            pieces.append(replace(token, text=token.text[start - position : inside - position], match=number))
            start = inside
            if end > stop:
                break
            waiting.popleft()
        if start < stop or not pieces:
            pieces.append(replace(token, text=token.text[start - position :]))
        marked.append(pieces)
        position = stop
    return marked, before + len(matches)


def wrap_pieces(pieces: Iterable[_Piece], width: int) -> Iterator[list[_Piece]]:
    """Wrap pieces into lines; a line break is shown as ``⏎`` and ends its line.

    Args:
        pieces: The pieces; a token that does not fit moves to the next line, and a longer token is divided.
        width: Cells of a line.
    """
    line: list[_Piece] = []
    used = 0
    for piece in pieces:
        for number, stretch in enumerate(piece.text.replace("\n", "⏎\n").split("\n")):
            if number:
                yield line
                line, used = [], 0
            size = cell_len(stretch)
            if used and used + size > width:
                yield line
                line, used = [], 0
            if size > width:
                *heads, stretch = chop_cells(stretch, width)
                yield from ([replace(piece, text=head)] for head in heads if head)
                size = cell_len(stretch)
            if stretch:
                _append(line, replace(piece, text=stretch))
                used += size
    if line:
        yield line


def _append(line: list[_Piece], piece: _Piece) -> None:
    """Append a piece, merged with the last piece if they look alike, which saves bytes on the terminal."""
    last = line[-1] if line else None
    alike = last is not None and (last.style, last.match) == (piece.style, piece.match)
    if last is not None and alike and not piece.style.endswith("-special"):
        line[-1] = replace(last, text=last.text + piece.text)
    else:
        line.append(piece)
