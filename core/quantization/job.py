"""The measurement as a job in its own process, with results cached in the home until model, rows or settings change."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core import paths
from core.atomic import write_atomic
from core.config.schema import Config
from core.config.targets import kept_patterns
from core.data.registries.resolve import flat_sources
from core.directories import Progress
from core.errors import UserError
from core.export.job import run_process
from core.memory.planner import make_least_plan
from core.models.find import locate_model
from core.models.sandboxed import load_architecture
from core.quantization.result import FINE, ROWS, QuantizationCost, is_enough, kept_sentence, most_costly, sentence
from core.runs.outlook.forecast import machine_for
from core.small_files import read_json

PROGRAM = "core.worker.job measure-4-bits"
#: Version of the results; raised when they change.
VERSION = 1
#: Newest results kept.
KEPT = 64
_LIMIT = 1 << 20
#: Share of the memory beyond the run's minimum that layers in 16 bit may take.
SHARE = 0.9


def measure(config: Config, progress: Progress, *, rows: int = ROWS) -> QuantizationCost:
    """Measure the cost of four bits on the rows of a configuration, or recall it.

    Args:
        config: The configuration, paths absolute.
        progress: Called at least twice a second; may raise to give up, which ends the process.
        rows: Rows that are measured at most.

    Raises:
        UserError: If the base is not here, the rows cannot be read, or memory is short.
    """
    progress("planning the memory", None, None)
    free = free_bytes(config)
    if (found := recall(config, free, rows=rows)) is not None:
        return found
    key = _key(config, rows)
    job = {"directory": str(paths.home()), "config": config.model_dump(mode="json"), "rows": rows, "free_bytes": free}
    answer = run_process(PROGRAM, job, "the measurement of 4 bits", progress, "Close other programs, or lower --rows.")
    cost = QuantizationCost.from_dict(answer)
    _keep(key, answer)
    return cost


def remember(config: Config, cost: QuantizationCost, *, rows: int = ROWS) -> None:
    """Cache a result measured by a run itself.

    Args:
        config: As for :func:`measure`.
        cost: The result.
        rows: As for :func:`measure`.
    """
    _keep(_key(config, rows), cost.to_dict())


def known(config: Config, *, rows: int = ROWS) -> QuantizationCost | None:
    """The result of an earlier measurement; None if there is none.

    It only looks at files, but for large directories it may take a moment.

    Args:
        config: As for :func:`measure`.
        rows: The same.
    """
    key = _key(config, rows)
    if key is None:
        return None
    with contextlib.suppress(OSError, UserError, ValueError, KeyError, TypeError):
        return QuantizationCost.from_dict(read_json(_path(key), _LIMIT, finite=False))
    return None


def recall(config: Config, free: int | None, *, rows: int = ROWS) -> QuantizationCost | None:
    """An earlier measurement whose advice still holds; None if there is none.

    Args:
        config: As for :func:`measure`.
        free: Bytes available for layers in 16 bit; None if unknown.
        rows: As for :func:`measure`.
    """
    found = known(config, rows=rows)
    return found if found is not None and _suits(found, free) else None


def known_sentence(config: Config) -> str:
    """The known cost of four bits from earlier measurements, in a sentence; empty if there are none.

    If layers were measured in 16 bit as well, it states their benefit.
    """
    if config.method.name != "qlora":
        return ""
    if (cost := known(config)) is not None:
        return sentence(cost)
    patterns = kept_patterns(config.model.keep_16bit)
    plain = config.model_copy(update={"model": config.model.model_copy(update={"keep_16bit": None})})
    cost = known(plain) if patterns else None
    return kept_sentence(cost) if cost is not None and cost.kept is not None and cost.kept.patterns == patterns else ""


def free_bytes(config: Config) -> int | None:
    """Memory available for layers in 16 bit: free memory beyond the minimum plan of a run with ``qlora``, less a
    reserve; None if unknown."""
    quantized = config.model_copy(update={"method": config.method.model_copy(update={"name": "qlora"})})
    with contextlib.suppress(UserError):
        plan = make_least_plan(load_architecture(locate_model(config.model.base)), quantized, machine_for(config))
        if plan.limit_bytes is not None:
            return int(max(plan.limit_bytes - plan.needed_bytes, 0) * SHARE)
    return None


def _suits(cost: QuantizationCost, free: int | None) -> bool:
    """True if an earlier result would be chosen again within the memory of now.

    Layers are taken in the order of their cost per byte, as far as they fit. So another amount of memory changes the
    choice only if it ends that order elsewhere, and the layers before its end were not enough.
    """
    kept, bound = cost.kept, cost.free_bytes
    if kept is not None and free is not None and kept.bytes > free:
        return False
    if cost.whole.kl <= FINE or (kept is not None and is_enough(cost.whole.kl, kept.figures.kl)):
        return True
    is_smaller = bound is None or (free is not None and free <= bound)
    return is_smaller or most_costly(cost.layers, 1.0, free) == most_costly(cost.layers, 1.0, bound)


def _path(key: str) -> Path:
    return paths.home() / "cache" / "quantization" / f"{key}.json"


def _keep(key: str | None, result: dict[str, Any]) -> None:
    if key is None:  # files went missing meanwhile
        return
    path = _path(key)
    with contextlib.suppress(OSError):  # it is measured again then
        paths.make_private_dir(path.parent)
        write_atomic(path, json.dumps(result))
        others = sorted(path.parent.glob("*.json"), key=lambda each: each.stat().st_mtime_ns, reverse=True)
        for old in others[KEPT:]:
            old.unlink(missing_ok=True)


def _key(config: Config, rows: int) -> str | None:
    """Hash of everything the result depends on: model and row files by their times, and the settings; None if files
    are missing."""
    dumped = config.model_dump(mode="json")
    train, hardware = dumped["train"], dumped["hardware"]
    try:
        facts: list[Any] = [
            *(VERSION, rows, dumped["model"]["base"], kept_patterns(config.model.keep_16bit)),
            *(dumped["data"], dumped["template"], dumped["eval"]["max_rows"]),
            *(train[name] for name in ("max_length", "precision", "seed", "objective")),
            *(hardware["device"], hardware["gpu"]),
            list(_identities(locate_model(config.model.base))),
        ]
        for references in (config.data.train, config.data.eval):
            if references is None:
                continue
            for source in flat_sources(references, config.data.format, config.data.columns):
                facts += _identities(source.path)
        if config.template.file is not None:
            facts += _identities(Path(config.template.file))
    except (OSError, UserError):
        return None
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _identities(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, size and mtime of a file, or of all files in a directory."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    for file in files:
        status = file.stat()
        yield str(file), status.st_size, status.st_mtime_ns
