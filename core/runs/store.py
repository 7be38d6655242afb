"""The run directories: made, listed and found."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shutil
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import tomli

from core import paths
from core.atomic import write_atomic
from core.config.document import ConfigDocument, dump_config
from core.config.files import FileText
from core.config.schema import WEIGHT_METHODS, Config
from core.errors import UserError
from core.redact import redact
from core.runs.events import FinishedEvent, HardwareEvent
from core.runs.oom import memory_death
from core.runs.process import hostname
from core.runs.sockets import SOCKET_PATH_LIMIT, runtime_dir, socket_name
from core.runs.state import RunState, infer_state
from core.runs.tail import last_events
from core.text import one_line

#: What a run id begins with.
_STAMP = "%Y%m%d-%H%M%S"
#: Seconds by which the last heartbeat may be later than the end that is told after it.
_END_SECONDS = 1.0


@dataclass(frozen=True)
class Run:
    """A run directory; the files in it are named by the design's contract."""

    path: Path

    @property
    def id(self) -> str:
        """``YYYYMMDD-HHMMSS-slug``."""
        return self.path.name

    @property
    def created(self) -> datetime | None:
        """The local time that its id begins with; None for a directory that was renamed."""
        try:
            moment = datetime.strptime(self.id[: len("YYYYMMDD-HHMMSS")], _STAMP)
            moment.timestamp()  # there is none of the first and the last days of the calendar
        except (ValueError, OverflowError, OSError):
            return None
        return moment

    @property
    def config_path(self) -> Path:
        """The configuration as used, every value resolved."""
        return self.path / "run.toml"

    @property
    def state_path(self) -> Path:
        """The heartbeat and the state."""
        return self.path / "state.json"

    @property
    def events_path(self) -> Path:
        """The append-only record."""
        return self.path / "events.jsonl"

    @property
    def log_path(self) -> Path:
        """What the worker and its libraries print."""
        return self.path / "worker.log"

    @property
    def checkpoints_path(self) -> Path:
        """Checkpoints, a directory each."""
        return self.path / "checkpoints"

    @property
    def adapter_path(self) -> Path:
        """The final adapter, in PEFT's format."""
        return self.path / "adapter"

    @property
    def model_path(self) -> Path:
        """The final model, of a run that trained the model's own weights."""
        return self.path / "model"

    @property
    def socket_path(self) -> Path:
        """Where the worker listens: in the run directory, or in the runtime directory when that path is too long."""
        inside = self.path / "control.sock"
        if len(os.fsencode(inside)) <= SOCKET_PATH_LIMIT:
            return inside
        return runtime_dir() / socket_name(self.path)

    def state(self) -> RunState:
        """The state as it is now, ``lost`` and ``stalled`` inferred; ``lost`` as well when nothing can be read.

        A worker that is gone has not always been able to write its end into ``state.json``; the end that its record
        tells counts then.
        """
        recorded = RunState.read(self.state_path)
        if recorded is None:
            return RunState(state="lost", reason="state.json is missing or unreadable")
        state = infer_state(recorded)
        if state.state != "lost" or recorded.pid is None:
            return state
        if (end := _told_end(recorded, self.events_path)) is not None:
            reason = one_line(end.reason)
            return dataclasses.replace(recorded, state=end.type, reason=reason, socket=None, step_started=None)
        cause = memory_death(recorded, self.events_path)
        return state if cause is None else dataclasses.replace(state, reason=cause)

    @property
    def trains_adapter(self) -> bool:
        """Whether there is an adapter beside the base, so that both can be talked to; read once, as a run's
        configuration does not change."""
        return _trains_adapter(self.config_path)

    def config(self) -> Config:
        """The configuration the run was started with.

        Raises:
            UserError: If ``run.toml`` is missing or invalid.
        """
        return ConfigDocument.load(self.config_path).validate()

    def values(self) -> dict[str, Any]:
        """The values in ``run.toml``, ``section.key`` to value, unchecked; none where it cannot be read."""
        try:
            data = tomli.loads(FileText.read(self.config_path).text)
        except (OSError, ValueError, RecursionError):
            return {}
        return {
            f"{section}.{key}": value
            for section, table in data.items()
            if isinstance(table, dict)
            for key, value in table.items()
        }


def _told_end(recorded: RunState, events: Path) -> FinishedEvent | None:
    """The end that a worker has told last of all; None where it went on, or where a later one has begun since."""
    try:
        status = os.stat(events)
    except OSError:
        return None
    return _read_end(recorded, events, (status.st_size, status.st_mtime_ns))


@functools.lru_cache(maxsize=256)
def _read_end(recorded: RunState, events: Path, _stamp: tuple[int, int]) -> FinishedEvent | None:
    last = next((event for event in last_events(events) if not isinstance(event, HardwareEvent)), None)
    return last if isinstance(last, FinishedEvent) and last.t >= recorded.updated - _END_SECONDS else None


@functools.lru_cache(maxsize=64)
def _trains_adapter(config_path: Path) -> bool:
    try:
        return ConfigDocument.load(config_path).validate().method.name not in WEIGHT_METHODS
    except UserError:
        return True


def make_slug(name: str) -> str:
    """A short lower-case name for a run id: letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:32].strip("-") or "run"


def create_run(config: Config, name: str) -> Run:
    """Make a run directory with ``run.toml`` and a queued ``state.json``; nothing is left behind on failure.

    Args:
        config: The checked configuration, paths absolute.
        name: What the run is about; its slug ends the run id.

    Raises:
        UserError: If the home cannot be written or is full.
    """
    directory = paths.make_private_dir(paths.runs_dir())
    # A name may be that of a file, and a file's that of a secret's value; the id is shown everywhere.
    stamp, slug = datetime.now().strftime(_STAMP), make_slug(redact(name))
    number = 1
    while True:
        run = Run(directory / (f"{stamp}-{slug}" if number == 1 else f"{stamp}-{slug}-{number}"))
        try:
            run.path.mkdir(mode=paths.DIRECTORY_MODE)
            break
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(
                f"{run.path} cannot be created: {error.strerror}.", "Make room or set LOCALTUNE_HOME."
            ) from error
    try:
        write_atomic(run.config_path, dump_config(config))
        RunState(state="queued", host=hostname(), updated=time.time()).write(run.state_path)
    except OSError as error:
        shutil.rmtree(run.path, ignore_errors=True)
        raise UserError(
            f"{run.path} cannot be written: {error.strerror}.", "Make room or set LOCALTUNE_HOME."
        ) from error
    return run


def list_runs() -> list[Run]:
    """All runs, newest first."""
    try:
        found = [Run(path) for path in paths.runs_dir().iterdir() if _is_run(path)]
    except OSError:
        return []
    return sorted(found, key=lambda run: run.id, reverse=True)


def _is_run(path: Path) -> bool:
    try:
        return (path / "run.toml").is_file()
    except OSError:  # not to be looked into, or longer than a path can be
        return False


def find_run(name: str) -> Run:
    """The run that a user means by an id, the beginning or a part of one, a path, or ``latest``.

    Raises:
        UserError: If there is none, more than one, or none is named.
    """
    if os.sep in name and _is_run(Path(name)):
        return Run(Path(name).absolute())
    if not any(map(str.isalnum, name)):
        # The empty text, as a variable that is not set gives, and a dash are parts of every id.
        raise UserError("No run is named.", "Name one, or take 'latest' for the newest.")
    runs = list_runs()
    if not runs:
        raise UserError(
            "There are no runs yet.", "Start one with 'localtune-tui demo' or 'localtune-tui train CONFIG'."
        )
    if name == "latest":
        return runs[0]
    matches = [run for run in runs if run.id == name] or [run for run in runs if name in run.id]
    if not matches:
        raise UserError(f"There is no run called {one_line(name, 200)}.", "'localtune-tui runs' lists them.")
    if len(matches) > 1:
        raise UserError(
            f"{one_line(name, 200)} could mean {len(matches)} runs: {', '.join(run.id for run in matches[:4])}.",
            "Give more of the id.",
        )
    return matches[0]


def complete_checkpoints(run: Run) -> list[Path]:
    """Checkpoint directories that have their manifest, oldest first; the worker checks whether its hashes hold."""
    try:
        found = [
            (int(match[1]), path)
            for path in (run.checkpoints_path.iterdir() if run.checkpoints_path.is_dir() else ())
            if (match := re.fullmatch(r"step-(\d{1,18})", path.name)) and (path / "manifest.json").is_file()
        ]
    except OSError:  # a directory that cannot be looked into holds none to go on from
        return []
    return [path for _, path in sorted(found)]
