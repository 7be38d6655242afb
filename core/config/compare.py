"""Comparison of two configurations by option, and of two texts by line."""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.config.document import ConfigDocument
from core.config.explain import shown
from core.config.schema import Option, options
from core.hub.store import pinned
from core.hub_uri import absolute
from core.paths import working_directory

#: Options that name files; a relative path is relative to the configuration.
_FILES = ("data.train", "data.eval", "data.corrections", "template.file", "eval.prompts")
#: Lines of one text that are compared; a longer text is not a configuration.
LINE_LIMIT = 5_000

Kind = Literal["head", "same", "removed", "added"]


@dataclass(frozen=True)
class DiffLine:
    """A line of a comparison; its text is as written, not yet made safe for a terminal."""

    kind: Kind
    text: str


def holding_values(document: ConfigDocument) -> dict[str, Any]:
    """The effective values, ``section.key`` to value: the file's, else the defaults; paths as a run resolves them."""
    base = working_directory() / document.path.parent if document.path is not None else working_directory()
    found = {}
    for option in options():
        value = document.get(option.name)
        found[option.name] = _resolve(option.name, option.default if value is None else value, base)
    return found


def differences(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """The options whose value differs in ``others``, with that value; an option that ``others`` lacks has its default.

    Args:
        values: From :func:`holding_values`.
        others: Likewise, or with options missing.
    """
    found = {}
    for option in options():
        mine, other = (_said(option, given) for given in (values, others))
        if not is_same(mine, other):
            found[option.name] = other
    return found


def is_same(value: Any, other: Any) -> bool:
    """True if two values of an option mean the same: a list of one entry equals that entry, and true is not 1."""
    return bool(_plain(value) == _plain(other))


def differing(configurations: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The options whose values differ between configurations, each with its value in every configuration.

    Args:
        configurations: As for :func:`differences`; an option that one lacks has its default there.
    """
    found = {}
    for option in options():
        values = [_said(option, given) for given in configurations]
        if not all(is_same(value, values[0]) for value in values[1:]):
            found[option.name] = values
    return found


def diff_texts(before: str, after: str) -> list[DiffLine]:
    """A unified diff of two texts with lines of context; empty where they are equal."""
    old, new = before.split("\n")[:LINE_LIMIT], after.split("\n")[:LINE_LIMIT]
    found = []
    for line in list(difflib.unified_diff(old, new, lineterm="", n=3))[2:]:
        if line.startswith("@@"):
            found.append(DiffLine("head", _lines_of(line)))
        else:
            kind: Kind = "added" if line[0] == "+" else "removed" if line[0] == "-" else "same"
            found.append(DiffLine(kind, line[1:]))
    return found


def diff_values(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[DiffLine]:
    """A diff of two configurations by option, under the names of their sections; empty where they are equal."""
    changed = differences(after, before)
    named = [option for option in options() if option.name in changed]
    found = []
    for section, below in itertools.groupby(named, key=lambda option: option.section):
        found.append(DiffLine("head", f"[{section}]"))
        for option in below:
            values: dict[Kind, Any] = {"removed": changed[option.name], "added": _said(option, after)}
            found += [
                DiffLine(kind, f"{option.key} = {shown(value)}") for kind, value in values.items() if value is not None
            ]
    return found


def _said(option: Option, values: Mapping[str, Any]) -> Any:
    """A value, or the default where none is given."""
    value = values.get(option.name)
    return option.default if value is None else value


def _lines_of(head: str) -> str:
    """``lines 3 to 9`` of ``@@ -1,4 +3,7 @@``, counted in the new text."""
    start, _, count = head.split("+", 1)[1].split(" ", 1)[0].partition(",")
    first, many = int(start), int(count or 1)
    return f"lines {first} to {first + many - 1}" if many > 1 else f"line {max(first, 1)}"


def _resolve(name: str, value: Any, base: Path) -> Any:
    if name == "model.base" and isinstance(value, str):
        path = absolute(value, base)
        return path if os.path.exists(path) else value
    if name not in _FILES:
        return value
    if isinstance(value, list):
        return [_resolve(name, item, base) for item in value]
    return pinned(absolute(value, base)) if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    """A value in its plain form for the comparison: a list of one entry is that entry, and true is not 1."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return (isinstance(value, bool), value)
