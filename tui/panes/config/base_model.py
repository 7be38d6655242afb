"""The base model in the config pane: whether it is on this machine, and can be trained by its description."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError
from core.models.find import close_name, is_model_here, model_entry
from core.text import one_line


@dataclass(frozen=True)
class NamedBase:
    """A base model as a configuration names it.

    Args:
        name: As ``model.base``.
        directory: The directory that a relative path in it is relative to.
    """

    name: str
    directory: Path


@dataclass(frozen=True)
class BaseFinding:
    """Finding about a base model: what is wrong with it; nothing where the sentence is empty."""

    base: NamedBase
    sentence: str = ""
    is_missing: bool = False
    """Whether the model is not on this machine."""


def find_missing(base: NamedBase, key: str) -> BaseFinding | None:
    """The finding that a base model is not on this machine, from names alone; None if it is.

    Args:
        base: The model.
        key: The key that opens the list of models.
    """
    if is_model_here(base.name, base.directory):
        return None
    entry, near = model_entry(base.name), close_name(base.name)
    guess = f" (did you mean {one_line(near, 60)}?)" if near is not None else ""
    way = f"{key} picks one"
    if entry is not None:
        way += f" or fetches it, as 'localtune-tui fetch {entry}' does"
    return BaseFinding(base, f"There is no model {one_line(base.name, 100)} here{guess}; {way}.", is_missing=True)


def check_base(base: NamedBase, key: str) -> BaseFinding:
    """Look a base model up, and check its description; in a thread, as a helper process reads it.

    Args:
        base: The model.
        key: The key that opens the list of models.
    """
    if (missing := find_missing(base, key)) is not None:
        return missing
    from core.models.sandboxed import check_base as check

    try:
        check(base.name, base.directory)
    except UserError as error:
        # Named as in the configuration, which is nearer to the eye than its directory.
        return BaseFinding(base, str(error).replace(str(base.directory.absolute() / base.name), base.name))
    except (OSError, ValueError):
        # A lookup that fails leaves the fact unknown; the run reports what it needs.
        pass
    return BaseFinding(base)
