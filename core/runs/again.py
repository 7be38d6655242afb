"""The configuration of a run as the beginning of another one: to start it again, or to edit it first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config.document import ConfigDocument
from core.config.schema import options
from core.hub_uri import short_name
from core.runs.latest import is_named
from core.runs.names import slug_of
from core.runs.store import Run


@dataclass(frozen=True)
class Origin:
    """The run whose configuration another one was begun with."""

    run: Run
    values: Mapping[str, Any]
    """The values of the run, ``section.key`` to value; they stay known when it is deleted."""

    @classmethod
    def of(cls, run: Run) -> Origin:
        """The origin for a run, whose configuration may be unreadable by now."""
        return cls(run, run.values())

    def covers(self, document: ConfigDocument) -> bool:
        """Whether a configuration still trains on the data of the run, so that it goes by the run's name."""
        return document.path is None and document.get("data.train") == self.values.get("data.train")


def begin_from(run: Run) -> ConfigDocument:
    """A new configuration with the values of a run; options with their default are left out.

    Raises:
        UserError: If ``run.toml`` is missing or is not TOML.
    """
    document = ConfigDocument(ConfigDocument.load(run.config_path).dumps())
    if document.problems():
        # Written by another version, or by hand: left for the user to see as it is.
        return document
    for option in options():
        if not option.required and document.get(option.name) == option.default:
            document.set(option.name, None)
    return document


def run_name(document: ConfigDocument, origin: Origin | None = None) -> str:
    """The name of a run of a configuration: after its file, the run it was begun with, else its data; may be empty."""
    if document.path is not None:
        return document.path.stem
    if origin is not None and origin.covers(document):
        return slug_of(origin.run.id)
    train = document.get("data.train")
    first = train[0] if isinstance(train, list) and train else train
    return short_name(first) if isinstance(first, str) else ""


def belongs(run: Run, document: ConfigDocument, origin: Origin | None = None) -> bool:
    """Whether a run is one of a configuration, by its name; every run is one of an empty configuration."""
    name = run_name(document, origin)
    return not name or (origin is not None and origin.run == run and origin.covers(document)) or is_named(run.id, name)


def read_run(path: str) -> Run | None:
    """The run of a directory; None where there is none any more."""
    try:
        run = Run(Path(path))
        return run if path and run.config_path.is_file() else None
    except (OSError, ValueError):
        return None
