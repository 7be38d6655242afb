"""Advice for the base model of a new configuration: values to take, and advice that is only shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config.document import ConfigDocument
from core.config.schema import options
from core.models.advice import Advice, advice_for
from core.models.architecture.architecture import Architecture
from core.presets.choose import fits_card, fitting_bytes
from core.presets.switch import Change, preset_in
from core.units import format_bytes

_METHOD = "method.name"


@dataclass(frozen=True)
class Advised:
    """A piece of advice, and its outcome.

    Args:
        advice: The advice.
        taken: Whether its value is written.
        why: Why it is not, where that is not plain; a sentence.
    """

    advice: Advice
    taken: bool
    why: str = ""

    def __str__(self) -> str:
        what = f"{self.advice.option} = {_written(self.advice.value)}, " if self.taken else ""
        why = f" {self.why}" if self.why else ""
        return f"{what}{self.advice.models}: {self.advice.says}{why} ({self.advice.source})"


def advise(
    base: str, values: Mapping[str, Any], model: Architecture | None, card: int | None, directory: Path | None = None
) -> tuple[Advised, ...]:
    """The advice for a base model; empty for a model without advice.

    Advice against 4 bits is taken where a run in 16 bits fits the card by the memory plan.

    Args:
        base: As ``model.base``.
        values: The values of the preset, ``section.key`` to value.
        model: The model's shape, if it is known.
        card: Memory of the card; None for the CPU.
        directory: The directory that a relative ``base`` starts from; the working directory by default.
    """
    found = []
    for advice in advice_for(base, directory):
        if advice.option != _METHOD or advice.value is None:
            found.append(Advised(advice, advice.value is not None))
        elif values.get(_METHOD) != "qlora":
            continue  # The preset says so too, or trains all weights.
        elif model is None or not card:
            found.append(Advised(advice, False))
        else:
            needed = fitting_bytes({**values, _METHOD: advice.value}, model, card, offloads=False)
            fits = fits_card(needed, card)
            why = "" if fits else f"In 16 bits the run would need {format_bytes(needed)}, so it is qlora here."
            found.append(Advised(advice, fits, why))
    return tuple(found)


def taken_values(advised: tuple[Advised, ...]) -> dict[str, Any]:
    """The values that are taken, ``section.key`` to value."""
    return {item.advice.option: item.advice.value for item in advised if item.taken}


def follow_base(document: ConfigDocument, before: str, after: str, directory: Path | None = None) -> tuple[Change, ...]:
    """The changes by which a configuration follows its base model: values advised for the former base become the values
    advised for the new base, or the preset's, or are removed.

    Values of the user stay, and a configuration without advised values stays as it is. The method always stays, as it
    depends on the card too.

    Args:
        document: The configuration; nothing is changed yet.
        before: The former base, as ``model.base``.
        after: The new one.
        directory: The directory that relative ones start from; the working directory by default.
    """
    old, new = _values_for(before, directory), _values_for(after, directory)
    followed = {name for name, value in old.items() if document.get(name) == value}
    if not followed:
        return ()
    preset = preset_in(document)
    values = {**(preset.values if preset is not None else {}), **new}
    changes = []
    for option in options():
        name, present = option.name, document.get(option.name)
        # New advice is written only where the user has written nothing.
        if name not in followed and (name not in new or present is not None):
            continue
        if present != values.get(name):
            changes.append(Change(name, present, values.get(name)))
    return tuple(changes)


def _values_for(base: str, directory: Path | None) -> dict[str, Any]:
    found = advice_for(base, directory)
    return {advice.option: advice.value for advice in found if advice.value is not None and advice.option != _METHOD}


def _written(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
