"""Text from outside (dataset cells, model output, logs, file names), made safe to show in a terminal."""

from __future__ import annotations

#: What a control character is shown as.
REPLACEMENT = "\ufffd"

_TABLE: dict[int, str | None] = {
    code: REPLACEMENT for code in [*range(0x20), 0x7F, *range(0x80, 0xA0)] if code not in (0x09, 0x0A)
}
# Bidirectional controls reorder what follows them on screen; they are removed rather than shown.
_TABLE.update(dict.fromkeys([0x200E, 0x200F, 0x061C, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]))
# Line and paragraph separators move the cursor in some terminals.
_TABLE.update({0x2028: "\n", 0x2029: "\n"})
# Lone surrogates cannot be encoded to the terminal at all.
_TABLE.update(dict.fromkeys(range(0xD800, 0xE000), REPLACEMENT))


def sanitize(text: str) -> str:
    """Replace everything that a terminal could act on; keep tabs and newlines.

    C0 controls, DEL and C1 become U+FFFD, bidirectional controls disappear, CR LF and lone CR become LF.
    Works character by character, so a stream may be cut anywhere and sanitized in pieces, except that a CR LF pair cut
    in the middle yields two newlines.

    Args:
        text: Any text.

    Returns:
        Text that holds no character a terminal interprets besides tab and newline.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.translate(_TABLE)


def one_line(text: str, limit: int = 2000) -> str:
    """Sanitize and put on one line for a table cell or a log line: newlines become ``⏎``, tabs a space.

    Args:
        text: Any text.
        limit: The most characters kept; a cut is marked with ``…``.
    """
    cut = text[: limit + 1]
    safe = sanitize(cut).replace("\n", "⏎").replace("\t", " ")
    return safe if len(cut) <= limit else safe[: limit - 1] + "…"
