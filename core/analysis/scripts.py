"""Script detection: a rough guess at the main writing system of a text, from its first letters."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter

#: Letters inspected.
SAMPLE = 400

# First code point of each range, and the script of its letters; roughly Unicode's blocks.
_STRETCHES: tuple[tuple[int, str], ...] = (
    (0x0000, "Latin"),
    (0x0370, "Greek"),
    (0x0400, "Cyrillic"),
    (0x0530, "Armenian"),
    (0x0590, "Hebrew"),
    (0x0600, "Arabic"),
    (0x0700, "other"),
    (0x0750, "Arabic"),
    (0x0780, "other"),
    (0x0900, "Devanagari"),
    (0x0980, "Bengali"),
    (0x0A00, "other"),
    (0x0B80, "Tamil"),
    (0x0C00, "Telugu"),
    (0x0C80, "other"),
    (0x0E00, "Thai"),
    (0x0E80, "other"),
    (0x10A0, "Georgian"),
    (0x1100, "Hangul"),
    (0x1200, "other"),
    (0x1E00, "Latin"),
    (0x1F00, "Greek"),
    (0x2000, "other"),
    (0x2C60, "Latin"),
    (0x2C80, "other"),
    (0x2E80, "Han"),
    (0x3040, "Japanese"),
    (0x3100, "other"),
    (0x3130, "Hangul"),
    (0x3190, "other"),
    (0x3400, "Han"),
    (0xA000, "other"),
    (0xA640, "Cyrillic"),
    (0xA6A0, "other"),
    (0xAC00, "Hangul"),
    (0xD7B0, "other"),
    (0xF900, "Han"),
    (0xFB00, "other"),
    (0xFB50, "Arabic"),
    (0xFE00, "other"),
    (0xFE70, "Arabic"),
    (0xFF00, "other"),
    (0x20000, "Han"),
    (0x32000, "other"),
)
_STARTS = [start for start, _ in _STRETCHES]
_ASCII_NO_LETTERS = bytes(code for code in range(128) if not chr(code).isalpha())
_BEYOND_ASCII = re.compile("[^\x00-\x7f]+")


def main_script(text: str) -> str:
    """Script of most of the first letters; ``none`` for a text without letters."""
    if text.isascii():
        head = text[:SAMPLE]
        return "Latin" if head.upper() != head.lower() or text.upper() != text.lower() else "none"
    counts: dict[str, int] = {}
    head = text[: 4 * SAMPLE]
    # ASCII letters, the most common, are counted as bytes, which is faster.
    if latin := len(head.encode("ascii", "ignore").translate(None, _ASCII_NO_LETTERS)):
        counts["Latin"] = latin
    for character, count in Counter("".join(_BEYOND_ASCII.findall(head))).items():
        if character.isalpha():
            script = _STRETCHES[bisect_right(_STARTS, ord(character)) - 1][1]
            counts[script] = counts.get(script, 0) + count
    # Japanese mixes kana with Han characters.
    if counts.get("Japanese", 0) * 8 > counts.get("Han", 0):
        counts["Japanese"] = counts.get("Japanese", 0) + counts.pop("Han", 0)
    return max(counts, key=lambda script: counts[script]) if counts else "none"
