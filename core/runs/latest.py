"""Newest similar run: the last run of a configuration, and the values that it was started with."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.runs.names import slug_of
from core.runs.store import Run, list_runs, make_slug

#: Most runs examined, newest first.
LOOKED_AT = 100


@dataclass(frozen=True)
class LikeRun:
    """A run and the options that it was started with, ``section.key`` to value."""

    run: Run
    values: Mapping[str, Any]


def newest_like(name: str, model: str) -> LikeRun | None:
    """The newest run with a configuration's name, else the newest with its model; None if there is neither.

    Args:
        name: Name of a run of the configuration, as for :func:`~core.runs.store.create_run`.
        model: ``model.base`` as a run resolves it.
    """
    alike: LikeRun | None = None
    for run in itertools.islice(list_runs(), LOOKED_AT):
        is_named_so = is_named(run.id, name)
        if not is_named_so and alike is not None:
            continue
        values = run.values()
        if not values:
            continue
        if is_named_so:
            return LikeRun(run, values)
        if values.get("model.base") == model:
            alike = LikeRun(run, values)
    return alike


def is_named(identity: str, name: str) -> bool:
    """Whether a run's id is one that :func:`~core.runs.store.create_run` makes of a name."""
    slug = slug_of(identity)
    return slug != identity and re.fullmatch(rf"{re.escape(make_slug(name))}(-\d+)?", slug) is not None
