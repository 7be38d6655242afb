"""Names in an adapter's files: of an adapter on the text part of a composite model those that the whole model has.

So the files work with PEFT on the whole model, images and all; in memory names are those of the text part. Adapters
that were saved with either names are read, and what one has on towers, as earlier versions had, is left out: rows are
text, so it was never trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeVar

from core.models.text_part import split_names
from core.worker.model.text_part import is_text_part, whole_name

_T = TypeVar("_T")
#: What PEFT puts before the names of modules.
PREFIX = "base_model.model."
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def names_in_files(model: Any, state: dict[str, _T]) -> dict[str, _T]:
    """An adapter's tensors by the names that they have in files.

    Args:
        model: The base in memory.
        state: Tensors by PEFT's names.
    """
    if not is_text_part(model):
        return state
    return {PREFIX + whole_name(model, name.removeprefix(PREFIX)): value for name, value in state.items()}


def names_in_memory(model: Any, state: dict[str, _T]) -> dict[str, _T]:
    """An adapter's tensors by the names that they have in memory; those on towers are left out.

    Args:
        model: The base in memory.
        state: Tensors by their names in files, of this version or an earlier one.
    """
    if not is_text_part(model):
        return state
    inner = {name.removeprefix(PREFIX): value for name, value in state.items()}
    return {PREFIX + own: inner[name] for name, own in split_names(inner).text.items()}


def targets_in_files(model: Any, adapted: Iterable[str], targets: Any) -> Any:
    """``target_modules`` as they are saved: an expression for the full names in the whole model and in its text part,
    so that no layer of a tower is one.

    Args:
        model: The base in memory.
        adapted: Names of the layers that have adapters.
        targets: What PEFT would save.
    """
    if not is_text_part(model):
        return targets
    names = set(adapted)
    expression = _expression(model, {_NUMBER.sub("#", name) for name in names})
    everything = {name.replace(".base_layer", "") for name, _ in model.named_modules()}
    if {name for name in everything if re.fullmatch(expression, name)} != names:
        expression = _expression(model, names)
    return expression


def _expression(model: Any, names: Iterable[str]) -> str:
    """An expression for names, in which ``#`` is any number, by both their names."""
    body = {name.removeprefix("model.") for name in names if name.startswith("model.")}
    others = {name for name in names if not name.startswith("model.")}
    place = whole_name(model, "model")
    parts = [rf"(?:{re.escape(place)}|model)\.(?:{_any(body)})"] if body else []
    return "|".join([*parts, *(_any({name, whole_name(model, name)}) for name in sorted(others))])


def _any(names: Iterable[str]) -> str:
    return "|".join(re.escape(name).replace(r"\#", r"\d+").replace("#", r"\d+") for name in sorted(names))


def targets_in_memory(model: Any, targets: Any) -> Any:
    """``target_modules`` of a saved adapter for the base in memory: full names of the whole model by those here, and
    an expression as the modules that it matches by either name."""
    if not is_text_part(model) or not targets or targets == "all-linear":
        return targets
    if isinstance(targets, str):
        expression = re.compile(targets)
        found = [
            name
            for name, _ in model.named_modules()
            if expression.fullmatch(name) or expression.fullmatch(whole_name(model, name))
        ]
        return found or targets
    own = split_names(targets).text
    return sorted({own.get(name, name) for name in targets})
