"""Markdown by its places: heading, prose, table cell, code span, code block, shell word, each made by a function.

Names and notes of a run may be anybody's. A text gets into a page only through the function of its place, which leaves
it no way out of there: no heading, block, link or command of its own. The dialect is GitHub's (GFM 0.29, which hubs
render as well).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import NewType

from core.text import one_line

#: Text that is Markdown already, and not foreign text.
Markdown = NewType("Markdown", str)

#: Characters of foreign text that would begin something within a line: code, emphasis, a link, HTML, an address.
_WITHIN = re.compile(r"[\\`*~\[\]]|(?<![^\W_])_|_(?![^\W_])|<(?=[A-Za-z/!?])|&(?=#?\w+;)|:(?=//)|(?<!\S)#|#(?=#*$)")
#: The same at the beginning of a line: a quotation, a list, a rule.
_AT_BEGINNING = re.compile(r"^(?:>|[-+=](?=[\s=-]|$)|(?P<number>\d{1,9})(?P<mark>[.)])(?=\s|$))")
#: What a code span cannot hold in a table without being changed.
_BEYOND_CODE = re.compile(r"[`|\\]")
_SIGN = re.compile(r"[!-/:-@\[-`{-~]")


def prose(text: str, limit: int = 600) -> Markdown:
    """Foreign text as a line of prose: a paragraph, a heading, or a cell.

    Args:
        text: Any text.
        limit: Most characters kept.
    """
    line = _WITHIN.sub(r"\\\g<0>", one_line(text, limit).strip())
    return Markdown(_AT_BEGINNING.sub(lambda found: f"{found['number'] or ''}\\{found['mark'] or found[0]}", line))


def code(text: str, limit: int = 200) -> Markdown:
    """Foreign text as a code span, in prose or in a cell.

    Args:
        text: Any text.
        limit: Most characters kept.
    """
    line = one_line(text, limit).strip()
    if line and not _BEYOND_CODE.search(line):
        return Markdown(f"`{line}`")
    return Markdown(f"<code>{_SIGN.sub(lambda sign: f'&#{ord(sign[0])};', line)}</code>")


def filled(template: str, **parts: Markdown) -> Markdown:
    """A sentence of the program's own, with parts at the names in braces."""
    return Markdown(template.format(**parts))


def heading(level: int, text: Markdown) -> Markdown:
    """A heading."""
    return Markdown(f"{'#' * level} {text}")


def table(head: Sequence[Markdown], rows: Sequence[Sequence[Markdown]]) -> Markdown:
    """A table."""
    rule = [Markdown("---") for _ in head]
    lines = [" | ".join(cell.replace("|", r"\|") for cell in row) for row in (head, rule, *rows)]
    return Markdown("\n".join(f"| {line} |" for line in lines))


def block(language: str, *lines: str) -> Markdown:
    """A code block.

    Args:
        language: Of the code.
        lines: The program's own; foreign text in them is made by :func:`shell_word`, or is a string in JSON.

    Raises:
        ValueError: If a line could end the block.
    """
    if any(re.search(r"[\r\n]|^\s*```", line) for line in lines):
        raise ValueError("a line of a code block ends it")
    return Markdown("\n".join([f"```{language}", *lines, "```"]))


def shell_word(text: str) -> str:
    """Foreign text as one word of a command line that is there to be copied."""
    return shlex.quote(one_line(text, 200))


def page(parts: Sequence[Markdown]) -> str:
    """A page of parts, those that are empty left out."""
    return "\n\n".join(part for part in parts if part) + "\n"
