"""The session: where the user was in the app, in a small file that the next start reads."""

from __future__ import annotations

import dataclasses
import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from core import paths
from core.atomic import write_atomic
from core.errors import UserError
from core.small_files import read_json

#: Most bytes of the file.
LIMIT = 64 << 10
#: Most characters of a text in it; a path has at most that many.
_LONGEST = 4096
_ROWS = 1 << 48
_LATEST = 1e11


@dataclass(frozen=True)
class DataPlace:
    """A place in a dataset: its file, the row, and how it was looked at."""

    path: str
    """The file, absolute, or an entry of a hub."""
    row: int = 0
    """The number of the row under the cursor, from 0."""
    filter: str = ""
    """The code of the problem that the list was filtered by; empty for all rows."""
    tokens: bool = False
    """Whether the row was shown as tokens."""


@dataclass(frozen=True)
class Session:
    """The app as it was left: what was open, and where the cursors were; an empty text stands for nothing.

    Paths are absolute.
    """

    config: str = ""
    """The file of the configuration."""
    draft: str = ""
    """The id of the draft of a configuration that has no file."""
    origin: str = ""
    """The directory of the run that such a configuration was begun with."""
    option: str = ""
    """The option under the cursor."""
    data: DataPlace | None = None
    """The place in the Data pane."""
    pane: str = ""
    """The pane that had the focus."""
    zoomed: bool = False
    """Whether it filled a terminal that has room for four."""
    run: str = ""
    """The directory of the run that was shown."""
    live: bool = False
    """Whether that run was live."""
    time: float = field(default_factory=time.time, compare=False)
    """The time of the last change, in Unix seconds."""


def session_path() -> Path:
    """The file of the session."""
    return paths.home() / "session.json"


def read_session() -> Session | None:
    """The last session; None where there is none, or the file is not one."""
    try:
        content = read_json(session_path(), LIMIT)
    except (OSError, ValueError, UserError):
        return None
    return parse_session(content)


def write_session(session: Session) -> None:
    """Replace the file; where it cannot be written, it stays as it is."""
    raw = json.dumps(dataclasses.asdict(session), indent=1) + "\n"
    if len(raw) > LIMIT:
        return
    with suppress(OSError, UserError):
        paths.make_private_dir(paths.home())
        # Not fsynced: it must survive the process; a power cut may cost the last moves of a cursor.
        write_atomic(session_path(), raw, durable=False)


def forget_session() -> None:
    """Remove the file."""
    with suppress(OSError, UserError):
        session_path().unlink(missing_ok=True)


def parse_session(content: object) -> Session | None:
    """The session in a JSON value; what is of another type is left out, and None is for what is no session at all.

    Args:
        content: The value, of whatever has written the file.
    """
    if not isinstance(content, dict):
        return None
    when = content.get("time")
    if isinstance(when, bool) or not isinstance(when, (int, float)) or not 0 <= when < _LATEST:
        return None
    return Session(
        config=_text(content.get("config")),
        draft=_text(content.get("draft")),
        origin=_text(content.get("origin")),
        option=_text(content.get("option")),
        data=_place(content.get("data")),
        pane=_text(content.get("pane")),
        zoomed=content.get("zoomed") is True,
        run=_text(content.get("run")),
        live=content.get("live") is True,
        time=float(when),
    )


def _place(content: object) -> DataPlace | None:
    if not isinstance(content, dict) or not (path := _text(content.get("path"))):
        return None
    row = content.get("row")
    if not isinstance(row, int) or isinstance(row, bool) or not 0 <= row < _ROWS:
        row = 0
    return DataPlace(path, row, _text(content.get("filter")), content.get("tokens") is True)


def _text(value: object) -> str:
    """A text that a path or a name may be, else an empty one."""
    return value if isinstance(value, str) and len(value) <= _LONGEST and "\0" not in value else ""
