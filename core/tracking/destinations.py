"""Destinations: how each tracker is opened, receives metrics, and is restored to the last confirmed position.

A library is imported only when its destination is opened, in the tracker's own process.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

from core.beneath import directory_beneath
from core.config.choices import Tracker
from core.directories import remove_tree
from core.errors import UserError
from core.tracking.position import FOLDER, TrackerFiles

#: Title of each tracker, by its package, which is also an extra of this project.
_TITLES: Mapping[Tracker, str] = {"wandb": "Weights & Biases", "tensorboard": "TensorBoard", "trackio": "trackio"}


def refuse_missing(tool: Tracker) -> None:
    """Refuse a tracker whose library is missing, with the command that installs it.

    Raises:
        UserError: If it is not installed.
    """
    if importlib.util.find_spec(tool) is None:
        raise UserError(f"{_TITLES[tool]} is not installed.", f"pip install 'localtune-tui[{tool}]'")


class Destination(ABC):
    """The destination of metrics.

    Args:
        place: The files of the tracker.
        project: ``tracking.project``.
        name: The run's name in the tracker.
        told: The part of the configuration that is sent to the tracker.
    """

    #: True if metrics are safe after a flush, and not only after the destination is closed.
    durable = False

    def __init__(self, place: TrackerFiles, project: str, name: str, told: dict[str, Any]) -> None:
        self.place = place
        self.project = project
        self.name = name
        self.told = told

    @abstractmethod
    def restore(self, memory: Mapping[str, Any], *, clean: bool) -> bool:
        """Undo everything sent after the remembered position.

        Args:
            memory: The result of :meth:`remember`.
            clean: Whether the destination was closed since then.

        Returns:
            False if only the whole run can be undone; it is then sent from its first event.
        """

    @abstractmethod
    def open(self) -> None:
        """Import the library and start or resume the run."""

    @abstractmethod
    def tell(self, figures: Mapping[str, float], step: int, time: float, row: int) -> None:
        """Log metrics.

        Args:
            figures: Metrics by name.
            step: The optimizer step.
            time: Unix seconds of the event.
            row: Number of sets of metrics before this one in the run.
        """

    def flush(self) -> None:
        """Make logged metrics safe, if the tracker can."""
        return

    @abstractmethod
    def close(self) -> None:
        """Make logged metrics safe, and close the destination."""

    def remember(self) -> dict[str, Any]:
        """The state that :meth:`restore` needs."""
        return {}


class TensorBoard(Destination):
    """An event file in TensorBoard's format; after a crash it is cut to the remembered size."""

    durable = True
    _file: BinaryIO
    _writer: Any
    _protos: Any
    _summaries: Any

    @property
    def path(self) -> Path:
        """The event file."""
        return self.place.data / "events.out.tfevents.0000000000.localtune"

    def restore(self, memory: Mapping[str, Any], *, clean: bool) -> bool:
        """Truncate the file to its confirmed size."""
        size = memory.get("size")
        try:
            descriptor = self.place.open(self.path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            kept = size if isinstance(size, int) and 0 <= size <= os.fstat(descriptor).st_size else None
            os.ftruncate(descriptor, kept or 0)
            return kept is not None
        finally:
            os.close(descriptor)

    def open(self) -> None:
        """Open the file; a new file begins with the format version, and the options for the tab HParams."""
        self._protos = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._summaries = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        records = importlib.import_module("tensorboard.summary.writer.record_writer")
        self._file = os.fdopen(self.place.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")
        self._writer = records.RecordWriter(self._file)
        if self._file.tell() == 0:
            begun = self.place.run.created
            time = begun.timestamp() if begun else 0.0
            self._write(self._protos.Event(wall_time=time, file_version="brain.Event:2"))
            hparams = importlib.import_module("tensorboard.plugins.hparams.summary_v2")
            options = hparams.hparams_pb(_scalars(self.told), trial_id=self.name, start_time_secs=time)
            self._write(self._protos.Event(wall_time=time, summary=options))

    def tell(self, figures: Mapping[str, float], step: int, time: float, row: int) -> None:
        """Write the metrics as scalars."""
        values = [self._summaries.Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]
        self._write(self._protos.Event(wall_time=time, step=step, summary=self._summaries.Summary(value=values)))

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())

    def flush(self) -> None:
        """Sync the file to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self.flush()
        self._file.close()

    def remember(self) -> dict[str, Any]:
        """The confirmed size of the file."""
        return {"size": self.path.stat().st_size}


def _scalars(told: Mapping[str, Any]) -> dict[str, bool | float | str]:
    """Options as values of the HParams tab, which takes no lists; those that are not set are left out."""
    plain = (bool, int, float, str)
    given = {key: value for key, value in told.items() if value is not None}
    return {key: value if isinstance(value, plain) else json.dumps(value) for key, value in given.items()}


class Wandb(Destination):
    """Weights & Biases: a directory for ``wandb sync`` at each opening, or its server if that is configured.

    With the same run id and rising row numbers, the server drops duplicate rows. Offline, a directory that was not
    closed properly is removed, and its rows are sent again.
    """

    _run: Any

    def _root(self) -> AbstractContextManager[Path]:
        return directory_beneath(self.place.run.path, f"{FOLDER}/{self.place.name}/wandb", make=True)

    def _directories(self) -> list[str]:
        with self._root() as root:
            return sorted(path.name for path in root.glob("offline-run-*"))

    def restore(self, memory: Mapping[str, Any], *, clean: bool) -> bool:
        """Remove directories that were not closed."""
        kept = memory.get("directories")
        with self._root() as root:
            for path in root.glob("offline-run-*"):
                if not isinstance(kept, list) or path.name not in kept:
                    remove_tree(path)
        return isinstance(kept, list) or self.place.online

    def open(self) -> None:
        """Start or resume the run."""
        if self.place.online and not os.environ.get("WANDB_API_KEY"):
            raise UserError(
                "WANDB_API_KEY is not set, and tracking.wandb_mode is online.",
                "Set it in the environment, or take offline and send the run later with 'wandb sync'.",
            )
        wandb = importlib.import_module("wandb")
        # Metrics only: neither the machine, nor the program, nor its output.
        quiet = ("silent", "disable_code", "disable_git", "x_disable_stats", "x_disable_meta")
        wanted: dict[str, Any] = dict.fromkeys(quiet, True)
        wanted |= {"console": "off", "x_save_requirements": False}
        known = getattr(wandb.Settings, "model_fields", wanted)
        settings = wandb.Settings(**{name: value for name, value in wanted.items() if name in known})
        self._run = wandb.init(
            project=self.project,
            name=self.name,
            id=self.place.run.id,
            dir=str(self.place.data),
            mode="online" if self.place.online else "offline",
            config=self.told,
            settings=settings,
            **({"resume": "allow"} if self.place.online else {}),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def tell(self, figures: Mapping[str, float], step: int, time: float, row: int) -> None:
        """Log the metrics under a row number that is never used twice."""
        self._run.log({**figures, "step": step, "unix_time": time}, step=row)

    def close(self) -> None:
        """Write everything out, or wait until the server has it."""
        self._run.finish()

    def remember(self) -> dict[str, Any]:
        """The directories that are complete."""
        return {"directories": self._directories()}


class Trackio(Destination):
    """The trackio database in the run directory, made again if it was not closed properly."""

    _run: Any

    def restore(self, memory: Mapping[str, Any], *, clean: bool) -> bool:
        """Keep a closed database; remove any other."""
        if clean:
            return True
        with directory_beneath(self.place.run.path, FOLDER) as root:
            remove_tree(root / self.place.name)
        self.place.make()
        return False

    def open(self) -> None:
        """Start or resume the run."""
        trackio = importlib.import_module("trackio")
        self._run = trackio.init(
            project=self.project,
            name=self.name,
            config=self.told,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def tell(self, figures: Mapping[str, float], step: int, time: float, row: int) -> None:
        """Log the metrics at their step."""
        self._run.log({**figures, "unix_time": time}, step=step)

    def close(self) -> None:
        """Write everything out."""
        self._run.finish()


DESTINATIONS: Mapping[Tracker, type[Destination]] = {"wandb": Wandb, "tensorboard": TensorBoard, "trackio": Trackio}
