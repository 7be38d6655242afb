"""Markdown as styled text, parsed block by block, so that a stream parses only its last block again.

Textual's ``Markdown`` mounts a widget for each block, with links that open; here an answer is a single text.

The text comes from a model and is untrusted. Links cannot be followed and HTML is off: an address is shown after its
text. The parser's output is sanitized again, because ``&#x202E;`` becomes a character only there. A long block is shown
as written, because some texts take the parser quadratic time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from textual.content import Content

from core.text import sanitize, steady

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

#: Maximum characters of a parsed block, and of a text with parsed blocks.
BLOCK_LIMIT, TEXT_LIMIT = 3000, 60_000
_FENCES = ("```", "~~~")
_BULLETS = ("• ", "◦ ", "▪ ")
#: Columns of a rule.
_RULE = 24
_WRAPPING = {"strong_open": "bold", "em_open": "italic", "s_open": "strike"}


class MarkdownText:
    """A growing text with a cache of its rendered blocks."""

    def __init__(self) -> None:
        self._known: dict[str, Content] = {}

    def render(self, text: str) -> Content:
        """Render a text; blocks known from the last call are not parsed again.

        Args:
            text: Any text.
        """
        text = sanitize(text)
        if len(text) > TEXT_LIMIT:
            return Content(text)
        blocks = split_blocks(text)
        self._known = {block: self._known.get(block) or _render(block) for block in blocks}
        parts: list[Content] = []
        for block in blocks:
            parts += [Content("\n\n"), self._known[block]] if parts else [self._known[block]]
        return Content("").join(parts)


def split_blocks(text: str) -> list[str]:
    """Split a text at blank lines, keeping fenced code together."""
    blocks: list[list[str]] = [[]]
    fence = ""
    for line in text.split("\n"):
        mark = line.lstrip()[:3]
        if fence:
            if mark == fence:
                fence = ""
        elif mark in _FENCES:
            fence = mark
        elif not line.strip():
            if blocks[-1]:
                blocks.append([])
            continue
        blocks[-1].append(line)
    return ["\n".join(block) for block in blocks if block]


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    # Without indented code, because a block may begin in the middle of a list.
    return MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable("code")


def _render(block: str) -> Content:
    if len(block) > BLOCK_LIMIT:
        return Content(block)
    lines = _Lines()
    try:
        for token in _parser().parse(block):
            lines.add(token)
    except (IndexError, ValueError, RecursionError):  # a parser bug only loses the formatting
        return Content(block)
    return lines.content() if lines else Content(block)


class _Lines:
    """Lines of a block, built from the parser's tokens."""

    def __init__(self) -> None:
        self._lines: list[Content] = []
        self._lists: list[int | None] = []
        """The next number of each open list; None for bullets."""
        self._marker = ""
        self._quotes = 0
        self._style = ""
        self._rows: list[list[Content]] | None = None

    def __bool__(self) -> bool:
        return bool(self._lines)

    def content(self) -> Content:
        """All lines."""
        return Content("\n").join(self._lines)

    def add(self, token: Token) -> None:
        """Add a token."""
        kind = token.type
        if kind in ("bullet_list_open", "ordered_list_open"):
            start = token.attrs.get("start", 1)
            number = int(start) if str(start).isdecimal() else 1
            self._lists.append(number if kind == "ordered_list_open" else None)
        elif kind in ("bullet_list_close", "ordered_list_close"):
            self._lists.pop()
        elif kind == "list_item_open":
            self._begin_item()
        elif kind in ("blockquote_open", "blockquote_close"):
            self._quotes += 1 if kind.endswith("open") else -1
        elif kind in ("heading_open", "heading_close"):
            self._style = "bold $primary" if kind.endswith("open") else ""
        elif kind == "hr":
            self._put(Content.styled("─" * _RULE, "$muted"))
        elif kind == "fence":
            self._put_code(token)
        elif kind.startswith(("table", "tr_", "th_", "td_", "thead", "tbody")):
            self._add_cell(kind)
        elif kind == "inline":
            found = _inline(token.children or [])
            if self._rows is not None:
                self._rows[-1][-1] = Content(" ").join(found.split("\n"))
            else:
                self._put(found.stylize(self._style) if self._style else found)

    def _begin_item(self) -> None:
        number = self._lists[-1]
        if number is None:
            self._marker = _BULLETS[(len(self._lists) - 1) % len(_BULLETS)]
        else:
            self._marker = f"{number}. "
            self._lists[-1] = number + 1

    def _put(self, text: Content) -> None:
        indent = "  " * max(len(self._lists) - 1, 0) + "│ " * self._quotes
        marker, self._marker = self._marker, ""
        rest = " " * len(marker) if marker else "  " if self._lists else ""
        for number, line in enumerate(text.split("\n")):
            before = marker if number == 0 and marker else rest
            self._lines.append(Content.assemble((indent, "$muted"), (before, "$muted"), line))

    def _put_code(self, token: Token) -> None:
        name = sanitize(token.info).strip()[:40]
        if name:
            self._put(Content.styled(name, "$muted italic"))
        for line in sanitize(token.content).rstrip("\n").split("\n"):
            self._put(Content.assemble(("▏ ", "$muted"), (line.expandtabs(4), "$accent")))

    def _add_cell(self, kind: str) -> None:
        if kind == "table_open":
            self._rows = []
        elif self._rows is None:
            return
        elif kind == "tr_open":
            self._rows.append([])
        elif kind in ("th_open", "td_open"):
            self._rows[-1].append(Content(""))
        elif kind == "table_close":
            rows, self._rows = self._rows, None
            for line in _table(rows):
                self._put(line)


def _table(rows: Sequence[Sequence[Content]]) -> list[Content]:
    columns = max((len(row) for row in rows), default=0)
    widths = [max((row[place].cell_length for row in rows if place < len(row)), default=0) for place in range(columns)]
    lines = []
    for number, row in enumerate(rows):
        cells: list[Content] = []
        for place, cell in enumerate(row):
            cell = cell.stylize("bold") if number == 0 else cell
            cells.append(Content.assemble(cell, " " * (widths[place] - cell.cell_length)))
        lines.append(Content("  ").join(cells))
        if number == 0:
            lines.append(Content.styled("  ".join("─" * width for width in widths), "$muted"))
    return lines


def _inline(tokens: Sequence[Token]) -> Content:
    parts: list[Content] = []
    open_at: list[tuple[str, int]] = []
    addresses: list[str] = []
    for token in tokens:
        kind = token.type
        if kind in ("text", "text_special"):
            parts.append(_plain(token.content))
        elif kind in ("softbreak", "hardbreak"):
            parts.append(Content("\n"))
        elif kind == "code_inline":
            parts.append(Content.styled(_plain(token.content).plain, "$accent"))
        elif kind == "image":
            parts.append(_address(str(token.attrs.get("src", "")), f"[{token.content}]"))
        elif kind == "link_open":
            addresses.append(str(token.attrs.get("href", "")))
            open_at.append(("underline", len(parts)))
        elif kind in _WRAPPING:
            open_at.append((_WRAPPING[kind], len(parts)))
        elif kind.endswith("_close") and open_at:
            style, begin = open_at.pop()
            inside = Content("").join(parts[begin:]).stylize(style)
            parts[begin:] = [inside]
            if kind == "link_close" and addresses and (address := addresses.pop()) != inside.plain:
                parts.append(_address(address))
    return Content("").join(parts)


def _address(address: str, before: str = "") -> Content:
    shown = f"{before} ⟨{address}⟩" if address else before
    return Content.styled(_plain(shown).plain, "$muted")


def _plain(text: str) -> Content:
    return Content(steady(sanitize(text), whole=True))
