"""The built-in presets: listed, read, and applied to a configuration."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli

from core.config.choices import Aim
from core.config.document import ConfigDocument
from core.config.explain import nearest
from core.config.schema import options
from core.errors import UserError
from core.text import one_line

DIRECTORY = Path(__file__).parent
#: Pairs of options that a preset sets together or not at all.
TOGETHER = (("train.epochs", "train.max_steps"), ("method.rank", "method.alpha"))


@dataclass(frozen=True)
class Preset:
    """Options for a card and a size of model.

    Args:
        name: The name of its file.
        about: Its purpose, a sentence.
        aim: Its aim.
        memory_gb: Memory of the intended card, in GB as cards are sold; 0 for the CPU.
        parameters: The smallest and the largest intended model, in billions of parameters.
        values: ``section.key`` to value, including the preset that it extends.
        notes: The file's comment on a value, by option.
    """

    name: str
    about: str
    aim: Aim
    memory_gb: int
    parameters: tuple[float, float]
    values: Mapping[str, Any]
    notes: Mapping[str, str]


@functools.cache
def presets() -> Mapping[str, Preset]:
    """All presets by name, ordered by card, then by model, balanced presets first."""
    found = [_read(path.stem) for path in DIRECTORY.glob("*.toml")]
    found.sort(key=lambda preset: (preset.memory_gb, preset.parameters[0], preset.aim != "balanced", preset.name))
    return {preset.name: preset for preset in found}


def find_preset(name: str) -> Preset:
    """The preset with a name.

    Raises:
        UserError: If there is none with that name.
    """
    found = presets().get(name)
    if found is None:
        guess = nearest(name, presets())
        hint = f"Did you mean {guess}?" if guess else f"There are {', '.join(presets())}."
        raise UserError(f"There is no preset {one_line(name, 60)}.", hint)
    return found


def fill_in(document: ConfigDocument, preset: Preset) -> list[str]:
    """Set the options of a preset that a configuration does not set, nor their partners in :data:`TOGETHER`.

    Returns:
        The options that were set.
    """
    written = {option.name for option in options() if document.get(option.name) is not None}
    alone = written.union(*(pair for pair in TOGETHER if written.intersection(pair)))
    chosen = {name: value for name, value in preset.values.items() if name not in alone}
    for name, value in chosen.items():
        document.set(name, value)
    return list(chosen)


def _read(name: str) -> Preset:
    text = (DIRECTORY / f"{name}.toml").read_text(encoding="utf-8")
    sections = tomli.loads(text)
    head = sections.pop("preset")
    own = {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}
    notes = _notes(text)
    if (parent := head.get("extends")) is not None:
        base = _read(parent)
        # The preset alone decides which option ends a run.
        dropped = {"train.epochs", "train.max_steps"} if own.keys() & {"train.epochs", "train.max_steps"} else set()
        inherited = {name: value for name, value in base.values.items() if name not in dropped}
        notes = {name: note for name, note in base.notes.items() if name not in own} | notes
        own = inherited | own
    ordered = {option.name: own.pop(option.name) for option in options() if option.name in own}
    if own:
        raise ValueError(f"{name}.toml sets {', '.join(own)}, which are not options")
    low, high = head["parameters"]
    return Preset(name, head["about"], head["aim"], head["memory_gb"], (low, high), ordered, notes)


def _notes(text: str) -> dict[str, str]:
    """The comment above each option."""
    found, section, comment = {}, "", ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line.startswith("#"):
            comment = line.lstrip("# ")
            continue
        elif comment:
            found[f"{section}.{line.partition('=')[0].strip()}"] = comment
        comment = ""
    return found
