"""ASCII output: the app's borders, bars and symbols, each replaced by one ASCII character of the same width.

Letters of other scripts, which only the user's own text has, are left to the terminal.
"""

from __future__ import annotations

import unicodedata
from functools import cache

#: Symbols that the app writes, each with the character below it.
SIGNS = dict(
    zip(
        "…–—−·•×°±≈≠≤≥∞✓✔✗✂●○◌◍■□‖◆◇▼▽▲▸▶▷◂‹◦▪⟨⟩›◀▾▴→←↑↓⏎↵⇥“”‘’\u00a0\u202f",
        "~----*x'~~!<>*++x%*ooo#o\"ogvv^>>><<o*<>><v^><^v$$>\"\"''  ",
        strict=True,
    )
)
_SHADES = {"░": ".", "▒": ":", "▓": "%"}
#: Blocks that fill no more than a thin edge of their cell.
_EDGES = {"▏": "|", "▎": "|", "▕": "|", "▁": "_", "▔": "-", "▂": "_"}


@cache
def ascii_table() -> dict[int, str]:
    """The table for :meth:`str.translate`: symbols, box drawing (U+2500), blocks (U+2580) and braille (U+2800)."""
    table = {ord(sign): replacement for sign, replacement in SIGNS.items()}
    table |= {code: _box(chr(code)) for code in range(0x2500, 0x2580)}
    table |= dict.fromkeys(range(9600, 9632), "#")
    table |= {ord(block): replacement for block, replacement in (_SHADES | _EDGES).items()}
    table |= dict.fromkeys(range(10241, 10496), ":")
    table[0x2800] = " "
    return table


def _box(character: str) -> str:
    name = unicodedata.name(character)
    sides = {side for side in ("HORIZONTAL", "VERTICAL", "LEFT", "RIGHT", "UP", "DOWN") if side in name.split()}
    if not sides & {"VERTICAL", "UP", "DOWN"}:
        return "-"
    return "+" if sides & {"HORIZONTAL", "LEFT", "RIGHT"} else "|"
