"""Measured memory of a model: its layers' activations, measured by a helper process and cached in the home.

The process (:mod:`core.worker.measure.job`) builds the model from its ``config.json`` without weights. Its memory and
time are limited, and it ends with this process. Results are cached by all of their inputs. Layers are measured at a few
sizes of a micro-batch; between and beyond them memory grows by the terms of :class:`Growth`. All sizes are in bytes.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from core.atomic import write_atomic
from core.errors import UserError
from core.jobs.job import JobProgress, call
from core.models.architecture.architecture import (
    Architecture,
    UnknownFamilyError,
    Unmeasured,
    complete,
    read_architecture,
    read_model,
    read_towers,
)
from core.models.description import is_composite
from core.models.installed import check_known, missing_kernels, version_of
from core.models.published import Published
from core.paths import home, make_private_dir
from core.redact import is_secret_name
from core.sandbox.limits import is_confined
from core.small_files import read_json

PROGRAM = "core.worker.job measure-model"
#: Limits of the process: bytes of memory, and seconds of processor time. The largest models take a fifth of either.
MEMORY, SECONDS = 6 << 30, 300
#: Largest file of the cache.
_CACHE_LIMIT = 4 << 20
#: Packages whose versions decide the results.
_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
#: Most results kept in this process.
_REMEMBERED = 64
#: Version of the format of results; results of another version are measured again.
FORMAT = 9

#: Listener of a measurement: the activity, and the seconds so far.
Told = Callable[[str, float], None]

_told: ContextVar[Told | None] = ContextVar("told", default=None)
_remembered: dict[str, Any] = {}
_turn = threading.Lock()


@dataclass(frozen=True)
class Growth:
    """Growth of a size with the micro-batch.

    Args:
        once: Constant part.
        per_token: For each token, padding included.
        per_pair: For each pair of tokens of a row.
        per_column: For each token of a row, whatever the number of rows: tables of positions.
        per_square: For each pair of tokens of a row, whatever the number of rows: masks.
        per_row: For each row, whatever its tokens: negative where the last piece of a row keeps less than others, as in
            scans over a state.
    """

    once: float = 0.0
    per_token: float = 0.0
    per_pair: float = 0.0
    per_column: float = 0.0
    per_square: float = 0.0
    per_row: float = 0.0

    def at(self, tokens: int, row: int) -> float:
        """Bytes at a size.

        Args:
            tokens: Tokens of the micro-batch, padding included.
            row: Tokens of a row, padding included.
        """
        grown = tokens * (self.per_token + row * self.per_pair) + row * (self.per_column + row * self.per_square)
        return self.once + grown + self.per_row * tokens / row


#: A peak: the largest of several moments counts.
Peak = tuple[Growth, ...]


def peak_at(peak: Peak, tokens: int, row: int) -> float:
    """Bytes of a peak at a size; see :meth:`Growth.at`."""
    return max((moment.at(tokens, row) for moment in peak), default=0.0)


@dataclass(frozen=True)
class LayerGrowth:
    """Memory of a layer of one kind, without its input, its output and the gradient of its output.

    Args:
        kind: Number of the kind.
        reached: Whether the layer's input needs a gradient.
        multiple: Tokens of the pieces that the layer takes a row in; a row counts as if it filled its last piece.
        kept: Kept for backward, the input among it if it is kept.
        casts: Kept beside the input if activations are recomputed.
        forward: Peak of the forward pass.
        backward: Peak of the backward pass with activations kept.
        again: Peak of the recomputation and the backward pass.
    """

    kind: int
    reached: bool
    multiple: int
    kept: Growth
    casts: Growth
    forward: Peak
    backward: Peak
    again: Peak


@dataclass(frozen=True)
class Regime:
    """Memory for rows up to a length, beyond which other kernels or masks are used.

    Args:
        longest: Longest row; None for any.
        around: Alive while the layers run: masks, positions, inputs that layers share.
        shared: Alive beside a layer that is recomputed: gradients of shared inputs, and states that others read.
        end: Kept for backward by the end of the decoder, its last norm.
        end_backward: Peak of its backward pass, kept tensors and gradients included.
        layers: Its layers.
    """

    longest: int | None
    around: Growth
    shared: Growth
    end: Growth
    end_backward: Peak
    layers: tuple[LayerGrowth, ...]

    def layer(self, kind: int, *, reached: bool) -> LayerGrowth:
        """Memory of a kind of layer.

        Args:
            kind: Its number.
            reached: Whether its input needs a gradient; if only the other case was measured, that is returned.
        """
        same = [layer for layer in self.layers if layer.kind == kind]
        return next((layer for layer in same if layer.reached is reached), same[0])


@dataclass(frozen=True)
class Passes:
    """Forward and backward passes of a model under a method and an arithmetic.

    Args:
        kinds: The kind of every decoder layer, in order.
        regimes: Regimes, shortest rows first; the last one is for any length.
        trained: Trained tensors: rows, columns and number of each shape; a vector has one column.
        targets: Adapted modules by the last part of their name, and their number.
        gradient_from: Number of the first layer that has trained parameters; -1 if the embeddings have.
    """

    kinds: tuple[int, ...]
    regimes: tuple[Regime, ...]
    trained: tuple[tuple[int, int, int], ...]
    targets: tuple[tuple[str, int], ...]
    gradient_from: int

    def regime(self, row: int) -> Regime:
        """The regime of rows of a length."""
        return next((one for one in self.regimes if one.longest is not None and row <= one.longest), self.regimes[-1])


class GivenUpError(Exception):
    """A measurement that is no longer wanted."""


@contextlib.contextmanager
def telling(told: Told | None = None, is_wanted: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Context in which measurements of this thread, and of threads it starts, report progress.

    Args:
        told: Called about twice a second.
        is_wanted: Called before; if it returns False, the measurement ends and raises :class:`GivenUpError`.
    """

    def listen(activity: str, seconds: float) -> None:
        if not is_wanted():
            raise GivenUpError
        if told is not None:
            told(activity, seconds)

    token = _told.set(listen)
    try:
        yield
    finally:
        _told.reset(token)


def load_architecture(path: Path) -> Architecture:
    """Load the architecture of a model; blocks for seconds if its family has to be measured.

    Args:
        path: A directory with ``config.json``, or a GGUF file.

    Raises:
        UserError: If it is not a model, or its shape cannot be determined.
    """
    found = read_model(path)
    return complete(measure_architecture(found), path) if isinstance(found, Unmeasured) else found


def published_architecture(model: Published) -> Architecture:
    """The architecture of a published model; blocks for seconds if its family has to be measured.

    Raises:
        UserError: If the installed transformers does not know its family.
    """
    config = model.config
    try:
        found = read_architecture(config, model.id)
    except UnknownFamilyError:
        check_known(config, Path(model.id))
        found = measure_architecture(Unmeasured(json.dumps(config, sort_keys=True), model.id))
    towers = read_towers(config) if is_composite(config) else None
    return replace(found, kernels=missing_kernels(config), towers=towers)


def measure_architecture(model: Unmeasured) -> Architecture:
    """The structure of a model, measured or from the cache; blocks for seconds.

    Raises:
        UserError: If it cannot be built.
    """
    job = {"description": model.description, "where": model.where}
    found: Architecture = _found(job, "architecture", _ARCHITECTURE.validate_python)
    return found


def measure_passes(
    architecture: Architecture, config: Mapping[str, Any], how: Mapping[str, Any], *, cached_only: bool = False
) -> Passes | None:
    """Passes of a model in a run, measured or from the cache; blocks for seconds.

    Args:
        architecture: The base model, with its description.
        config: Sections of the configuration that the passes depend on.
        how: Fields of the arithmetic.
        cached_only: Look into the cache alone.

    Returns:
        None if they are not in the cache and ``cached_only`` is set.

    Raises:
        UserError: If they cannot be measured.
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
    if (found := _recall(key, name, read)) is not None or cached_only:
        return found
    # Measurements take turns: each takes a core and half a gigabyte.
    with _turn:
        if (found := _recall(key, name, read)) is not None:
            return found
        values = _run({**job, "memory": MEMORY, "seconds": SECONDS})[name]
        found = read(values)
        _write(_path(key, name), key, values)
        return _remember(key, found)


def _recall(key: str, name: str, read: Callable[[Any], Any]) -> Any:
    """A result of this process or of the cache; None if there is none."""
    if key in _remembered:
        return _remembered[key]
    found = _read(_path(key, name), key, read)
    return found if found is None else _remember(key, found)


def _remember(key: str, found: Any) -> Any:
    while len(_remembered) >= _REMEMBERED:
        _remembered.pop(next(iter(_remembered)), None)
    _remembered[key] = found
    return found


def _path(key: str, name: str) -> Path:
    return _directory() / f"{name}-{key}.json"


def _directory() -> Path:
    return home() / "cache" / "measured"


def _key(job: Mapping[str, Any], name: str) -> str:
    depends = {key: value for key, value in job.items() if key != "where"}
    every = [FORMAT, name, depends, list(map(version_of, _PACKAGES))]
    return hashlib.sha256(json.dumps(every, sort_keys=True).encode()).hexdigest()[:32]


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


_ARCHITECTURE, _PASSES = TypeAdapter(Architecture), TypeAdapter(Passes)


def to_json(value: Architecture | Passes) -> dict[str, Any]:
    """A structure or passes as JSON."""
    adapter: TypeAdapter[Any] = _PASSES if isinstance(value, Passes) else _ARCHITECTURE
    found: dict[str, Any] = adapter.dump_python(value, mode="json")
    return found


def passes_from_dict(values: Mapping[str, Any]) -> Passes:
    """Passes from JSON.

    Raises:
        ValueError: If they are invalid or incomplete.
    """
    found = _PASSES.validate_python(dict(values))
    for regime in found.regimes:
        if not set(found.kinds) <= {layer.kind for layer in regime.layers}:
            raise ValueError("kinds without layers")
    if not found.kinds or not found.regimes:
        raise ValueError("no layers")
    return found
