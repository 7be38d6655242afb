"""The choice of a preset for a model, a card and the data, with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.config.choices import Aim, Objective
from core.config.facts import Facts
from core.config.schema import Config
from core.errors import UserError
from core.memory.plan import Machine, Plan
from core.memory.planner import Source, arithmetic, make_plan
from core.memory.weights import experts_on_host, movable_experts, weight_parts
from core.models.architecture.architecture import Architecture
from core.presets.library import Preset, presets
from core.units import format_bytes

_GIB = 1 << 30
#: Highest learning rate for preference training, above which answers soon fall apart.
PREFERENCE_RATE = 5e-5
#: Share of its nominal memory that a card reports at least: with error correction a card of 24 GB has 22.5 GiB.
_REPORTED_SHARE = 0.9
#: Share of the card that a run may need by the memory plan.
_USABLE_SHARE = 0.95
#: Share of rows that may be longer than a preset takes before another preset is looked for.
_OVERLONG_SHARE = 0.05
#: The model size that is assumed where it is unknown, on a card and on a CPU.
_ASSUMED_BILLIONS, _ASSUMED_BILLIONS_CPU = 8.0, 0.2


@dataclass(frozen=True)
class Choice:
    """A preset and why it was chosen.

    Args:
        preset: The preset.
        max_length: ``train.max_length`` to set instead of the preset's; None to leave it.
        why: The reasons in one sentence.
        row_tokens: Mean length of the rows looked at; None if no row was.
    """

    preset: Preset
    max_length: int | None
    why: str
    row_tokens: float | None = None


def choose_preset(
    facts: Facts,
    aim: Aim = "balanced",
    *,
    lengths: Sequence[int] = (),
    card_name: str = "the card",
    objective: Objective = "sft",
) -> Choice:
    """The preset for the known facts; the CPU's where no card is known.

    Args:
        facts: The model's shape and the card's memory. A preset is taken only if a run fits by the memory plan.
        aim: The aim; the balanced preset is taken where there is none for it.
        lengths: Lengths in tokens of some rows.
        card_name: The card's name in the sentence.
        objective: As ``train.objective``, which decides the memory of a row; among the preset's values unless it is
            ``sft``.

    Raises:
        UserError: If the model is too large for the card.
    """
    card = facts.device_bytes or 0
    known = None if facts.model is None else facts.model.parameters / 1e9
    billions = known or (_ASSUMED_BILLIONS if card else _ASSUMED_BILLIONS_CPU)
    fitting = [
        preset
        for preset in presets().values()
        if _suits_card(preset, card) and preset.parameters[0] <= billions <= preset.parameters[1]
    ]
    if not fitting and card and facts.model is not None and experts_on_host(facts.model).layers:
        fitting = _largest(card)
    if not fitting and card:
        raise UserError(
            f"The model has {billions:.3g} billion parameters, and there is no preset for that on {card_name} "
            f"({card / _GIB:.0f} GB).",
            "Choose a smaller model, or name a preset and change what it says.",
        )
    # A model too large for the CPU trains there too, in its own time.
    fitting = fitting or [preset for preset in presets().values() if preset.memory_gb == 0]
    if objective != "sft":
        fitting = [_for_objective(preset, objective) for preset in fitting]
    size = f"{billions:.3g} billion" if billions >= 1 else f"{billions * 1000:.3g} million"
    reasons = [
        f"the model has {size} parameters" if known else f"{size} parameters are assumed for a model of unknown shape",
        f"{card_name} has {card / _GIB:.0f} GB" if card else "no NVIDIA card was found",
    ]
    chosen = _best(fitting, aim)
    if chosen.aim != aim:
        reasons.append(f"there is none for {aim} there")
    elif aim == "balanced" and lengths and _overlong(lengths, chosen) > _OVERLONG_SHARE:
        chosen = _best(fitting, "long-context")
    if card and facts.model is not None:
        first, chosen = chosen, _roomy(fitting, chosen, facts.model, card)
        if chosen is not first:
            reasons.append(f"{first.name} would need {_needed_at_least(first, facts.model, card)} with this model")
        movable = movable_experts(facts.model, _config(chosen.values))
        away = _plan(chosen.values, facts.model, card).experts_host_bytes if movable else 0
        if away:
            reasons.append(f"its experts live in the machine's memory, where they take {format_bytes(away)}")
    limit = chosen.values["train.max_length"]
    if lengths:
        over = _overlong(lengths, chosen)
        longer = f"{over:.0%} of the rows sampled are longer" if over else "no row sampled is longer"
        reasons.append(f"{longer} than {limit} tokens")
    positions = facts.model.positions if facts.model is not None else None
    cut = positions if positions is not None and positions < limit else None
    if cut is not None:
        reasons.append(f"train.max_length is {cut}, as the model reads no more")
    row_tokens = sum(lengths) / len(lengths) if lengths else None
    return Choice(chosen, cut, f"{chosen.name}, as {_enumerate(reasons)}.", row_tokens)


def _for_objective(preset: Preset, objective: Objective) -> Preset:
    """A preset for preference training."""
    rate = min(preset.values.get("train.learning_rate", PREFERENCE_RATE), PREFERENCE_RATE)
    return replace(preset, values={**preset.values, "train.objective": objective, "train.learning_rate": rate})


def _best(candidates: Sequence[Preset], aim: Aim) -> Preset:
    """The preset of this aim for the largest card; the balanced one where there is none for such a card."""
    balanced = max((preset for preset in candidates if preset.aim == "balanced"), key=lambda preset: preset.memory_gb)
    alike = [preset for preset in candidates if preset.aim == aim and 2 * preset.memory_gb >= balanced.memory_gb]
    return max(alike, key=lambda preset: preset.memory_gb, default=balanced)


def _roomy(candidates: Sequence[Preset], wanted: Preset, model: Architecture, card: int) -> Preset:
    """The wanted preset if the model fits by the memory plan; else the next one with which it fits."""
    others = [preset for preset in candidates if preset is not wanted]
    others.sort(key=lambda preset: (preset.aim != wanted.aim, preset.aim != "balanced", -preset.memory_gb))
    ordered = (wanted, *others)
    # A measurement takes seconds for each preset. Where the weights alone are too much, or even the rough bound fits,
    # none is needed.
    weights = [weights_on_card(preset.values, model) for preset in ordered]
    least = min(weights)
    if fits_card(least, card):
        least = 0
        for preset, size in zip(ordered, weights, strict=True):
            if not fits_card(size, card):
                continue
            needed = fitting_bytes(preset.values, model, card)
            if fits_card(needed, card):
                return preset
            least = min(needed, least or needed)
    raise UserError(
        f"The model needs {format_bytes(least)} at least, and the card has {format_bytes(card)}.",
        "Choose a smaller model, or name a preset and change what it says; 'localtune-tui plan' tells what that takes.",
    )


def _needed_at_least(preset: Preset, model: Architecture, card: int) -> str:
    """Memory that a preset would need, in words; where the weights alone are too much nothing is measured."""
    weights = weights_on_card(preset.values, model)
    if not fits_card(weights, card):
        return f"more than {format_bytes(weights)}"
    return format_bytes(needed_bytes(preset.values, model, card))


def needed_bytes(values: Mapping[str, Any], model: Architecture, card: int | None = None) -> int:
    """GPU memory that a run with the values of a preset needs with rows of its maximum length.

    Args:
        values: The preset's values.
        model: The base model.
        card: Memory of the card, on which experts that would not fit live in the machine's memory instead; None for a
            card where everything fits.
    """
    return _plan(values, model, card).needed_bytes


def fitting_bytes(values: Mapping[str, Any], model: Architecture, card: int, *, offloads: bool = True) -> int:
    """As :func:`needed_bytes`, or a rough bound where even that fits the card, so that nothing has to be measured.

    Args:
        values: The preset's values.
        model: The base model.
        card: Memory of the card.
        offloads: Whether experts that would not fit may live in the machine's memory instead.
    """
    bound = _plan(values, model, card if offloads else None, "known").needed_bytes
    return bound if fits_card(bound, card) else needed_bytes(values, model, card if offloads else None)


def weights_on_card(values: Mapping[str, Any], model: Architecture) -> int:
    """GPU memory of a model's weights alone with the values of a preset: no run takes less, and nothing is measured.
    Experts that can live in the machine's memory count there.

    Args:
        values: The preset's values.
        model: The base model.
    """
    config = _config(values)
    away = experts_on_host(model) if movable_experts(model, config) else None
    parts = weight_parts(model, arithmetic(config, Machine("cuda")), 0, on_host=away)
    return sum(part.bytes for part in parts)


def _config(values: Mapping[str, Any]) -> Config:
    sections: dict[str, dict[str, object]] = {"data": {"train": "rows.jsonl"}}
    for name, value in values.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    return Config.model_validate(sections)


def _plan(values: Mapping[str, Any], model: Architecture, card: int | None, source: Source = "measured") -> Plan:
    config = _config(values)
    limited = card is not None and movable_experts(model, config)
    limit = int(_USABLE_SHARE * card) if card is not None and limited else None
    return make_plan(model, config, Machine("cuda", limit_bytes=limit), source=source)


def _largest(card: int) -> list[Preset]:
    """The presets for the largest models that a card takes in 4 bits; only a small part of a mixture stays on it."""
    suiting = [
        preset
        for preset in presets().values()
        if _suits_card(preset, card) and preset.values.get("method.name") == "qlora"
    ]
    most = max((preset.parameters[1] for preset in suiting), default=0)
    return [preset for preset in suiting if preset.parameters[1] == most]


def fits_card(needed: int, card: int) -> bool:
    """True if a run may need so much of a card; a desktop and a display take the rest."""
    return needed <= _USABLE_SHARE * card


def _suits_card(preset: Preset, card: int) -> bool:
    if preset.memory_gb == 0 or card == 0:
        return preset.memory_gb == card == 0
    return card >= preset.memory_gb * _REPORTED_SHARE * _GIB


def _overlong(lengths: Sequence[int], preset: Preset) -> float:
    limit = int(preset.values["train.max_length"])
    return sum(length > limit for length in lengths) / len(lengths)


def _enumerate(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
