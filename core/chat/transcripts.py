"""Transcripts: conversations kept with their run, in its directory ``chats``."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.beneath import directory_beneath, write_beneath
from core.chat.dialogue import Dialogue
from core.errors import UserError
from core.runs.record.store import Run
from core.small_files import read_json
from core.text import one_line

#: Most bytes of a transcript.
LIMIT = 8 << 20
#: Most transcripts that are listed, the newest ones.
LISTED = 500
#: Latest accepted time in Unix seconds, within the range of calendars.
_LATEST = 1e11


@dataclass(frozen=True)
class Transcript:
    """A kept conversation."""

    path: Path
    id: str
    started: float
    """In Unix seconds."""
    system: str
    """The system prompt."""
    exchanges: list[Any]
    """As :meth:`core.chat.dialogue.Dialogue.to_data` writes them."""

    @property
    def title(self) -> str:
        """The first question, on one line."""
        first = self.exchanges[0] if self.exchanges else {}
        return one_line(str(first.get("question", "")) if isinstance(first, Mapping) else "", 120)

    @property
    def when(self) -> str:
        """Its begin: the time if today, with the date on other days."""
        then, now = time.localtime(self.started), time.localtime()
        return time.strftime("%H:%M" if then[:3] == now[:3] else "%Y-%m-%d %H:%M", then)

    def dialogue(self) -> Dialogue:
        """The conversation, to be continued in the same file."""
        dialogue = Dialogue.from_data(self.exchanges)
        dialogue.id, dialogue.started = self.id, self.started
        return dialogue


def chats_dir(run: Run) -> Path:
    """The directory of a run's transcripts."""
    return run.path / "chats"


def keep_transcript(run: Run, dialogue: Dialogue, system: str = "") -> Path:
    """Write a conversation to the directory of its run, in place of its earlier state; readable by the user alone.

    Args:
        run: The run.
        dialogue: The conversation.
        system: The system prompt.

    Raises:
        OSError: If it cannot be written, is too large, its directory is a link, or the run has been deleted; an earlier
            state is untouched.
    """
    if not run.config_path.is_file():
        raise FileNotFoundError(None, "the run has been deleted", str(run.path))
    content = {
        "version": 1,
        "id": dialogue.id,
        "run": run.id,
        "started": dialogue.started,
        "updated": time.time(),
        "system": system,
        "exchanges": dialogue.to_data(),
    }
    raw = json.dumps(content, indent=1).encode()
    if len(raw) > LIMIT:
        raise OSError(None, f"it is larger than {LIMIT >> 20} MiB", dialogue.id)
    directory = chats_dir(run)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(dialogue.started))
    path = directory / f"{stamp}-{dialogue.id}.json"
    with directory_beneath(run.path, directory.name, make=True):
        write_beneath(run.path, f"{directory.name}/{path.name}", raw, durable=False)
    return path


def remove_transcript(transcript: Transcript) -> None:
    """Remove a kept conversation, if it is not gone already.

    Raises:
        UserError: If it cannot be removed.
    """
    try:
        directory = transcript.path.parent
        with suppress(FileNotFoundError), directory_beneath(directory.parent, directory.name) as opened:
            (opened / transcript.path.name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"The conversation {transcript.path} cannot be removed: {error.strerror or error}.",
            "Fix the permissions of its directory.",
        ) from error


def list_transcripts(run: Run) -> list[Transcript]:
    """The conversations kept with a run, newest first; invalid files are left out."""
    try:
        files = sorted(
            (path for path in chats_dir(run).iterdir() if path.suffix == ".json" and not path.name.startswith(".")),
            key=lambda path: path.name,
            reverse=True,
        )
    except OSError:
        return []
    found = (_read(path) for path in files[:LISTED])
    return sorted((one for one in found if one is not None), key=lambda one: -one.started)


def _read(path: Path) -> Transcript | None:
    content: Any = None
    with suppress(OSError, ValueError, UserError):
        content = read_json(path, LIMIT)
    if not isinstance(content, dict):
        return None
    identity, started, exchanges = content.get("id"), content.get("started"), content.get("exchanges")
    system = content.get("system")
    # The id becomes a part of a file name.
    if not isinstance(identity, str) or not identity.isalnum() or not identity.isascii() or len(identity) > 64:
        return None
    if isinstance(started, bool) or not isinstance(started, (int, float)) or not 0 <= started < _LATEST:
        return None
    if not isinstance(exchanges, list) or not exchanges:
        return None
    return Transcript(path, identity, float(started), system if isinstance(system, str) else "", exchanges)
