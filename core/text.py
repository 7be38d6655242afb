"""Sanitizing of text from outside (dataset cells, model output, logs, file names) for a terminal."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Collection
from typing import Any

#: The replacement of a control character.
REPLACEMENT = "\ufffd"

_TABLE: dict[int, str | None] = {
    code: REPLACEMENT for code in [*range(0x20), 0x7F, *range(0x80, 0xA0)] if code not in (0x09, 0x0A)
}
# Bidirectional controls reorder the text after them on screen; they are removed rather than shown.
_TABLE.update(dict.fromkeys([0x200E, 0x200F, 0x061C, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]))
# Line and paragraph separators move the cursor in some terminals.
_TABLE.update({0x2028: "\n", 0x2029: "\n"})
# Lone surrogates cannot be encoded to the terminal at all.
_TABLE.update(dict.fromkeys(range(0xD800, 0xE000), REPLACEMENT))


def sanitize(text: str) -> str:
    """Replace every character that a terminal could act on; keep tabs and newlines.

    C0 controls, DEL and C1 become U+FFFD, bidirectional controls disappear, CR LF and lone CR become LF.
    Works character by character, so a stream may be cut anywhere and sanitized in pieces, except that a CR LF pair cut
    in the middle yields two newlines.

    Args:
        text: Any text.

    Returns:
        Text without characters that a terminal interprets, except tab and newline.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.translate(_TABLE)


def is_unicode(text: str) -> bool:
    """True if a text can be written as UTF-8; names and arguments from other encodings cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def json_line(value: Any) -> str:
    """JSON on one line, not escaped unless it has a lone surrogate, which no UTF-8 file can hold."""
    text = json.dumps(value, ensure_ascii=False)
    return text if is_unicode(text) else json.dumps(value)


def beginning_at_end(text: str, words: Collection[str]) -> int:
    """Length of the longest end of a text that is the beginning of a word; 0 if there is none. A stream holds it back
    until the next characters decide."""
    longest = max(map(len, words), default=0)
    lengths = range(min(longest - 1, len(text)), 0, -1)
    return next((length for length in lengths if any(word.startswith(text[-length:]) for word in words)), 0)


def one_line(text: str, limit: int = 2000) -> str:
    """Sanitize and put on one line for a table cell or a log line: newlines become ``⏎``, tabs a space.

    Args:
        text: Any text.
        limit: The most characters kept; a cut is marked with ``…``.
    """
    cut = text[: limit + 1]
    safe = sanitize(cut).replace("\n", "⏎").replace("\t", " ")
    return safe if len(cut) <= limit else safe[: limit - 1] + "…"


def last_line(text: str, limit: int = 300) -> str:
    """The last line of a program's output that is not blank, as by :func:`one_line`, without a period at its end.

    Args:
        text: The output; may be empty.
        limit: The most characters kept.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return one_line(lines[-1], limit).rstrip(".") if lines else ""


#: The placeholder for a character without a glyph of its own, or whose width differs between terminals.
PLACEHOLDER = "◌"

# Marks drawn over one character; more of them only make terminals run out of room for the cell.
_MOST_MARKS = 4
_REGIONAL = range(0x1F1E6, 0x1F200)
_SKIN_TONES = range(0x1F3FB, 0x1F400)
# Joiners, zero-width spaces and other format characters, variation selectors, tags: most terminals draw nothing for
# them, and some draw the text around them in fewer or more cells.
_SILENT = frozenset(
    [
        *(0x034F, 0xFEFF),
        *range(0x180B, 0x1810),
        *range(0x200B, 0x2010),
        *range(0x2060, 0x2070),
        *range(0xFE00, 0xFE10),
        *range(0xFFF9, 0xFFFC),
        *range(0xE0000, 0xE1000),
    ]
)

# Narrow by the standard and drawn wide by some terminals: emoji that take a skin tone, numbers on black squares.
_DISPUTED = frozenset(
    [0x261D, 0x26F9, 0x270C, 0x270D, 0x1F3CB, 0x1F3CC, 0x1F574, 0x1F575, 0x1F590, *range(0x3248, 0x3250), 0x1171E]
)


def steady(text: str, *, whole: bool = False) -> str:
    """Text that has the same width in every terminal, so that whatever follows it stays in its place.

    Terminals disagree on the width of several combined characters: a family of emoji is two cells wide in some and six
    in others. So they are shown apart: a flag as its two letters, a family as its members, a heart without the selector
    for color. Characters without a width that all agree on (vowel signs of Indic scripts, characters unknown to
    Python's version of Unicode) are shown as ``◌``.

    The width of the result is the sum of the widths of its characters.

    Args:
        text: Sanitized text.
        whole: Keep vowel signs, for text that is read rather than skimmed; only emoji are taken apart.
    """
    if text.isascii():
        return text
    found: list[str] = []
    marks = 0
    for character in text:
        code = ord(character)
        if code < 0x300:
            # The soft hyphen is drawn by some terminals only.
            found.append("-" if code == 0xAD else character)
            marks = 0
            continue
        if code in _SILENT:
            continue
        kind = unicodedata.category(character)
        if code in _DISPUTED:
            character = PLACEHOLDER
        elif code in _REGIONAL:
            character = chr(code - _REGIONAL.start + ord("A"))
        elif code in _SKIN_TONES or kind in ("Mn", "Me"):
            marks += 1
            if not found or found[-1].isspace():
                character = PLACEHOLDER if code in _SKIN_TONES else PLACEHOLDER + character
            elif code in _SKIN_TONES or marks > _MOST_MARKS:
                continue
            found.append(character)
            continue
        elif (kind == "Mc" and not whole) or kind == "Cf":
            character = PLACEHOLDER
        elif kind == "Cn":
            character = REPLACEMENT
        found.append(character)
        marks = 0
    return "".join(found) or (PLACEHOLDER if text else "")
