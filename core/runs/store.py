"""The run directories: made, listed and found."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
import shutil
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from core import paths
from core.atomic import write_atomic
from core.config.document import ConfigDocument, dump_config
from core.config.schema import WEIGHT_METHODS, Config
from core.errors import UserError
from core.redact import redact
from core.runs.oom import memory_death
from core.runs.process import hostname
from core.runs.state import RunState, infer_state
from core.text import one_line

#: Bytes that a Unix socket's path may have, with room to spare (the kernel's limit is 108).
SOCKET_PATH_LIMIT = 100
#: Names of the sockets in the runtime directory.
RUNTIME_SOCKETS = "localtune-*.sock"
#: What a run id begins with.
_STAMP = "%Y%m%d-%H%M%S"


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
            return datetime.strptime(self.id[: len("YYYYMMDD-HHMMSS")], _STAMP)
        except ValueError:
            return None

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
        # Of the whole path: ids may be equal in two homes, and equal in all that a short name could keep of them.
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        return runtime_dir() / RUNTIME_SOCKETS.replace("*", digest)

    def state(self) -> RunState:
        """The state as it is now, ``lost`` and ``stalled`` inferred; ``lost`` as well when nothing can be read."""
        recorded = RunState.read(self.state_path)
        if recorded is None:
            return RunState(state="lost", reason="state.json is missing or unreadable")
        state = infer_state(recorded)
        if state.state == "lost" and (cause := memory_death(recorded, self.events_path)) is not None:
            return dataclasses.replace(state, reason=cause)
        return state

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


@functools.lru_cache(maxsize=64)
def _trains_adapter(config_path: Path) -> bool:
    try:
        return ConfigDocument.load(config_path).validate().method.name not in WEIGHT_METHODS
    except UserError:
        return True


def runtime_dir() -> Path:
    """Where the sockets are whose paths in their run directories would be too long."""
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/localtune-{os.getuid()}")  # noqa: S108


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
        found = [Run(path) for path in paths.runs_dir().iterdir() if (path / "run.toml").is_file()]
    except OSError:
        return []
    return sorted(found, key=lambda run: run.id, reverse=True)


def find_run(name: str) -> Run:
    """The run that a user means by an id, the beginning or a part of one, a path, or ``latest``.

    Raises:
        UserError: If there is none, more than one, or none is named.
    """
    # Not the method of Path, which raises on names that no file can have.
    if os.sep in name and os.path.isfile(Path(name) / "run.toml"):
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
