"""Run directories: creating, listing and finding them."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import tomli

from core import paths
from core.atomic import write_atomic
from core.config.document import ConfigDocument, dump_config
from core.config.explain import nearest
from core.config.files import FileText
from core.config.schema import WEIGHT_METHODS, Config
from core.directories import new_directory
from core.errors import UserError
from core.redact import redact
from core.runs.events import FinishedEvent, HardwareEvent
from core.runs.labels import read_labels
from core.runs.names import slug_of
from core.runs.oom import memory_death
from core.runs.process import hostname
from core.runs.sockets import SOCKET_PATH_LIMIT, runtime_dir, socket_name
from core.runs.state import RunState, infer_state
from core.runs.tail import last_events
from core.text import one_line

#: Names of the configuration and of the event record in a run directory.
CONFIG_NAME, EVENTS_NAME = "run.toml", "events.jsonl"
#: Time format of the beginning of a run id.
_STAMP = "%Y%m%d-%H%M%S"
_STAMPED = re.compile(r"(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)(\d\d)", re.ASCII)
#: Seconds by which the last heartbeat may be later than the recorded end.
_END_SECONDS = 1.0


@dataclass(frozen=True)
class Run:
    """A run directory; the files in it are named by the design's contract."""

    path: Path

    @property
    def id(self) -> str:
        """Id of the run, ``YYYYMMDD-HHMMSS-slug``."""
        return self.path.name

    @property
    def created(self) -> datetime | None:
        """Local time that its id begins with; None for a directory that was renamed."""
        try:
            found = _STAMPED.match(self.id)
            if found is None:
                return None
            year, month, day, hour, minute, second = map(int, found.groups())
            moment = datetime(year, month, day, hour, minute, second)
            moment.timestamp()  # fails for the first and last days of the calendar
        except (ValueError, OverflowError, OSError):
            return None
        return moment

    @property
    def config_path(self) -> Path:
        """Configuration of the run, every value resolved."""
        return self.path / CONFIG_NAME

    @property
    def template_path(self) -> Path:
        """The chat template of the training with the values of ``template.variables``, where there are any."""
        return self.path / "chat_template.jinja"

    @property
    def state_path(self) -> Path:
        """File of the state and the heartbeat."""
        return self.path / "state.json"

    @property
    def events_path(self) -> Path:
        """Append-only event record."""
        return self.path / EVENTS_NAME

    @property
    def log_path(self) -> Path:
        """Output of the worker and its libraries."""
        return self.path / "worker.log"

    @property
    def checkpoints_path(self) -> Path:
        """Parent of the checkpoint directories."""
        return self.path / "checkpoints"

    @property
    def adapter_path(self) -> Path:
        """Final adapter, in PEFT's format."""
        return self.path / "adapter"

    @property
    def model_path(self) -> Path:
        """Final model, of a run that trained the model's own weights."""
        return self.path / "model"

    @property
    def socket_path(self) -> Path:
        """Control socket of the worker: in the run directory, or in the runtime directory if that path is too long."""
        inside = self.path / "control.sock"
        if len(os.fsencode(inside)) <= SOCKET_PATH_LIMIT:
            return inside
        return runtime_dir() / socket_name(self.path)

    def state(self) -> RunState:
        """Present state, with ``lost`` and ``stalled`` inferred; also ``lost`` if nothing can be read.

        A worker may end without being able to update ``state.json``; then the end in its event record counts.
        """
        recorded = RunState.read(self.state_path)
        if recorded is None:
            return RunState(state="lost", reason="state.json is missing or unreadable")
        state = infer_state(recorded)
        if state.state != "lost" or recorded.pid is None:
            return state
        if (end := _told_end(recorded, self.events_path)) is not None:
            reason = one_line(end.reason)
            refused = one_line(end.refused or "")
            return dataclasses.replace(
                recorded, state=end.type, reason=reason, refused=refused, socket=None, step_started=None
            )
        cause = memory_death(recorded, self.events_path)
        return state if cause is None else dataclasses.replace(state, reason=cause)

    @property
    def trains_adapter(self) -> bool:
        """Whether the run trains an adapter, so that the base can be chatted with too; cached, as a run's configuration
        does not change.
        """
        return _trains_adapter(self.config_path)

    def config(self) -> Config:
        """Configuration that the run was started with.

        Raises:
            UserError: If ``run.toml`` is missing or invalid.
        """
        return ConfigDocument.load(self.config_path).validate()

    def values(self) -> dict[str, Any]:
        """Values in ``run.toml``, ``section.key`` to value, unchecked; empty if it cannot be read."""
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
    """The end event at the end of a record; None if the worker went on, or a later one has started since."""
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
    """Slug for a run id: a short lower-case name of letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:32].strip("-") or "run"


def create_run(config: Config, name: str) -> Run:
    """Create a run directory with ``run.toml`` and a queued ``state.json``; nothing remains on failure.

    Args:
        config: The checked configuration, paths absolute.
        name: Subject of the run; its slug ends the run id.

    Raises:
        UserError: If the home cannot be written or is full.
    """
    directory = paths.make_private_dir(paths.runs_dir())
    # A name may come from a file name, which may contain a secret; the id is shown everywhere.
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


def free_run_id(name: str, taken: Collection[str] = ()) -> str:
    """A run id that no run has, for a run whose directory is made later by :func:`make_run`.

    Args:
        name: Subject of the run; its slug ends the id.
        taken: Ids that are reserved already.
    """
    base = f"{datetime.now().strftime(_STAMP)}-{make_slug(redact(name))}"
    number = 1
    while True:
        run_id = base if number == 1 else f"{base}-{number}"
        if run_id not in taken and not os.path.lexists(paths.runs_dir() / run_id):
            return run_id
        number += 1


def make_run(run_id: str, configuration: str) -> Run:
    """Make the directory of a queued run whole or not at all, so that it can be done again after a kill.

    Args:
        run_id: The id, of :func:`free_run_id`.
        configuration: The text of its ``run.toml``, every value resolved.

    Returns:
        The run; as it is, where its directory is there already.

    Raises:
        UserError: If the home cannot be written or is full.
    """
    run = Run(paths.make_private_dir(paths.runs_dir()) / run_id)
    if run.config_path.is_file():
        return run
    try:
        with new_directory(run.path) as directory:
            made = Run(directory)
            write_atomic(made.config_path, configuration)
            RunState(state="queued", host=hostname(), updated=time.time()).write(made.state_path)
    except OSError as error:
        raise UserError(
            f"{run.path} cannot be written: {error.strerror}.", "Make room or set LOCALTUNE_HOME."
        ) from error
    return run


def list_runs() -> list[Run]:
    """All runs, newest first."""
    try:
        with os.scandir(paths.runs_dir()) as entries:
            # A hidden one is being made.
            names = [entry.path for entry in entries if not entry.name.startswith(".")]
            found = [Run(Path(name)) for name in names if os.path.isfile(f"{name}/{CONFIG_NAME}")]
    except OSError:
        return []
    return sorted(found, key=lambda run: run.id, reverse=True)


def _is_run(path: Path) -> bool:
    try:
        return (path / "run.toml").is_file()
    except OSError:  # not accessible, or longer than a path can be
        return False


def find_run(name: str) -> Run:
    """Find the run that a user names by an id, the beginning or a part of one, a display name, a path, or ``latest``.

    Raises:
        UserError: If there is no such run, more than one, or the name is empty.
    """
    if os.sep in name and _is_run(Path(name)):
        return Run(Path(name).absolute())
    if not any(map(str.isalnum, name)):
        # The empty text, as from an unset variable, and a dash are parts of every id.
        raise UserError("No run is named.", "Name one, or take 'latest' for the newest.")
    runs = list_runs()
    if not runs:
        raise UserError(
            "There are no runs yet.", "Start one with 'localtune-tui demo' or 'localtune-tui train CONFIG'."
        )
    if name == "latest":
        return runs[0]
    matches = [run for run in runs if run.id == name] or [run for run in runs if name in run.id]
    # A display name is no part of an id: it is looked for only where no id is meant.
    matches = matches or [run for run in runs if read_labels(run.path).name.lower() == name.lower()]
    if not matches:
        raise UserError(f"There is no run called {one_line(name, 200)}.", _guess(name, runs))
    if len(matches) > 1:
        raise UserError(
            f"{one_line(name, 200)} could mean {len(matches)} runs: {', '.join(run.id for run in matches[:4])}.",
            "Give more of the id.",
        )
    return matches[0]


def _guess(name: str, runs: Sequence[Run]) -> str:
    """The run that a mistyped name most likely meant, as a hint: by its whole id, or by the words at its end."""
    found = nearest(name, [run.id for run in runs])
    if found is None:
        by_slug = {slug_of(run.id): run.id for run in reversed(runs)}
        found = by_slug.get(nearest(name, by_slug) or "")
    return f"Did you mean {found}?" if found is not None else "'localtune-tui runs' lists them."


def has_weights(run: Run) -> bool:
    """Whether a run has saved something that can be talked to: a final adapter or model, or a checkpoint."""
    return run.adapter_path.is_dir() or run.model_path.is_dir() or bool(complete_checkpoints(run))


def complete_checkpoints(run: Run) -> list[Path]:
    """Checkpoint directories with a manifest, oldest first; the worker verifies its hashes."""
    try:
        found = [
            (int(match[1]), path)
            for path in (run.checkpoints_path.iterdir() if run.checkpoints_path.is_dir() else ())
            if (match := re.fullmatch(r"step-(\d{1,18})", path.name)) and (path / "manifest.json").is_file()
        ]
    except OSError:  # an inaccessible directory has no usable checkpoints
        return []
    return [path for _, path in sorted(found)]
