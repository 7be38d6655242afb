"""Splits of a dataset and slices of them, in the syntax of ``datasets``: ``train``, ``train[:10%]``, ``train+test``."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PART = re.compile(r"([^\[\]+]*)(?:\[\s*(-?\d+)?\s*(%)?\s*:\s*(-?\d+)?\s*(%)?\s*\])?")


@dataclass(frozen=True)
class Part:
    """A slice of a split.

    Args:
        split: Its name.
        begin: The first row, or percent of the rows.
        end: The end, exclusive; None for the end of the split.
        is_percent: Whether the two are percents.
    """

    split: str
    begin: int = 0
    end: int | None = None
    is_percent: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole split."""
        return self.begin == 0 and (self.end is None or (self.is_percent and self.end == 100))

    def share(self, rows: int | None) -> float | None:
        """The share of the split; None where it depends on the unknown number of its rows."""
        if self.is_percent:
            rows = 100
        if rows is None or rows < 1:
            return None
        begin, end, _ = slice(self.begin, self.end).indices(rows)
        return max(end - begin, 0) / rows


def read_splits(text: str) -> list[Part]:
    """The slices that a ``split`` names.

    Raises:
        ValueError: If the text is not valid.
    """
    parts = []
    for piece in text.split("+"):
        found = _PART.fullmatch(piece.strip())
        if found is None or (found[3] and found[5] is None and found[4]) or (found[5] and found[2] and not found[3]):
            raise ValueError(text)
        end = int(found[4]) if found[4] is not None else None
        parts.append(Part(found[1].strip(), int(found[2] or 0), end, bool(found[3] or found[5])))
    return parts
