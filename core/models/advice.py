"""Tuning advice by model, with a source for each entry: from the model's makers and from people who tune it."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli

from core.errors import UserError
from core.models.description import read_description, text_model_type
from core.models.find import find_model

FILE = Path(__file__).with_name("advice.toml")
#: Values as TOML has them.
AdviceValue = bool | int | float | str


@dataclass(frozen=True)
class Advice:
    """A piece of advice for some models.

    Args:
        models: The models, as people call them.
        says: The advice.
        source: An address, or a repository with commit and path.
        option: The option it is about, as ``section.key``; empty if there is none.
        value: The advised value; None if it depends on the rows.
    """

    models: str
    says: str
    source: str
    option: str = ""
    value: AdviceValue | None = None

    def __str__(self) -> str:
        return f"{self.models}: {self.says} ({self.source})"


@dataclass(frozen=True)
class _Entry:
    advice: Advice
    families: frozenset[str]
    names: re.Pattern[str]
    by_name: bool

    def fits(self, families: frozenset[str], names: Iterable[str]) -> bool:
        named = any(self.names.search(name) for name in names)
        if not families:
            return named
        return not self.families.isdisjoint(families) and (named or not self.by_name)


@functools.cache
def entries() -> tuple[_Entry, ...]:
    """The whole table."""
    found = []
    for model in tomli.loads(FILE.read_text(encoding="utf-8"))["model"]:
        names = re.compile(model["names"], re.IGNORECASE)
        for advice in model["advice"]:
            made = Advice(model["name"], **advice)
            found.append(_Entry(made, frozenset(model["families"]), names, model.get("by_name", False)))
    return tuple(found)


def advice_by_identity(families: Iterable[str], names: Sequence[str]) -> tuple[Advice, ...]:
    """The advice for a model.

    Args:
        families: Its ``model_type``, and that of its text part; none if unknown.
        names: Names of the model: its directory, the repository it came from.
    """
    known = frozenset(families)
    return tuple(entry.advice for entry in entries() if entry.fits(known, names))


def advice_for(base: str, relative_to: Path | None = None) -> tuple[Advice, ...]:
    """The advice for a base model; empty for models without an entry.

    Args:
        base: As ``model.base``.
        relative_to: The directory that a relative path starts from; the working directory by default.
    """
    names, families = [base], []
    # Advice never fails: a missing or damaged model is refused with the reason when it is loaded
    # (:func:`core.models.sandboxed.check_base`). The name alone is enough to find an entry.
    with contextlib.suppress(UserError, OSError):
        path = find_model(base, relative_to)
        if path is not None and (config := read_description(path / "config.json")) is not None:
            families = [kind for kind in (config.get("model_type"), text_model_type(config)) if isinstance(kind, str)]
            names += [path.name, str(config.get("_name_or_path", ""))]
    return advice_by_identity(families, names)
