"""Encodings of text files that are not UTF-8: found by the letters that a text is made of, where these leave no doubt.

The decision is made once for a file, from pieces of all of it, and never by row.
"""

from __future__ import annotations

import codecs
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import tomli

#: Number and size of the pieces inspected; a file of up to their product is inspected whole.
_PIECES, _PIECE = 64, 32 << 10
#: Fewest characters beyond ASCII that prove an encoding, and the greatest share of undecodable ones among them.
_FEWEST, _DAMAGED = 8, 0.01
#: Bytes that are no part of a longer character in any of the encodings, UTF-8 included.
_ENDS = re.compile(rb"[\x00-\x2f]+")
_READ = 1 << 20

#: Stands for bytes that the encoding does not have: half of a UTF-16 pair, which is not valid UTF-8, so its row fails.
UNDECODABLE = "\udcff"
codecs.register_error("undecodable", lambda error: (UNDECODABLE, getattr(error, "end", 0)))


def find_encoding(descriptor: int, size: int) -> str:
    """Python's name of a text file's encoding; empty for UTF-8, and for a file of which that is not certain.

    Args:
        descriptor: File descriptor, open for reading.
        size: Size of the file in bytes.

    Raises:
        OSError: If it cannot be read.
    """
    begin = os.pread(descriptor, 3, 0)
    if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if begin == codecs.BOM_UTF8:
        return ""
    text = b"\n".join(piece for piece in _pieces(descriptor, size) if not piece.isascii())
    if _is_utf8(text):
        return ""
    words = [word for word in _ENDS.split(text) if not word.isascii()]
    if sum(map(_is_utf8, words)) * 2 >= len(words):
        return ""  # damaged here and there
    tables = _tables()
    found = [name for name, about in tables["common"].items() if _fits(text, name, about, tables["neutral"])]
    return found[0] if len(found) == 1 else ""


def encoding_name(encoding: str) -> str:
    """Usual name of an encoding."""
    return str(_tables()["common"].get(encoding, {}).get("name", encoding.upper()))


def recoded(file: BinaryIO, encoding: str) -> Iterator[bytes]:
    """Text of a file as UTF-8, in pieces, with :data:`UNDECODABLE` for bytes that the encoding does not have."""
    decoder = codecs.getincrementaldecoder(encoding)("undecodable")
    while data := file.read(_READ):
        yield decoder.decode(data).encode("utf-8", "surrogatepass")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")


def _pieces(descriptor: int, size: int) -> Iterator[bytes]:
    """Pieces of a file, spread evenly over it and cut where no character is in two."""
    for start in range(0, size, max(-(-size // _PIECES), _PIECE)):
        piece = os.pread(descriptor, _PIECE, start)
        begin = len(_ENDS.split(piece, 1)[0]) if start else 0
        behind = len(_ENDS.split(piece[::-1], 1)[0]) if start + len(piece) < size else 0
        yield piece[begin : len(piece) - behind]


def _tables() -> dict[str, Any]:
    return tomli.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def _is_utf8(piece: bytes) -> bool:
    try:
        piece.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _fits(text: bytes, encoding: str, about: dict[str, Any], neutral: str) -> bool:
    """True if a text that is read in an encoding is made of the letters that are common in it."""
    counts = Counter(text.decode(encoding, "replace"))
    foreign = {letter: count for letter, count in counts.items() if not letter.isascii()}
    total = sum(foreign.values())
    if total < _FEWEST or foreign.get("\ufffd", 0) > _DAMAGED * total:
        return False
    letters = {letter: count for letter, count in foreign.items() if letter not in neutral}
    least = max(about["least"] * sum(letters.values()), about["fewest"])
    return any(sum(letters.get(letter, 0) for letter in common) >= least for common in about["letters"])
