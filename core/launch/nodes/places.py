"""Paths of a configuration on another machine: the same ones, or the same ones from the user's home."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from core import paths
from core.config.schema import Config
from core.hub_uri import is_hub_entry


@dataclass(frozen=True)
class Places:
    """The directories of a machine that paths may begin with.

    Args:
        store: The home of localtune.
        user: The user's home.
    """

    store: str
    user: str

    @classmethod
    def here(cls) -> Places:
        """Those of this machine."""
        return cls(str(paths.home()), os.path.expanduser("~"))

    def to_dict(self) -> dict[str, str]:
        """As JSON."""
        return asdict(self)


def localized(config: Config, there: Places, here: Places) -> Config:
    """A configuration of another machine with the paths that it has on this one.

    A path that exists stays; one in the other machine's home becomes the same one in this home, if it exists.

    Args:
        config: The configuration, its paths absolute.
        there: The directories of the machine that it is from.
        here: Those of this machine.
    """

    def moved(path: str) -> str:
        return _moved(path, there, here)

    data = {"train": _each(config.data.train, moved), "eval": _each(config.data.eval, moved)}
    update: dict[str, Any] = {
        "data": config.data.model_copy(update=data),
        "model": config.model.model_copy(update={"base": moved(config.model.base)}),
    }
    if config.template.file:
        update["template"] = config.template.model_copy(update={"file": moved(config.template.file)})
    if config.eval.prompts:
        update["eval"] = config.eval.model_copy(update={"prompts": moved(config.eval.prompts)})
    return config.model_copy(update=update)


def _each(value: str | list[str] | None, moved: Callable[[str], str]) -> str | list[str] | None:
    if value is None or isinstance(value, str):
        return None if value is None else moved(value)
    return [moved(item) for item in value]


def _moved(path: str, there: Places, here: Places) -> str:
    # What stands behind # is an entry or a split of the file, not of its name.
    if not os.path.isabs(path) or is_hub_entry(path) or _exists(path):
        return path
    for old, new in ((there.store, here.store), (there.user, here.user)):
        inside = os.path.relpath(path, old)
        if not inside.startswith(os.pardir) and _exists(found := os.path.join(new, inside)):
            return found
    return path


def _exists(path: str) -> bool:
    return os.path.exists(path) or os.path.exists(path.rpartition("#")[0])
