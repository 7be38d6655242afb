"""Earlier runs to begin from: the newest run like a configuration, a new configuration from a run, and the base models
on this machine.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.config.document import ConfigDocument
from core.config.files import recent_configs
from core.config.schema import options
from core.errors import UserError
from core.hub_uri import short_name
from core.paths import user_path, working_directory
from core.runs.catalog.trained import find_trained
from core.runs.record.sentences import slug_of
from core.runs.record.state import in_words
from core.runs.record.store import Run, list_runs, make_slug

if TYPE_CHECKING:
    from core.models.inspection import ModelFacts
    from core.models.places import FoundModel, UnreadPlace

#: Most runs examined, newest first.
LOOKED_AT = 100


@dataclass(frozen=True)
class Origin:
    """An earlier run that a configuration comes from, or whose values it may take."""

    run: Run
    values: Mapping[str, Any]
    """The values of the run, ``section.key`` to value; they stay known after it is deleted."""

    @classmethod
    def of(cls, run: Run) -> Origin:
        """The origin for a run, whose configuration may have become unreadable."""
        return cls(run, run.values())

    def covers(self, document: ConfigDocument) -> bool:
        """True if a configuration still trains on the run's data, so that it takes the run's name."""
        return document.path is None and document.get("data.train") == self.values.get("data.train")


def newest_like(name: str, model: str) -> Origin | None:
    """The newest run with a configuration's name, else the newest with its model; None if there is neither.

    Args:
        name: Name of a run of the configuration, as for :func:`~core.runs.record.store.create_run`.
        model: ``model.base`` as a run resolves it.
    """
    alike: Origin | None = None
    for run in itertools.islice(list_runs(), LOOKED_AT):
        is_named_so = is_named(run.id, name)
        if not is_named_so and alike is not None:
            continue
        found = Origin.of(run)
        if is_named_so and found.values:
            return found
        if found.values.get("model.base") == model:
            alike = found
    return alike


def is_named(identity: str, name: str) -> bool:
    """True if :func:`~core.runs.record.store.create_run` makes the run's id from a name."""
    slug = slug_of(identity)
    return slug != identity and re.fullmatch(rf"{re.escape(make_slug(name))}(-\d+)?", slug) is not None


def begin_from(run: Run) -> ConfigDocument:
    """A new configuration with a run's own values; options at their default are left out.

    Raises:
        UserError: If ``run.toml`` is missing or is not TOML.
    """
    document = ConfigDocument(ConfigDocument.load(run.own_config_path).dumps())
    if document.problems():
        # Written by another version, or by hand: the user sees it as it is.
        return document
    for option in options():
        if not option.required and document.get(option.name) == option.default:
            document.set(option.name, None)
    return document


def train_further(run: Run, step: int | None = None) -> ConfigDocument:
    """A new configuration that trains the result of an ended run further: the run's own, at half its learning rate.

    Args:
        run: The run.
        step: The step of a checkpoint; the result by default.

    Raises:
        UserError: If the run is live, or has no such result.
    """
    state = run.state()
    if not state.is_over:
        raise UserError(
            f"Run {run.id} {in_words(state.state)}; only an ended run is trained further.",
            f"Stop it first with 'localtune-tui stop {run.id}'.",
        )
    trained, document = find_trained(run, step), begin_from(run)
    if trained.weights is not None:
        raise UserError(
            f"A checkpoint of run {run.id} has only some of the model's weights, and is no base to train further.",
            f"'localtune-tui continue {run.id}' trains it to its end.",
        )
    document.set("model.base", trained.base)
    document.set("model.adapter", None if trained.adapter is None else str(trained.adapter))
    document.set("train.learning_rate", trained.config.train.learning_rate / 2)
    return document


def run_name(document: ConfigDocument, origin: Origin | None = None) -> str:
    """The name of a run of a configuration, after its file, its origin, or its data; may be empty."""
    if document.path is not None:
        return document.path.stem
    if origin is not None and origin.covers(document):
        return slug_of(origin.run.id)
    train = document.get("data.train")
    first = train[0] if isinstance(train, list) and train else train
    return short_name(first) if isinstance(first, str) else ""


def belongs(run: Run, document: ConfigDocument, origin: Origin | None = None) -> bool:
    """True if a run belongs to a configuration by its name; every run belongs to an empty configuration."""
    name = run_name(document, origin)
    return not name or (origin is not None and origin.run == run and origin.covers(document)) or is_named(run.id, name)


def read_run(path: str) -> Run | None:
    """The run in a directory; None if it is gone."""
    try:
        run = Run(Path(path))
        return run if path and run.config_path.is_file() else None
    except (OSError, ValueError):
        return None


#: Usual directory of a user's models.
_OWN = "~/models"
#: Most files of a directory whose changes are noticed.
_MOST_FILES = 2000

_Stamp = tuple[tuple[str, int, int], ...]


class ModelCatalog:
    """The base models on this machine; may be used from any thread."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[_Stamp, ModelFacts]] = {}

    def find(self, directory: Path, stop: Callable[[], bool] = lambda: False) -> Iterator[FoundModel | UnreadPlace]:
        """Find the models without reading them; see :func:`core.models.places.find_models`.

        Args:
            directory: The directory of the configuration.
            stop: True once the search has been cancelled.
        """
        from core.models.places import find_models

        return find_models(search_places(directory), stop)

    def read(self, model: FoundModel) -> ModelFacts:
        """Facts of a model; blocks. An unreadable model has a flaw."""
        from core.models.inspection import STARTER_FACTS, ModelFacts
        from core.models.sandboxed import inspect_model

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
    """Directories to search: the working directory, that of the configuration, and those with models."""
    found = [working_directory(), directory.absolute(), user_path(_OWN), *(base.parent for base in used_bases())]
    return list(dict.fromkeys(found))


def used_bases() -> list[Path]:
    """Existing paths of models that earlier runs and configurations name."""
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
    """Names, sizes and times of a model's files, to notice a change.

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
                # A broken link.
                found.append((entry.name, -1, 0))
    return tuple(sorted(found))
