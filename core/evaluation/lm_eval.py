"""Benchmarks by ``lm-eval``, EleutherAI's harness, as a separate program: started offline, its results read and kept.
It is not installed with this program, but in its own environment."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from core.atomic import write_atomic
from core.directories import disk_error
from core.errors import UserError
from core.evaluation.record import HARNESS_SUFFIX, folder_of, free_path, make_folder
from core.hub.job import OFFLINE
from core.jobs.job import Job, JobProgress
from core.launch.launcher import worker_environment
from core.models.find import find_model
from core.runs.catalog.trained import TrainedModel
from core.runs.record.events import as_json
from core.runs.record.store import Run
from core.small_files import read_small
from core.text import one_line

#: The program's names on the path, by preference.
PROGRAMS = ("lm_eval", "lm-eval")
_RESULTS_LIMIT = 64 << 20
_TASK = re.compile(r"[\w.+/-]{1,200}", re.ASCII)
#: Special characters of the harness in the value of a model argument.
_ACTED_ON = frozenset(",=\"'[](){}")
_OFFLINE_HINT = "It works offline here: fetch the data of its tasks first, or name tasks of your own (--include)."
_INSTALL = "Install it in an environment of its own: uv tool install 'lm-eval[hf]', or pipx install 'lm-eval[hf]'."


@dataclass(frozen=True)
class Figure:
    """A figure of a task."""

    task: str
    metric: str
    """As the harness names it: ``acc``, ``exact_match``."""
    filter: str
    """Filter of the answers: ``none``, ``strict-match``."""
    value: float
    stderr: float | None


@dataclass(frozen=True)
class HarnessResult:
    """Figures of a benchmark, measured by lm-eval."""

    figures: tuple[Figure, ...]
    version: str
    path: Path
    """Its file."""


@dataclass(frozen=True)
class HarnessModel:
    """A model as the harness loads it."""

    name: str
    pretrained: Path
    peft: Path | None = None
    tokenizer: Path | None = None
    run: Run | None = None


def find_program() -> list[str]:
    """The beginning of its command line: the program on the path, else the module in this environment.

    Raises:
        UserError: If it is not installed.
    """
    for name in PROGRAMS:
        if (found := shutil.which(name)) is not None:
            return [found]
    if importlib.util.find_spec("lm_eval") is not None:
        return [sys.executable, "-m", "lm_eval"]
    raise UserError("lm-eval is not installed.", _INSTALL)


def model_of(trained: TrainedModel, name: str) -> HarnessModel:
    """A trained model as the harness loads it: a model's directory, or a base with an adapter in PEFT's format. The
    base is loaded in 16 bits, whatever it was trained on.

    Raises:
        UserError: If the harness cannot load it.
    """
    if trained.weights is not None:
        raise UserError(
            f"{name} is a checkpoint that holds trained weights alone, which lm-eval does not load.",
            "Take the result of the run, or export the checkpoint: localtune-tui export RUN@STEP --to merged.",
        )
    if trained.file is not None:
        raise UserError(
            f"{name} was trained with the weights of a {trained.file.type} file, which lm-eval does not make.",
            "Export it as merged, which holds them, and name that directory.",
        )
    base = _directory(trained.base)
    if trained.adapter is None:
        return HarnessModel(name, base, run=trained.run)
    tokenizer = trained.adapter if (trained.adapter / "tokenizer_config.json").is_file() else None
    return HarnessModel(name, base, trained.adapter, tokenizer, trained.run)


def plain_model(name: str) -> HarnessModel:
    """A model without a run, such as a merged export.

    Raises:
        UserError: If it is missing, or not a directory.
    """
    return HarnessModel(one_line(name, 80), _directory(name))


def _directory(name: str) -> Path:
    found = find_model(name)
    if found is None or not (found / "config.json").is_file():
        raise UserError(
            f"{one_line(name, 120)} is not a directory of a model, which is what lm-eval loads.",
            "Export it: localtune-tui export RUN --to merged.",
        )
    return found


def read_tasks(text: str) -> list[str]:
    """The names in ``--tasks``.

    Raises:
        UserError: If there is none, or an invalid one.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError("No task is named.", "Name some: --tasks arc_easy,hellaswag.")
    for name in names:
        if _TASK.fullmatch(name) is None or name.startswith("-"):
            raise UserError(
                f"{one_line(name, 80)} is not the name of a task.", "Names have letters, digits and _ . + / -."
            )
    return names


@dataclass(frozen=True)
class HarnessRun:
    """A run of the harness.

    Args:
        model: The model that it measures.
        tasks: Names of tasks.
        limit: Rows of each task; None for all.
        include: A directory with tasks of the user's own.
        device: As ``hardware.device``.
    """

    model: HarnessModel
    tasks: Sequence[str]
    limit: int | None = None
    include: Path | None = None
    device: str = "auto"

    def command(self) -> list[str]:
        """Its command line, without the place of its results.

        Raises:
            UserError: If it is not installed, or a path cannot be passed to it.
        """
        arguments = {"pretrained": self.model.pretrained, "peft": self.model.peft, "tokenizer": self.model.tokenizer}
        told = []
        for key, path in arguments.items():
            if path is None:
                continue
            if acted_on := set(str(path)) & _ACTED_ON:
                raise UserError(
                    f"lm-eval cannot be told the path {one_line(str(path), 200)}: it reads {min(acted_on)} in it.",
                    "Move it, or make a link to it whose path has none.",
                )
            told.append(f"{key}={path}")
        words = [*find_program(), "--model", "hf", "--model_args", ",".join([*told, "dtype=auto"])]
        words += ["--tasks", ",".join(self.tasks), "--apply_chat_template"]
        words += ["--limit", str(self.limit)] if self.limit is not None else []
        words += ["--include_path", str(self.include)] if self.include is not None else []
        return words + (["--device", "cpu"] if self.device == "cpu" else [])

    def job(self) -> Job[JobProgress, HarnessResult]:
        """The run as a job, whose progress is each line that the harness writes."""
        return Job("lm-eval", self._run, _OFFLINE_HINT)

    def _run(self, job: Job[JobProgress, HarnessResult]) -> HarnessResult:
        # Nothing is created in the run before the program is found.
        command, folder = self.command(), folder_of(self.model.run)
        make_folder(folder)
        try:
            with tempfile.TemporaryDirectory(prefix=".lm-eval-", dir=folder) as directory:
                output = Path(directory)
                # It may have its own environment: a helper's PYTHONPATH would put this program's packages before it.
                words = ["env", "-u", "PYTHONPATH", "-u", "PYTHONSAFEPATH", *command, "--output_path", str(output)]
                environment = worker_environment() | OFFLINE
                job.watch(words, lambda line: job.report(JobProgress(line)), environment=environment, cwd=output)
                figures, version = read_results(output)
                return HarnessResult(figures, version, self._keep(folder, figures, version))
        except OSError as error:
            raise disk_error(folder, error) from error

    def _keep(self, folder: Path, figures: Sequence[Figure], version: str) -> Path:
        path = free_path(folder, f"{datetime.now():%Y%m%d-%H%M%S}", HARNESS_SUFFIX)
        record = {
            "version": 1,
            "created": time.time(),
            "model": self.model.name,
            "tasks": list(self.tasks),
            "limit": self.limit,
            "harness": version,
            "figures": [asdict(figure) for figure in figures],
        }
        write_atomic(path, json.dumps(as_json(record), indent=1, allow_nan=False) + "\n")
        return path


def read_results(output: Path) -> tuple[tuple[Figure, ...], str]:
    """The figures that the harness has written, and its version.

    Raises:
        UserError: If there are none.
    """
    found = sorted(output.rglob("results*.json"), key=lambda path: path.name)
    try:
        data: Any = json.loads(read_small(found[-1], _RESULTS_LIMIT))
        figures = [figure for task, values in data["results"].items() for figure in _figures(task, values)]
        version = one_line(str(data.get("lm_eval_version", "")), 40)
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(
            "lm-eval has written no results that can be read.", "Look whether its version is 0.4 or newer."
        ) from error
    if not figures:
        raise UserError("lm-eval has measured nothing.", "Name tasks that it has: 'lm_eval ls tasks'.")
    return tuple(figures), version


def _figures(task: str, values: dict[str, Any]) -> list[Figure]:
    """The figures of a task: keys are ``metric,filter``, with ``metric_stderr,filter`` beside them."""
    found = []
    for key, value in values.items():
        metric, comma, name = key.partition(",")
        if not comma or metric.endswith("_stderr") or isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if not math.isfinite(value):
            continue
        error = values.get(f"{metric}_stderr,{name}")
        stderr = float(error) if isinstance(error, (int, float)) and math.isfinite(error) else None
        found.append(Figure(one_line(task, 80), one_line(metric, 60), one_line(name, 60), float(value), stderr))
    return found
