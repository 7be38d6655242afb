"""Comparison of a run's base and data files with its hash chain or its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.audit.result import Difference
from core.config.schema import Config
from core.data.registries.resolve import hash_data_files
from core.directories import Progress
from core.errors import UserError
from core.models.fingerprint import BaseFingerprint
from core.text import one_line
from core.worker.model.support import resolve_base


@dataclass
class Inputs:
    """Differences of base and data files from the record."""

    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Missing inputs, a sentence each."""
    obstacle: str = ""
    """The reason that nothing can be replayed, a sentence; empty where it can."""


def part_of(facts: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a chain's facts; empty if it is not a table, as a chain may come from anywhere."""
    found = facts.get(name)
    return found if isinstance(found, dict) else {}


def compare_inputs(config: Config, start: Mapping[str, Any], manifest: Mapping[str, Any], progress: Progress) -> Inputs:
    """Compare base and data files, reading all of them.

    Args:
        config: The run's configuration.
        start: The facts of its start in the chain; empty where there are none.
        manifest: A checkpoint's manifest.
        progress: Called with each stage.
    """
    found = Inputs()
    try:
        found.differences += _changed_base(config, start, manifest, progress)
        found.obstacle = "The base has changed." if found.differences else ""
    except UserError as error:
        found.notes.append(f"The base cannot be compared: {error.message}")
        found.obstacle = "The base is not there."
    progress("reading the data files", None, None)
    try:
        now = hash_data_files(config.data)
    except UserError as error:
        found.notes.append(f"The data cannot be compared: {error.message}")
        return found
    if sealed := part_of(start, "files"):
        found.differences += _of_files(sealed, now)
    for name, digest in now.items():
        if not digest:
            found.notes.append(f"The data file {one_line(name, 200)} is not there, or cannot be read.")
    return found


def _changed_base(
    config: Config, start: Mapping[str, Any], manifest: Mapping[str, Any], progress: Progress
) -> list[Difference]:
    path = resolve_base(config.model.base, progress)
    progress("reading the base", None, None)
    prints = BaseFingerprint(path, cached=False)
    prints.settle()
    sealed = part_of(part_of(start, "base"), "files")
    if sealed and (changed := _unequal(sealed, prints.files)):
        return [_of_base(path, name, sealed, prints.files) for name in changed]
    recorded = manifest.get("base_sha256")
    if (recorded is not None or not sealed) and not prints.matches(str(recorded)):
        return [Difference(what=f"The base {path} is not the one that the run was trained on.", file=str(path))]
    return []


def _of_base(path: Path, name: str, sealed: Mapping[str, Any], now: Mapping[str, str]) -> Difference:
    what = "is missing" if name not in now else "was added" if name not in sealed else "is another"
    return Difference(
        what=f"The base is not the one of the training: {one_line(name, 120)} in {path} {what}.",
        file=str(path / name),
        recorded=str(sealed.get(name)),
        found=now.get(name),
    )


def _of_files(sealed: Mapping[str, Any], now: Mapping[str, str]) -> Iterator[Difference]:
    for name in _unequal(sealed, now):
        if name in now and not now[name]:
            continue  # a missing file proves nothing
        what = "was added" if name not in sealed else "is read no more" if name not in now else "has changed"
        yield Difference(
            what=f"The data file {one_line(name, 200)} {what} since the run began.",
            file=name,
            recorded=str(sealed.get(name)),
            found=now.get(name),
        )


def _unequal(sealed: Mapping[str, Any], now: Mapping[str, str]) -> list[str]:
    return [name for name in {**sealed, **now} if sealed.get(name) != now.get(name)]
