"""Sweep: one configuration with several values for some options; each combination is a run."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config.document import ConfigDocument, dump_config
from core.config.schema import Config
from core.errors import UserError
from core.queue.entry import word
from core.text import one_line

#: Most runs of one sweep.
MOST_VARIANTS = 500
_OPENING, _CLOSING = "[{(", "]})"


@dataclass(frozen=True)
class Axis:
    """An option and its values, as typed."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """A combination of a sweep's values.

    Args:
        assignments: ``section.key=value`` on top of the configuration.
        values: The same as values.
        config: The configuration with them.
    """

    assignments: tuple[str, ...]
    values: Mapping[str, Any]
    config: Config


def parse_axis(text: str) -> Axis:
    """Parse ``train.learning_rate=1e-4,2e-4``; commas within brackets and quotes do not separate.

    Raises:
        UserError: If it is not of this form, or a value is repeated.
    """
    name, found, listed = text.partition("=")
    name = name.strip()
    values = tuple(split_values(listed))
    if not found or not name or not values or not all(values):
        raise UserError(
            f"--over {one_line(text, 80)} names no option with values.", "Write --over train.learning_rate=1e-4,2e-4."
        )
    if len(set(values)) < len(values):
        raise UserError(f"--over {one_line(text, 80)} has a value twice.", "Name each value once.")
    return Axis(name, values)


def split_values(text: str) -> list[str]:
    """The values in a text, separated by commas outside of brackets and quotes."""
    found, piece, depth, quote = [], "", 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
        elif character == "," and depth <= 0:
            found.append(piece.strip())
            piece = ""
            continue
        piece += character
    return [*found, piece.strip()]


def combinations(axes: Sequence[Axis], count: int | None = None, seed: int = 0) -> list[tuple[str, ...]]:
    """The assignments of all combinations, the last option varying fastest, or of a random choice of them.

    Args:
        axes: The options that vary.
        count: Number of combinations to choose; None for all.
        seed: Seed of the choice.

    Raises:
        UserError: If an option is repeated, or there are more than :data:`MOST_VARIANTS`.
    """
    names = [axis.name for axis in axes]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--over names {one_line(doubled, 60)} twice.", "Give all its values at once.")
    total = math.prod(len(axis.values) for axis in axes)
    wanted = total if count is None else min(count, total)
    if wanted > MOST_VARIANTS:
        raise UserError(
            f"These are {wanted:,} runs, and a sweep has {MOST_VARIANTS} at most.",
            "Take fewer values, or choose some of the combinations with --random N.",
        )
    if count is None or count >= total:
        chosen: Sequence[int] = range(total)
    else:
        chosen = sorted(random.Random(seed).sample(range(total), wanted))  # noqa: S311 - a choice, no secret
    return [_combination(axes, number) for number in chosen]


def _combination(axes: Sequence[Axis], number: int) -> tuple[str, ...]:
    """The combination with a number, computed directly."""
    found = []
    for axis in reversed(axes):
        number, index = divmod(number, len(axis.values))
        found.append(f"{axis.name}={axis.values[index]}")
    return tuple(reversed(found))


def make_variants(path: Path, overrides: Sequence[str], choices: Sequence[tuple[str, ...]]) -> list[Variant]:
    """The checked configurations of combinations.

    Args:
        path: The configuration file.
        overrides: ``section.key=value`` for all of them.
        choices: Result of :func:`combinations`.

    Raises:
        UserError: For the first invalid combination; the hint names it.
    """
    variants = []
    for assignments in choices:
        document = ConfigDocument.load(path)
        document.apply(overrides)
        try:
            document.apply(assignments)
            config = document.validate()
        except UserError as error:
            raise UserError(
                error.message, f"It is the variant {' '.join(assignments)}. {error.hint or ''}".strip()
            ) from error
        names = [assignment.partition("=")[0] for assignment in assignments]
        variants.append(Variant(assignments, {name: _plain(document.get(name)) for name in names}, config))
    texts = [dump_config(variant.config) for variant in variants]
    for number, text in enumerate(texts):
        if text in texts[:number]:
            raise UserError(
                f"{' '.join(choices[number])} is the same run as another variant.", "Name each value in one way only."
            )
    return variants


def _plain(value: Any) -> Any:
    """A value without the wrappers of the TOML library, for JSON."""
    return value.unwrap() if hasattr(value, "unwrap") else value


def name_of(base: str, values: Mapping[str, Any]) -> str:
    """The name of a variant's run, ``faq 0.0001 8``; values without option names, as the slug in the id is short."""
    return f"{base[:16]} {' '.join(word(value) for value in values.values())}"
