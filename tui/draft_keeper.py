"""Drafts: unsaved edits of the configuration and the conversation, kept so that they outlive the app.

They are written within a second of a change, and when the app ends in any way but by the user's choice; the next app
on the same configuration or run takes them up.
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


#: Seconds between two looks for changes.
LOOK_SECONDS = 1.0


@dataclass
class _Slot:
    """One draft of this app, and the content of its file, if there is one."""

    kind: str
    written: Draft | None = field(default=None)

    def keep(self, subject: str, data: Mapping[str, Any]) -> None:
        """Write the draft, where it differs from its file."""
        before = self.written
        if before is not None and (before.subject, before.data) == (subject, data):
            return
        draft = Draft(self.kind, subject, data) if before is None else Draft(self.kind, subject, data, id=before.id)
        # Work goes on where it cannot be kept: a disk may be full, and the next look tries again.
        with suppress(OSError, UserError):
            write_draft(draft)
            self.written = draft

    def drop(self) -> None:
        """Remove the draft: there is nothing to keep any more."""
        if self.written is not None:
            remove_draft(self.written.id)
            self.written = None

    def take_up(self, draft: Draft) -> None:
        """Take over a draft that another app has left; no third app can take it from now on."""
        self.drop()
        self.written = Draft(draft.kind, draft.subject, draft.data, id=draft.id)
        with suppress(OSError, UserError):
            write_draft(self.written)


class DraftKeeper:
    """Drafts of one app: written, and found again when an earlier app has left some.

    Args:
        state: The configuration, and the content of its file.
        panes: Where unread text and the conversation are.
    """

    def __init__(self, state: AppState, panes: Panes) -> None:
        self._state, self._panes = state, panes
        self._config = _Slot("config")
        self._chat = _Slot("chat")
        self._document: ConfigDocument | None = None
        self._dialogue: Dialogue | None = None

    def look(self) -> None:
        """Write changed drafts, and remove those that were saved or discarded."""
        self._look_at_config()
        self._look_at_chat()

    def drop(self) -> None:
        """Remove all drafts: the user has quit by choice, and was asked about edits."""
        self._config.drop()
        self._chat.drop()

    @property
    def kept(self) -> str:
        """The drafts kept now, in words; empty where there are none."""
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
        """A draft of this configuration that an earlier app has left; None where there is none.

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
            # Saved by other means since.
            remove_draft(draft.id)
            return None
        return ConfigDraft(draft, text, unread, saved != _digest(present))

    def take_up_config(self, document: ConfigDocument, found: ConfigDraft) -> None:
        """Take over the edits, so that they are this app's draft from now on."""
        self._document = document
        self._config.take_up(found.draft)

    # The conversation.

    def _look_at_chat(self) -> None:
        pane = self._panes.chat
        if pane is None:
            return
        dialogue = pane.dialogue
        if dialogue is not self._dialogue:
            # A new conversation, or one with another model.
            self._chat.drop()
            self._dialogue = dialogue
        unsent = pane.unsent
        if not dialogue.exchanges and not unsent:
            self._chat.drop()
        elif pane.subject:
            self._chat.keep(pane.subject, {"exchanges": dialogue.to_data(), "unsent": unsent})

    def restore_chat(self) -> str:
        """Restore the conversation that an earlier app has left for the current model.

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
    """A draft of a configuration, left by an earlier app."""

    draft: Draft
    text: str
    """The whole configuration."""
    unread: str
    """Unparsed text of an editor, which is not TOML; empty where there is none."""
    is_stale: bool
    """Whether the file has changed since it was edited."""

    @property
    def time(self) -> str:
        """The time of the draft, in words."""
        return told_time(self.draft.time)

    def discard(self) -> None:
        """Discard the edits."""
        remove_draft(self.draft.id)


def config_subject(path: Path | None) -> str:
    """The subject of a configuration's draft: its file, or, with a slash at the end, the directory of a new one."""
    return str(path.absolute()) if path is not None else f"{Path.cwd()}/"


def told_time(seconds: float) -> str:
    """A moment in words: the time today, with the date on other days."""
    then, now = time.localtime(seconds), time.localtime()
    return time.strftime("%H:%M" if then[:3] == now[:3] else "%Y-%m-%d %H:%M", then)


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
