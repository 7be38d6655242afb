"""Session: open files and cursors of the app, in a small file that the next start reads."""

from __future__ import annotations

import dataclasses
import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core import paths
from core.atomic import write_atomic
from core.errors import UserError
from core.small_files import read_json

#: Maximum bytes of the file.
LIMIT = 64 << 10
#: Maximum characters of a text in it, which is the maximum length of a path.
_LONGEST = 4096
_ROWS = 1 << 48
_LATEST = 1e11


@dataclass(frozen=True)
class DataPlace:
    """Place in a dataset: file, row, filter and form."""

    path: str
    """The absolute path of the file, or a hub entry."""
    row: int = 0
    """The number of the row under the cursor, from 0."""
    filter: str = ""
    """The code of the problem that filters the list; empty for all rows."""
    tokens: bool = False
    """True if the row is shown as tokens."""


@dataclass(frozen=True)
class Session:
    """Open files and cursors of the app; empty text means none. Paths are absolute."""

    config: str = ""
    """The configuration's file."""
    draft: str = ""
    """The draft id of a configuration without a file."""
    origin: str = ""
    """The directory of the run that such a configuration was copied from."""
    option: str = ""
    """The option under the cursor."""
    data: DataPlace | None = None
    """The place in the Data pane."""
    pane: str = ""
    """The focused pane."""
    zoomed: bool = False
    """True if it filled a terminal with room for four."""
    run: str = ""
    """The directory of the shown run."""
    live: bool = False
    """True if that run was live."""
    time: float = field(default_factory=time.time, compare=False)
    """The time of the last change, in Unix seconds."""


def session_path() -> Path:
    """The file of the session."""
    return paths.home() / "session.json"


def read_session() -> Session | None:
    """The last session; None if there is none, or the file is invalid."""
    try:
        content = read_json(session_path(), LIMIT)
    except (OSError, ValueError, UserError):
        return None
    return parse_session(content)


def write_session(session: Session) -> None:
    """Replace the file; errors are ignored."""
    raw = json.dumps(dataclasses.asdict(session), indent=1) + "\n"
    if len(raw) > LIMIT:
        return
    with suppress(OSError, UserError):
        paths.make_private_dir(paths.home())
        # Not fsynced: a power cut may cost the last cursor moves.
        write_atomic(session_path(), raw, durable=False)


def forget_session() -> None:
    """Remove the file."""
    with suppress(OSError, UserError):
        session_path().unlink(missing_ok=True)


def parse_session(content: object) -> Session | None:
    """The session in an untrusted JSON value; fields of a wrong type are ignored. None if it is no session."""
    if not isinstance(content, dict):
        return None
    when = content.get("time")
    if isinstance(when, bool) or not isinstance(when, (int, float)) or not 0 <= when < _LATEST:
        return None
    names = ("config", "draft", "origin", "option", "pane", "run")
    known: dict[str, Any] = {name: _text(content.get(name)) for name in names}
    known |= {name: content.get(name) is True for name in ("zoomed", "live")}
    return Session(**known, data=_place(content.get("data")), time=float(when))


def _place(content: object) -> DataPlace | None:
    if not isinstance(content, dict) or not (path := _text(content.get("path"))):
        return None
    row = content.get("row")
    if not isinstance(row, int) or isinstance(row, bool) or not 0 <= row < _ROWS:
        row = 0
    return DataPlace(path, row, _text(content.get("filter")), content.get("tokens") is True)


def _text(value: object) -> str:
    """The text if it can be a path or a name, else an empty one."""
    return value if isinstance(value, str) and len(value) <= _LONGEST and "\0" not in value else ""
