"""Model catalog: the base models on this machine, and what each of them is; unchanged ones are read once."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from core.config.document import ConfigDocument
from core.config.recent import recent_configs
from core.errors import UserError
from core.models.inspection import STARTER_FACTS, ModelFacts
from core.models.places import FoundModel, UnreadPlace, find_models
from core.models.sandboxed import inspect_model
from core.paths import user_path, working_directory
from core.runs.store import list_runs

#: Most runs whose models are looked at, newest first.
LOOKED_AT = 100
#: A directory of the user's own that is searched.
_OWN = "~/models"
#: Most files of a directory whose changes are noticed.
_MOST_FILES = 2000

_Stamp = tuple[tuple[str, int, int], ...]


class ModelCatalog:
    """The base models on this machine; may be used from any thread."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[_Stamp, ModelFacts]] = {}

    def find(self, directory: Path, stop: Callable[[], bool] = lambda: False) -> Iterator[FoundModel | UnreadPlace]:
        """Find the models, as yet unread; see :func:`core.models.places.find_models`.

        Args:
            directory: The directory of the configuration.
            stop: Whether the search has been given up.
        """
        return find_models(search_places(directory), stop)

    def read(self, model: FoundModel) -> ModelFacts:
        """Read what a model is; blocks. One that cannot be read has a flaw."""
        if model.source == "starter":
            return STARTER_FACTS
        try:
            stamp = _stamp(model.path)
        except OSError as error:
            return ModelFacts(flaw=f"{model.path} cannot be read: {error.strerror}.", hint="Check its permissions.")
        known = self._known.get(model.path)
        if known is None or known[0] != stamp:
            known = self._known[model.path] = (stamp, inspect_model(model.path))
        return known[1]


def search_places(directory: Path) -> list[Path]:
    """Directories to search: the working one, the configuration's, the user's models, and those of earlier models."""
    found = [working_directory(), directory.absolute(), user_path(_OWN), *(base.parent for base in used_bases())]
    return list(dict.fromkeys(found))


def used_bases() -> list[Path]:
    """Paths of models that earlier runs and configurations name, those that are there."""
    named: list[tuple[str, Path]] = []
    for run in itertools.islice(list_runs(), LOOKED_AT):
        base = run.values().get("model.base")
        if isinstance(base, str):
            named.append((base, run.path))
    for path in recent_configs():
        with suppress(UserError):
            base = ConfigDocument.load(path).get("model.base")
            if isinstance(base, str):
                named.append((base, path.parent))
    whole = dict.fromkeys(os.path.normpath(directory / user_path(base)) for base, directory in named)
    return [Path(text) for text in whole if _exists(text)]


def _exists(text: str) -> bool:
    try:
        return os.path.exists(text)
    except ValueError:
        return False


def _stamp(path: Path) -> _Stamp:
    """The state of a model's files, to notice a change.

    Raises:
        OSError: If it cannot be read.
    """
    if not os.path.isdir(path):
        facts = os.stat(path)
        return (("", facts.st_size, facts.st_mtime_ns),)
    found = []
    with os.scandir(path) as entries:
        for entry in itertools.islice(entries, _MOST_FILES):
            try:
                facts = entry.stat()
                found.append((entry.name, facts.st_size, facts.st_mtime_ns))
            except OSError:
                # A link that leads nowhere.
                found.append((entry.name, -1, 0))
    return tuple(sorted(found))
