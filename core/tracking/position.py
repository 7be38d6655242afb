"""The position of a tracker in a run's events, and its state: ``tracking/NAME.json`` in the run directory."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.beneath import directory_beneath, open_beneath, write_beneath
from core.config.choices import Tracker
from core.errors import UserError
from core.runs.record.events import INTEGER_LIMIT
from core.runs.record.state import is_same_process
from core.runs.record.store import Run
from core.small_files import read_json
from core.text import one_line

#: The directory of all trackers in that of a run.
FOLDER = "tracking"
_FILE_LIMIT = 1 << 20
#: States in which a process is running.
WORKING = frozenset({"waiting", "sending"})


@dataclass(frozen=True, kw_only=True)
class Position:
    """The confirmed position of a tracker; everything after it is sent again.

    Args:
        offset: Bytes of ``events.jsonl`` that have been sent.
        rows: Sets of metrics among them.
        step: The latest optimizer step among them.
        memory: State of the destination, for undoing everything after the position.
        state: ``waiting``, ``sending``, ``done`` or ``failed``; empty before the first attempt.
        reason: The reason for a failure.
        pid: The running process.
        pid_started: Its start identity.
    """

    offset: int = 0
    rows: int = 0
    step: int = 0
    memory: dict[str, Any] = dataclasses.field(default_factory=dict)
    state: str = ""
    reason: str = ""
    pid: int | None = None
    pid_started: str | None = None

    @property
    def is_working(self) -> bool:
        """True if its process is running."""
        return self.state in WORKING and is_same_process(self.pid, self.pid_started)

    def write(self, place: TrackerFiles) -> None:
        """Replace the file of a tracker, durably.

        Raises:
            OSError: If it cannot be written, or its directory is a link.
        """
        text = json.dumps(dataclasses.asdict(self), indent=1) + "\n"
        write_beneath(place.run.path, f"{FOLDER}/{place.position_path.name}", text)

    @classmethod
    def read(cls, path: Path) -> Position:
        """The position in a file; the beginning if it is missing or invalid."""
        try:
            data: Any = read_json(path, _FILE_LIMIT)
            found = cls(**{item.name: data[item.name] for item in dataclasses.fields(cls) if item.name in data})
        except (OSError, ValueError, TypeError):
            return cls()
        counts = (found.offset, found.rows, found.step, found.pid or 0)
        texts = (found.state, found.reason, found.pid_started or "")
        is_sound = all(type(value) is int and 0 <= value < INTEGER_LIMIT for value in counts)
        if not is_sound or not all(isinstance(text, str) for text in texts) or not isinstance(found.memory, dict):
            return cls()
        return dataclasses.replace(found, reason=one_line(found.reason))


@dataclass(frozen=True)
class TrackerFiles:
    """The files of one tracker of one run.

    Args:
        run: The run.
        tool: The tracker.
        online: Whether metrics go to its server; its directory and position are separate.
    """

    run: Run
    tool: Tracker
    online: bool = False

    @property
    def name(self) -> str:
        """The name of the place: ``tensorboard``, ``wandb``, ``wandb-online``."""
        return f"{self.tool}-online" if self.online else self.tool

    @property
    def root(self) -> Path:
        """The directory of all trackers of the run."""
        return self.run.path / FOLDER

    @property
    def data(self) -> Path:
        """The directory of the tracker's own files."""
        return self.root / self.name

    @property
    def log(self) -> Path:
        """The log of the process."""
        return self.root / f"{self.name}.log"

    @property
    def lock(self) -> Path:
        """The lock, held by the running process."""
        return self.root / f"{self.name}.lock"

    @property
    def position_path(self) -> Path:
        """The file of the position."""
        return self.root / f"{self.name}.json"

    def position(self) -> Position:
        """The position; ``failed`` if its process ended without a final state."""
        found = Position.read(self.position_path)
        if found.state in WORKING and not found.is_working:
            reason = f"its process hung or was ended; see {self.log}"
            return dataclasses.replace(found, state="failed", reason=reason)
        return found

    def make(self) -> None:
        """Make the directories, readable by the user alone.

        Raises:
            UserError: If they cannot be made, or there is a link in their path.
        """
        try:
            with directory_beneath(self.run.path, f"{FOLDER}/{self.name}", make=True):
                pass
        except OSError as error:
            raise self.refusal(error) from error

    def open(self, path: Path, flags: int) -> int:
        """Open a file in the directory of all trackers (:func:`core.beneath.open_beneath`).

        Raises:
            UserError: If it cannot be opened, or there is a link in its path.
        """
        try:
            return open_beneath(self.run.path, str(path.relative_to(self.run.path)), flags)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self.refusal(error) from error

    def refusal(self, error: OSError) -> UserError:
        """The error for a file or directory of the tracker that cannot be used."""
        where = one_line(str(error.filename or self.data), 200)
        return UserError(f"{where} cannot be written: {error.strerror}.", "Remove it, or fix its permissions.")
