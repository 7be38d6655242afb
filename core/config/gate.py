"""The bars of ``eval.gate`` that a result must reach: ``loss <= 0.9*before``, ``exact_match >= 0.8``.

A bar is a figure, a comparison and a sum. The sum has numbers and ``before`` in it, each with a factor if need be:
``probe_loss <= before + 0.1``, ``loss < 0.5*before - 0.01``. ``before`` is the same figure of the untouched model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from core.config.explain import nearest
from core.errors import UserError
from core.text import one_line

Figure = Literal["loss", "perplexity", "exact_match", "valid_json", "reward_accuracy", "reward_margin", "probe_loss"]
#: The figures that a bar may be about, as an ``eval`` event names them.
FIGURES: tuple[Figure, ...] = get_args(Figure)

Comparison = Literal["<=", ">=", "<", ">"]
BEFORE = "before"

#: Most characters of a bar.
LENGTH_LIMIT = 200
_HINT = "Write a figure, one of <= >= < >, and a number or a part of before: 'loss <= 0.9*before'."
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)|(?P<word>[A-Za-z_][A-Za-z_0-9]*)|(?P<sign><=|>=|==|<|>|[-+*]))"
)


@dataclass(frozen=True)
class Bar:
    """A bar: ``figure comparison share * before + offset``."""

    text: str
    """As the user wrote it."""
    figure: Figure
    comparison: Comparison
    share: float
    """The factor of the figure before training; 0 where the bar does not look at it."""
    offset: float
    needs_before: bool
    """True if the bar refers to ``before``."""

    def limit(self, before: float | None) -> float:
        """The number that the figure is held against.

        Args:
            before: The figure of the untouched model; may be None where the bar does not look at it.
        """
        if not self.needs_before:
            return self.offset
        return self.share * (math.nan if before is None else before) + self.offset

    def is_met(self, after: float, before: float | None) -> bool:
        """True if the figure reaches the bar; NaN reaches none."""
        limit = self.limit(before)
        return {"<=": after <= limit, ">=": after >= limit, "<": after < limit, ">": after > limit}[self.comparison]


def read_bars(gate: str | Sequence[str] | None) -> list[Bar]:
    """The bars of ``eval.gate``, in its order.

    Raises:
        UserError: For the first invalid bar.
    """
    return [parse_bar(text) for text in bar_texts(gate)]


def bar_texts(gate: str | Sequence[str] | None) -> Sequence[str]:
    """The bars of ``eval.gate`` as the user wrote them."""
    return [gate] if isinstance(gate, str) else gate or ()


def parse_bar(text: str) -> Bar:
    """Parse a bar.

    Raises:
        UserError: If the text is not a bar; the message names the wrong part.
    """
    shown = one_line(text, 80)
    if len(text) > LENGTH_LIMIT:
        raise UserError(f"'{shown}' has more than {LENGTH_LIMIT} characters.", _HINT)
    words = _words(text, shown)
    if not words or words[0] not in FIGURES:
        first = words[0] if words else ""
        guess = nearest(first, FIGURES) if first else None
        found = f"begins with '{one_line(first, 40)}', which is not a number" if first else "is empty"
        raise UserError(f"'{shown}' {found}.", f"Did you mean {guess}?" if guess else f"Figures: {', '.join(FIGURES)}.")
    figure = FIGURES[FIGURES.index(words[0])]
    comparisons: tuple[Comparison, ...] = get_args(Comparison)
    if len(words) < 2 or words[1] not in comparisons:
        raise UserError(f"'{shown}' has no <=, >=, < or > behind {figure}.", _HINT)
    comparison = comparisons[comparisons.index(words[1])]
    share, offset, needs_before = _sum(words[2:], shown)
    return Bar(text.strip(), figure, comparison, share, offset, needs_before)


def _words(text: str, shown: str) -> list[str]:
    words, place = [], 0
    end = len(text.rstrip())
    while place < end:
        found = _TOKEN.match(text, place)
        if found is None:
            rest = one_line(text[place:].strip(), 20)
            raise UserError(f"'{shown}' cannot be read from '{rest}' on.", _HINT)
        words.append(found.group().strip())
        place = found.end()
    return words


def _sum(words: list[str], shown: str) -> tuple[float, float, bool]:
    """The factor of ``before``, the number beside it, and whether ``before`` appears."""
    if not words:
        raise UserError(f"'{shown}' ends where a number should be.", _HINT)
    share, offset, needs_before = 0.0, 0.0, False
    place = 0
    while place < len(words):
        sign = 1.0
        if words[place] in "+-":
            sign = -1.0 if words[place] == "-" else 1.0
            place += 1
        elif place:
            raise UserError(f"'{shown}' has '{one_line(words[place], 20)}' where + or - should be.", _HINT)
        factors, place = _product(words, place, shown)
        number = math.prod((sign, *(factor for factor in factors if factor is not None)))
        if not math.isfinite(number):
            raise UserError(f"'{shown}' has a number that is too large.", _HINT)
        if None in factors:
            share, needs_before = share + number, True
        else:
            offset += number
    return share, offset, needs_before


def _product(words: list[str], place: int, shown: str) -> tuple[list[float | None], int]:
    """The factors from a place on, None for ``before``, and the place behind them."""
    factors: list[float | None] = []
    while True:
        word = words[place] if place < len(words) else ""
        if word == BEFORE:
            factors.append(None)
        elif word[:1].isdigit() or word[:1] == ".":
            factors.append(float(word))
        elif word:
            raise UserError(f"'{shown}' has '{one_line(word, 20)}' where a number or before should be.", _HINT)
        else:
            raise UserError(f"'{shown}' ends where a number should be.", _HINT)
        place += 1
        if factors.count(None) > 1:
            raise UserError(f"'{shown}' multiplies before by itself.", _HINT)
        if place == len(words) or words[place] != "*":
            return factors, place
        place += 1
