"""Keeps what is not saved: edits of the configuration and the conversation, so that they outlive the app.

They are written within a second of a change, and when the app ends in any way but the user's own; the next app on the
same configuration or run takes them up.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.chat.dialogue import Dialogue
from core.drafts import Draft, find_draft, remove_draft, write_draft
from core.errors import UserError

if TYPE_CHECKING:
    from core.config.document import ConfigDocument
    from tui.panes import Panes
    from tui.state import AppState


#: Seconds between two looks at what has changed.
LOOK_SECONDS = 1.0


@dataclass
class _Slot:
    """One draft of this app: what is in its file, if there is one."""

    kind: str
    written: Draft | None = field(default=None)

    def keep(self, subject: str, data: Mapping[str, Any]) -> None:
        """Write what is to be kept, where it is not what the file has."""
        before = self.written
        if before is not None and (before.subject, before.data) == (subject, data):
            return
        draft = Draft(self.kind, subject, data) if before is None else Draft(self.kind, subject, data, id=before.id)
        # Work goes on where it cannot be kept: a disk may be full, and the next look tries again.
        with suppress(OSError, UserError):
            write_draft(draft)
            self.written = draft

    def drop(self) -> None:
        """Nothing is to be kept any more."""
        if self.written is not None:
            remove_draft(self.written.id)
            self.written = None

    def take_up(self, draft: Draft) -> None:
        """Go on with what another app has left; it is this one's from now on, and of no third."""
        self.drop()
        self.written = Draft(draft.kind, draft.subject, draft.data, id=draft.id)
        with suppress(OSError, UserError):
            write_draft(self.written)


class DraftKeeper:
    """Writes the drafts of one app, and finds what an earlier one has left.

    Args:
        state: The configuration, and what its file has.
        panes: Where unread text and the conversation are.
    """

    def __init__(self, state: AppState, panes: Panes) -> None:
        self._state, self._panes = state, panes
        self._config = _Slot("config")
        self._chat = _Slot("chat")
        self._document: ConfigDocument | None = None
        self._dialogue: Dialogue | None = None

    def look(self) -> None:
        """Write what has changed, and remove what is saved or given up."""
        self._look_at_config()
        self._look_at_chat()

    def drop(self) -> None:
        """Keep nothing: the user has left of their own will, and was asked about edits."""
        self._config.drop()
        self._chat.drop()

    @property
    def kept(self) -> str:
        """What is kept now, in words; empty where nothing is."""
        parts = []
        if self._config.written is not None:
            parts.append("edits that were not saved")
        if self._chat.written is not None:
            parts.append("the conversation")
        return f"{' and '.join(parts)} {'are' if self._config.written is not None else 'is'} kept" if parts else ""

    # The configuration.

    def _look_at_config(self) -> None:
        state = self._state
        document = state.document
        if document is None:
            return
        if document is not self._document:
            # Another one was opened over it, which asks first.
            self._config.drop()
            self._document = document
        pane = self._panes.config
        text, unread = document.dumps(), pane.unread_text if pane is not None else ""
        if text == state.saved_text and not unread:
            self._config.drop()
        else:
            data = {"text": text, "unread": unread, "saved": _digest(state.saved_text)}
            self._config.keep(config_subject(document.path), data)

    def find_config(self, document: ConfigDocument) -> ConfigDraft | None:
        """Edits of this configuration that an earlier app has left; None where there are none.

        Args:
            document: The configuration as its file has it.
        """
        draft = find_draft("config", config_subject(document.path))
        if draft is None:
            return None
        text, unread, saved = (draft.data.get(name) for name in ("text", "unread", "saved"))
        if not isinstance(text, str) or not isinstance(unread, str):
            remove_draft(draft.id)
            return None
        present = document.dumps()
        if text == present and not unread:
            # Saved by other means meanwhile.
            remove_draft(draft.id)
            return None
        return ConfigDraft(draft, text, unread, saved != _digest(present))

    def take_up_config(self, document: ConfigDocument, found: ConfigDraft) -> None:
        """The edits are in this app's hands from now on."""
        self._document = document
        self._config.take_up(found.draft)

    # The conversation.

    def _look_at_chat(self) -> None:
        pane = self._panes.chat
        if pane is None:
            return
        dialogue = pane.dialogue
        if dialogue is not self._dialogue:
            # Begun anew, or with another model.
            self._chat.drop()
            self._dialogue = dialogue
        unsent = pane.unsent
        if not dialogue.exchanges and not unsent:
            self._chat.drop()
        elif pane.subject:
            self._chat.keep(pane.subject, {"exchanges": dialogue.to_data(), "unsent": unsent})

    def restore_chat(self) -> str:
        """Show the conversation that an earlier app has left of the model that is talked to now.

        Returns:
            When it was, for a notice; empty where there is none.
        """
        pane = self._panes.chat
        if pane is None or not pane.subject or pane.dialogue.exchanges:
            return ""
        draft = find_draft("chat", pane.subject)
        if draft is None:
            return ""
        dialogue, unsent = Dialogue.from_data(draft.data.get("exchanges")), draft.data.get("unsent")
        unsent = unsent if isinstance(unsent, str) else ""
        if not dialogue.exchanges and not unsent:
            remove_draft(draft.id)
            return ""
        pane.take_up(dialogue, unsent)
        self._dialogue = dialogue
        self._chat.take_up(draft)
        return told_time(draft.time)


@dataclass(frozen=True)
class ConfigDraft:
    """Edits that were left."""

    draft: Draft
    text: str
    """The whole configuration."""
    unread: str
    """What was written in an editor and is no TOML; empty where nothing is."""
    is_stale: bool
    """Whether the file is another one than that which was edited."""

    @property
    def time(self) -> str:
        """When it was, in words."""
        return told_time(self.draft.time)

    def discard(self) -> None:
        """Give the edits up."""
        remove_draft(self.draft.id)


def config_subject(path: Path | None) -> str:
    """What a configuration's draft belongs to: its file, or, with a slash at the end, where a new one was begun."""
    return str(path.absolute()) if path is not None else f"{Path.cwd()}/"


def told_time(seconds: float) -> str:
    """A moment as one says it: the time today, with the date on other days."""
    then, now = time.localtime(seconds), time.localtime()
    return time.strftime("%H:%M" if then[:3] == now[:3] else "%Y-%m-%d %H:%M", then)


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
