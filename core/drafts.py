"""Drafts: unsaved work in the app, kept so that it survives the end of the app.

A draft is a small JSON file in :func:`core.paths.drafts_dir`. It records the process that writes it: while that process
lives, the draft belongs to it; afterwards, or once it has been released, any other may take it over.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core import paths
from core.atomic import write_atomic
from core.paths import working_directory
from core.runs.record.state import is_same_process, own_identity
from core.small_files import read_json

#: Most drafts of one kind; the oldest that no process is writing are removed first.
KEPT = 50
#: Most bytes of a draft.
LIMIT = 8 << 20


@dataclass(frozen=True)
class Draft:
    """Unsaved work."""

    kind: str
    """The kind: ``config`` or ``chat``."""
    subject: str
    """The subject: the path of a configuration, the directory of a run."""
    data: Mapping[str, Any]
    """The content, as JSON values."""
    time: float = field(default_factory=time.time)
    """The time of the last write, in Unix seconds."""
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    """The name of its file."""
    pid: int | None = None
    """The process that wrote it last; None for a released draft, left by choice."""
    started: str | None = None
    """The start identity of that process, as from :func:`core.runs.record.state.start_identity`."""

    @property
    def is_left(self) -> bool:
        """True if the process that wrote it has ended, so that it can be taken over."""
        return not is_same_process(self.pid, self.started)

    @property
    def is_released(self) -> bool:
        """True if it was left by choice, not by an app that was killed or crashed."""
        return self.pid is None

    @property
    def is_of_new_config(self) -> bool:
        """True if it is a configuration that was never saved."""
        return self.kind == "config" and self.subject.endswith("/")

    @property
    def when(self) -> str:
        """The time of the last write in words: the time today, with the date on other days."""
        then, now = time.localtime(self.time), time.localtime()
        return time.strftime("%H:%M" if then[:3] == now[:3] else "%Y-%m-%d %H:%M", then)


def config_subject(path: Path | None) -> str:
    """The subject of a configuration's draft: its file, or for a new configuration its directory with a slash."""
    return str(working_directory() / path) if path is not None else f"{working_directory()}/"


def write_draft(draft: Draft, *, release: bool = False) -> None:
    """Write a draft as this process's, over an earlier version; readable by the user alone.

    Args:
        draft: The draft.
        release: Whether it no longer belongs to this process, so that any may take it over at once.

    Raises:
        UserError: If the directory cannot be made.
        OSError: If it cannot be written, or is too large; an earlier version is untouched.
    """
    pid, started = own_identity() if not release else (None, None)
    content = {
        "kind": draft.kind,
        "subject": draft.subject,
        "time": draft.time,
        "pid": pid,
        "started": started,
        "data": draft.data,
    }
    raw = json.dumps(content).encode()
    if len(raw) > LIMIT:
        raise OSError(None, f"it is larger than {LIMIT >> 20} MiB", draft.id)
    path = _path(draft.id)
    is_new = not path.exists()
    paths.make_private_dir(path.parent)
    # Not fsynced: a draft must survive the process; a power cut may cost its last second.
    write_atomic(path, raw, durable=False)
    if is_new:
        for old in [other for other in list_drafts(draft.kind) if other.is_left][KEPT:]:
            remove_draft(old.id)


def list_drafts(kind: str) -> list[Draft]:
    """The drafts of a kind, the newest first; invalid files are left out."""
    try:
        files = [path for path in paths.drafts_dir().iterdir() if path.suffix == ".json"]
    except OSError:
        return []
    found = (_read(path) for path in files)
    return sorted((one for one in found if one is not None and one.kind == kind), key=lambda one: -one.time)


def find_draft(kind: str, subject: str) -> Draft | None:
    """The newest draft of a subject that no living process is writing; None where there is none."""
    return next((draft for draft in list_drafts(kind) if draft.subject == subject and draft.is_left), None)


def remove_draft(identity: str) -> None:
    """Remove a draft by its id; nothing happens if it is gone or cannot be removed."""
    with suppress(OSError):
        _path(identity).unlink(missing_ok=True)


def _path(identity: str) -> Path:
    return paths.drafts_dir() / f"{identity}.json"


def _read(path: Path) -> Draft | None:
    try:
        content = read_json(path, LIMIT, finite=False)
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    kind, subject, data, when = (content.get(name) for name in ("kind", "subject", "data", "time"))
    pid, started = content.get("pid"), content.get("started")
    if not (isinstance(kind, str) and isinstance(subject, str) and isinstance(data, dict)):
        return None
    if isinstance(when, bool) or not isinstance(when, (int, float)) or not 0 <= when < 1e11:
        return None
    return Draft(
        kind,
        subject,
        data,
        float(when),
        path.stem,
        pid if isinstance(pid, int) and not isinstance(pid, bool) and 0 < pid < 1 << 31 else None,
        started if isinstance(started, str) else None,
    )
