"""The base and the data files of a run against what its hash chain, or its checkpoints, say of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from core.audit.result import Difference
from core.config.schema import Config
from core.data.registries.data_files import hash_data_files
from core.errors import UserError
from core.models.fingerprint import BaseFingerprint
from core.text import one_line
from core.worker.model.starter import resolve_base


def changed_base(
    config: Config,
    start: Mapping[str, Any],
    manifest: Mapping[str, Any],
    progress: Callable[[str, int | None, int | None], None],
) -> list[Difference]:
    """Whether the base is another than that of the training; its files are all read.

    Args:
        config: Of the run.
        start: What the chain says of its start; empty where it says nothing.
        manifest: Of a checkpoint.
        progress: Told what is done.

    Raises:
        UserError: If the base is not there.
    """
    path = resolve_base(config.model.base, progress)
    progress("reading the base", None, None)
    prints = BaseFingerprint(path, cached=False)
    prints.settle()
    sealed = start.get("base", {}).get("files")
    if isinstance(sealed, dict) and sealed:
        return [_of_base(path, name, sealed, prints.files) for name in _unequal(sealed, prints.files)]
    if not prints.matches(str(manifest.get("base_sha256"))):
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


def changed_files(config: Config, start: Mapping[str, Any]) -> list[Difference]:
    """Data files that are not what the chain says."""
    sealed = start.get("files")
    if not isinstance(sealed, dict) or not sealed:
        return []
    try:
        now = hash_data_files(config.data)
    except UserError as error:
        return [Difference(what=f"The data cannot be read: {error.message}")]
    return list(_of_files(sealed, now))


def _of_files(sealed: Mapping[str, Any], now: Mapping[str, str]) -> Iterator[Difference]:
    for name in _unequal(sealed, now):
        what = "was added" if name not in sealed else "cannot be read" if not now.get(name) else "has changed"
        yield Difference(
            what=f"The data file {one_line(name, 200)} {what} since the run began.",
            file=name,
            recorded=str(sealed.get(name)),
            found=now.get(name) or None,
        )


def _unequal(sealed: Mapping[str, Any], now: Mapping[str, str]) -> list[str]:
    return [name for name in {**sealed, **now} if sealed.get(name) != now.get(name)]
