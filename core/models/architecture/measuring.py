"""Measurements of models whose families the tables do not know: by a helper process, cached in the home.

The process (:mod:`core.worker.measure.job`) builds the model from its ``config.json`` without weights. It has
limits of memory and time, and ends with this process. Results are cached by everything that they depend on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from core.atomic import write_atomic
from core.errors import UserError
from core.jobs.job import JobProgress, call
from core.models.architecture.architecture import Architecture
from core.models.architecture.measured import FORMAT, Passes, passes_from_dict
from core.paths import home, make_private_dir
from core.redact import is_secret_name
from core.sandbox.limits import is_confined
from core.small_files import read_json

PROGRAM = "core.worker.job measure-model"
#: Limits of the process: bytes of memory, and seconds of processor time. The largest models take a fifth of either.
MEMORY, SECONDS = 6 << 30, 300
#: Largest file of the cache.
_CACHE_LIMIT = 4 << 20
#: Packages whose versions decide what is measured.
_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
#: Most measurements kept in this process.
_REMEMBERED = 64

#: Told what goes on while something is measured: an activity, and the seconds so far.
Told = Callable[[str, float], None]

_told: ContextVar[Told | None] = ContextVar("told", default=None)
_remembered: dict[str, Any] = {}
_turn = threading.Lock()


@dataclass(frozen=True)
class Unmeasured:
    """A model whose family the tables do not know.

    Args:
        description: Content of its ``config.json``.
        where: Name of the model in messages.
    """

    description: str
    where: str


@contextlib.contextmanager
def telling(told: Told) -> Iterator[None]:
    """A context, of one thread, in which somebody is told of measurements while they go on.

    Args:
        told: Called about twice a second; it may raise to give up.
    """
    token = _told.set(told)
    try:
        yield
    finally:
        _told.reset(token)


def measure_architecture(model: Unmeasured) -> Architecture:
    """The structure of a model, measured or from the cache; blocks for seconds.

    Raises:
        UserError: If it cannot be built.
    """
    job = {"description": model.description, "where": model.where}
    found: Architecture = _found(job, "architecture", architecture_from_dict)
    return found


def measure_passes(
    architecture: Architecture, config: Mapping[str, Any], how: Mapping[str, Any], *, cached_only: bool = False
) -> Passes | None:
    """What the layers of a model keep and take in a run, measured or from the cache; blocks for seconds.

    Args:
        architecture: Of :func:`measure_architecture`.
        config: Sections of the configuration that it depends on.
        how: Fields of the arithmetic.
        cached_only: Look into the cache alone.

    Returns:
        None if it is not in the cache, and nothing else is to be looked at.

    Raises:
        UserError: If it cannot be measured.
    """
    job: dict[str, Any] = {
        "description": architecture.description,
        "where": f"A model of the family {architecture.family}",
        "config": dict(config),
        "how": dict(how),
    }
    found: Passes | None = _found(job, "passes", passes_from_dict, cached_only=cached_only)
    return found


def _found(job: dict[str, Any], name: str, read: Callable[[Any], Any], *, cached_only: bool = False) -> Any:
    key = _key(job, name)
    if key in _remembered:
        return _remembered[key]
    # One at a time: each takes a core and half a gigabyte.
    with _turn:
        if key in _remembered:
            return _remembered[key]
        path = home() / "cache" / "measured" / f"{name}-{key}.json"
        found = _read(path, key, read)
        if found is None:
            if cached_only:
                return None
            values = _run({**job, "memory": MEMORY, "seconds": SECONDS})[name]
            found = read(values)
            _write(path, key, values)
        while len(_remembered) >= _REMEMBERED:
            del _remembered[next(iter(_remembered))]
        _remembered[key] = found
        return found


def _key(job: Mapping[str, Any], name: str) -> str:
    depends = {key: value for key, value in job.items() if key != "where"}
    what = [FORMAT, name, depends, [_version(package) for package in _PACKAGES]]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _read(path: Path, key: str, read: Callable[[Any], Any]) -> Any:
    """A result from the cache; None if there is none, or it is torn or foreign."""
    try:
        content = read_json(path, _CACHE_LIMIT, finite=False)
        return read(content["value"]) if content["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None


def _write(path: Path, key: str, values: Any) -> None:
    # A full or read-only home only costs another measurement.
    with contextlib.suppress(OSError, UserError):
        make_private_dir(path.parent)
        write_atomic(path, json.dumps({"key": key, "value": values}) + "\n", durable=False)


def _run(job: dict[str, Any]) -> dict[str, Any]:
    """Run the process to its end.

    Raises:
        UserError: If it fails.
    """
    if is_confined():
        raise UserError(f"{job['where']} has to be measured, which this process may not do.")
    environment = {name: value for name, value in os.environ.items() if not is_secret_name(name)}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    told, started = _told.get(), time.monotonic()

    def progress(at: JobProgress) -> None:
        if told is not None:
            told(at.activity, time.monotonic() - started)

    return call(
        "the measurement of the model",
        PROGRAM,
        job,
        progress,
        hint="If memory ran out, close other programs; or choose another model.",
        beats=True,
        environment=environment,
    )


_ARCHITECTURE = TypeAdapter(Architecture)


def architecture_to_dict(architecture: Architecture) -> dict[str, Any]:
    """A structure as JSON has it."""
    found: dict[str, Any] = _ARCHITECTURE.dump_python(architecture, mode="json")
    return found


def architecture_from_dict(values: Mapping[str, Any]) -> Architecture:
    """A structure from JSON.

    Raises:
        ValueError: If it is none.
    """
    try:
        return _ARCHITECTURE.validate_python(dict(values))
    except ValidationError as error:
        raise ValueError("not the structure of a model") from error
