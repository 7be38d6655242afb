"""Sweep: one configuration with several values for some options; each combination is a run. Their results."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from core.config.document import ConfigDocument, dump_config
from core.config.explain import unknown_option
from core.config.schema import Config, find_option, full_name
from core.errors import UserError
from core.queue import store
from core.queue.entry import QueueEntry, word
from core.queue.fate import run_of
from core.runs.record.history import read_history
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
    """Parse ``train.learning_rate=1e-4,2e-4``, or without a section where the key is unique; commas within brackets and
    quotes do not separate.

    Raises:
        UserError: If it is not of this form, the option does not exist, or a value is repeated.
    """
    name, found, listed = text.partition("=")
    values = tuple(split_values(listed))
    if not found or not name.strip() or not values or not all(values):
        raise UserError(
            f"{one_line(text, 80) or 'The sweep'} names no option with values.",
            "Write an option and its values: learning_rate = 1e-4, 2e-4.",
        )
    if len(set(values)) < len(values):
        raise UserError(f"{one_line(text, 80)} has a value twice.", "Name each value once.")
    if find_option(name := full_name(name)) is None:
        raise unknown_option(name)
    return Axis(name, values)


#: Name of the axis of :func:`share_axis`.
SHARE = "share"


def axis_of(text: str, base: ConfigDocument) -> Axis:
    """Parse an axis of a configuration: ``share = 0.25, 0.5, 1`` for shares of its training rows, or an option.

    Raises:
        UserError: As :func:`parse_axis` and :func:`share_axis`.
    """
    name, _, listed = text.partition("=")
    return share_axis(split_values(listed), base) if name.strip() == SHARE else parse_axis(text)


def share_axis(shares: Sequence[str], base: ConfigDocument) -> Axis:
    """Shares of the training rows as values of ``data.weights``.

    Rows are chosen by their hash and ``train.seed``, so a smaller share is a part of a larger one, and the held-out
    rows are the same.

    Raises:
        UserError: If a share is not above 0 and at most 1, is repeated, or the configuration uses rows more than once.
    """
    numbers = []
    for text in shares:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not 0 < number <= 1:
            raise UserError(
                f"{one_line(text, 40) or 'Nothing'} is no share of the rows.", "Write shares such as 0.25, 0.5, 1."
            )
        numbers.append(number)
    if len(set(numbers)) < len(numbers):
        raise UserError("A share of the rows is named twice.", "Name each share once.")
    train, weights = base.get("data.train"), base.get("data.weights")
    own = list(weights or [1.0] * (len(train) if isinstance(train, list) else 1))
    if any(weight > 1 for weight in own):
        raise UserError(
            "data.weights uses rows more than once, so a share of the weight is no share of the rows.",
            "Leave data.weights out, or keep it at 1 and below.",
        )
    return Axis("data.weights", tuple(str([weight * number for weight in own]) for number in numbers))


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
        raise UserError(f"{one_line(doubled, 60)} is named twice.", "Give all its values at once.")
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


def make_variants(base: ConfigDocument, choices: Sequence[tuple[str, ...]]) -> list[Variant]:
    """The checked configurations of combinations.

    Args:
        base: The configuration; it is only read.
        choices: Result of :func:`combinations`.

    Raises:
        UserError: For the first invalid combination; the hint names it.
    """
    variants = []
    for assignments in choices:
        document = ConfigDocument(base.dumps(), base.path)
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


def add_variants(
    variants: Sequence[Variant], name: str, source: str, overrides: Sequence[str] = ()
) -> list[QueueEntry]:
    """Append the variants to the queue as a sweep; returns the entries.

    Args:
        variants: Result of :func:`make_variants`.
        name: Subject of the runs.
        source: The configuration file; may be empty.
        overrides: ``section.key=value`` for all of them.

    Raises:
        UserError: If the queue cannot be read or written.
    """
    entries = []
    for variant in variants:
        entry = QueueEntry(id=1, name=name_of(name, variant.values), added=time.time(), source=source)
        entry = replace(entry, overrides=(*overrides, *variant.assignments), values=variant.values)
        entries.append((entry, variant.config))
    return store.add(entries, is_sweep=True)


@dataclass(frozen=True)
class SweepRow:
    """A variant and its figures; None for unknown ones."""

    entry: int
    state: str
    """State of the entry, or of its run once that has ended: finished, stopped, failed, lost."""
    run: str | None
    values: Mapping[str, Any]
    best_eval_loss: float | None = None
    best_step: int | None = None
    """Step of that evaluation."""
    loss: float | None = None
    """Training loss of the last step."""
    tokens_per_second: float | None = None
    energy_wh: float | None = None
    seconds: float | None = None
    """Seconds of work, without pauses."""
    is_best: bool = False
    """True for the lowest held-out loss of the sweep."""

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON."""
        fields = asdict(self)
        fields["best"] = fields.pop("is_best")
        return fields


def sweep_rows(entries: Sequence[QueueEntry]) -> list[SweepRow]:
    """The rows of a sweep's entries; reads the records of their runs.

    The best has the lowest held-out loss. Without held-out rows none is marked: a training loss says little about
    quality.
    """
    rows = [_row(entry) for entry in entries]
    measured = [row.best_eval_loss for row in rows if row.best_eval_loss is not None]
    best = min(measured, default=None)
    return [replace(row, is_best=best is not None and row.best_eval_loss == best) for row in rows]


def _row(entry: QueueEntry) -> SweepRow:
    row = SweepRow(entry.id, entry.outcome or entry.state, entry.run, entry.values)
    if entry.run is None or not (run := run_of(entry)).events_path.exists():
        return row
    history = read_history(run)
    best, last = history.best_eval, history.last_step
    return replace(
        row,
        best_eval_loss=best.loss if best is not None else None,
        best_step=best.step if best is not None else None,
        loss=last.loss if last is not None else None,
        tokens_per_second=history.tokens_per_second,
        energy_wh=history.energy_wh,
        seconds=history.working_seconds,
    )
