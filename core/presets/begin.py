"""The beginning of a new configuration: the preset that suits it, and the rows that are held out of training."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.analysis.division import held_out_count
from core.analysis.row_samples import count_rows, sample_lengths
from core.config.choices import COMPARED, Aim, Objective, objective_for
from core.config.facts import Facts, read_shape
from core.config.schema import Config
from core.data.registries.resolve import training_sources
from core.errors import UserError
from core.presets.advised import Advised, advise
from core.presets.choose import Choice, choose_preset
from core.runs.outlook.time_left import FORWARD_SHARE, Schedule
from core.text import one_line
from core.units import format_count

if TYPE_CHECKING:
    from core.hardware.card import Card

#: Fewest rows of which some are held out: below, a tenth of them measures nothing.
FEWEST_ROWS = 50
#: Share held out, and the most rows: more rows cost time at every evaluation and add little precision.
SHARE, MOST_HELD_OUT = 0.1, 200
#: Largest share of a run's time for its evaluations, the first look at the model and the last one included; and the
#: intervals between them to choose from, in epochs. A run shows its progress as often as that allows.
EVALUATION_SHARE = 0.1
INTERVALS = 0.25, 0.5, 1.0, 2.0, 5.0, 10.0
#: Tokens of a row and of its answer that are assumed where no row was looked at.
_ROW_TOKENS, _LONGEST_ANSWER = 200.0, 256.0


@dataclass(frozen=True)
class HeldOut:
    """Rows to hold out of training.

    Args:
        share: ``data.eval_share``.
        rows: The rows that are held out.
        total: The rows there are.
        every_epochs: ``eval.every_epochs``; None to evaluate at the end only.
        probe: False to leave out the general probe, which would take too much of a short run.
        baseline: True to measure the rows before the first step too, for comparison.
    """

    share: float
    rows: int
    total: int
    every_epochs: float | None = None
    probe: bool = True
    baseline: bool = False

    @property
    def values(self) -> dict[str, float | bool]:
        """The options that hold the rows out and evaluate on them, ``section.key`` to value."""
        interval = {} if self.every_epochs is None else {"eval.every_epochs": self.every_epochs}
        before = {"eval.baseline": True} if self.baseline else {}
        return {"data.eval_share": self.share, **interval, **before, **({} if self.probe else {"eval.probe": False})}

    @property
    def notes(self) -> dict[str, str]:
        """The reason for each of the values, as a sentence."""
        reasons = {
            "data.eval_share": f"{self}; 0 to learn all of them and measure nothing.",
            "eval.every_epochs": "As often as fits into a tenth of the time.",
            "eval.baseline": "For comparison: it takes a few percent of the time at most.",
            "eval.probe": "It would take more than a tenth of the time.",
        }
        return {name: reasons[name] for name in self.values}

    def __str__(self) -> str:
        return f"{format_count(self.rows)} of {format_count(self.total)} rows held out"


@dataclass(frozen=True)
class Beginning:
    """Values for a new configuration.

    Args:
        choice: The preset that suits model, card and data.
        held_out: The rows to hold out; None where the configuration says that itself, or there are too few.
        advised: The advice for the base model.
    """

    choice: Choice
    held_out: HeldOut | None = None
    advised: tuple[Advised, ...] = ()


def begin(config: Config, card: Card | None, aim: Aim = "balanced") -> Beginning:
    """The beginning of a configuration that has a model and data; slow, as it reads the model and the rows.

    Args:
        config: A checked configuration, its data readable.
        card: The card to train on; None for the CPU.
        aim: The aim of the preset.

    Raises:
        UserError: If the model is too large for the card, or tokenizer or template exceed the limits of the sandbox.
    """
    # Of rows that cannot be read, the Data pane says why.
    with suppress(UserError, OSError):
        if "objective" not in config.train.model_fields_set and (needed := needed_objective(config)) is not None:
            config = config.with_options(train={"objective": needed[0]})
    choice = suitable_preset(config.model.base, card, config, aim=aim)
    return Beginning(choice, held_out_of(config, choice), advice_on(config.model.base, choice, card))


def needed_objective(config: Config) -> tuple[Objective, str] | None:
    """The objective for preference pairs or labeled answers, with the reason; None for other rows.

    Raises:
        UserError: If the rows cannot be read.
    """
    source = training_sources(config.data)[0][0][0]
    with source.open() as file:
        found = source.recognize(file)
    objective = objective_for(found.format)
    if objective == "sft":
        return None
    name = one_line(os.path.basename(source.name), 80)
    return objective, f"train.objective is {objective}, as {name} holds {COMPARED[found.format]}."


def advice_on(base: str, choice: Choice, card: Card | None) -> tuple[Advised, ...]:
    """The advice for a base model beside a preset; reads the model.

    Args:
        base: As ``model.base``.
        choice: The preset.
        card: The card to train on; None for the CPU.
    """
    values = dict(choice.preset.values)
    if choice.max_length is not None:
        values["train.max_length"] = choice.max_length
    return advise(base, values, read_shape(base), card.memory_total if card is not None else None)


def suitable_preset(
    base: str, card: Card | None, rows: Config | None, *, directory: Path | None = None, aim: Aim = "balanced"
) -> Choice:
    """The preset that suits the model, the card and the first rows of the data.

    Args:
        base: As ``model.base``.
        card: The card to train on; None for the CPU.
        rows: A checked configuration whose rows are looked at; None where there are none.
        directory: The directory that a relative ``base`` starts from; the working directory by default.
        aim: The aim.

    Raises:
        UserError: As :func:`begin`.
    """
    return choose_preset(
        Facts(model=read_shape(base, directory), device_bytes=card.memory_total if card is not None else None),
        aim,
        lengths=sample_lengths(rows) if rows is not None else [],
        card_name=f"the {card.name}" if card is not None else "the card",
        objective=rows.train.objective if rows is not None else "sft",
    )


def held_out_of(config: Config, choice: Choice) -> HeldOut | None:
    """The rows to hold out of a configuration's data, and how often to evaluate on them; None where the configuration
    says that itself, or there are too few.

    Args:
        config: The configuration; its own epochs and settings of ``[eval]`` count.
        choice: Its preset.
    """
    data = config.data
    if data.eval is not None or "eval_share" in data.model_fields_set:
        return None
    entries: Sequence[str] = [data.train] if isinstance(data.train, str) else data.train
    # Rows that cannot be counted are reported where they are read.
    with suppress(UserError, OSError):
        count = count_rows(entries)
        found = hold_out(count.rows) if count.differ else None
        return _in_time(config, choice, found) if found is not None else None
    return None


def _in_time(config: Config, choice: Choice, held_out: HeldOut) -> HeldOut:
    """The shortest interval at which evaluations keep to their share of the time. Where not even the last one does, the
    general probe is left out. The loss is measured before the first step too if that alone keeps to the share, but no
    answers are given twice for it. What the configuration names stays."""
    train, tokens = config.train, choice.row_tokens or _ROW_TOKENS
    epochs = train.epochs if "epochs" in train.model_fields_set else choice.preset.values.get("train.epochs", 1.0)
    schedule = Schedule.of_config(config.with_options(data={"eval_share": held_out.share}))
    parts = schedule.evaluation_tokens(held_out.rows, tokens * held_out.rows, min(tokens / 2, _LONGEST_ANSWER))
    trained = epochs * tokens * (held_out.total - held_out.rows) / FORWARD_SHARE
    share, named = trained * EVALUATION_SHARE / (1 - EVALUATION_SHARE), config.eval.model_fields_set
    left, rows = share - parts["probe"] - parts["samples"], parts["loss"] + parts["answers"]
    probe = left >= sum(parts.values()) or "probe" in named or config.eval.gate is not None
    baseline = rows <= share and not schedule.answers and "baseline" not in named
    most = (left - rows * (baseline or config.eval.baseline)) / sum(parts.values())
    interval = next((every for every in INTERVALS if every < epochs and math.ceil(epochs / every) <= most), None)
    return replace(held_out, every_epochs=interval, probe=probe, baseline=baseline)


def hold_out(rows: int) -> HeldOut | None:
    """The rows to hold out of so many: a tenth, at most 200; none of fewer than 50."""
    if rows < FEWEST_ROWS:
        return None
    share = SHARE
    if share * rows > MOST_HELD_OUT:
        # Rounded down, so that it is not one row more.
        unit = 10.0 ** (2 - math.floor(math.log10(MOST_HELD_OUT / rows)))
        share = float(f"{math.floor(MOST_HELD_OUT / rows * unit) / unit:.3g}")
    return HeldOut(share, held_out_count(rows, share), rows)
