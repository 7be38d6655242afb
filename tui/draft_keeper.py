"""Drafts: unsaved edits of the configuration and the conversation, saved so that they survive the app.

They are written within a second of a change. A configuration that was never saved and a conversation are kept when the
user quits. About edits of a file the app asks then; they are kept without a question only if it ends in another way.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from core.chat.dialogue import Dialogue
from core.drafts import Draft, config_subject, find_draft, list_drafts, remove_draft, write_draft
from core.errors import UserError

if TYPE_CHECKING:
    from core.config.document import ConfigDocument
    from tui.panes import Panes
    from tui.panes.chat.pane import ChatPane
    from tui.state import AppState


#: Seconds between two checks for changes.
LOOK_SECONDS = 1.0


@dataclass
class _Slot:
    """A draft of this app, with the content of its file, if there is one."""

    kind: str
    written: Draft | None = field(default=None)
    is_behind: bool = False
    """True if the last change could not be written."""

    def keep(self, subject: str, data: Mapping[str, Any]) -> None:
        """Write the draft if it differs from its file."""
        before = self.written
        if before is not None and (before.subject, before.data) == (subject, data):
            self.is_behind = False
            return
        # A released draft that is edited again, as after an undo, is not written twice.
        before = before or next((one for one in self._left(subject) if one.data == data), None)
        draft = Draft(self.kind, subject, data) if before is None else Draft(self.kind, subject, data, id=before.id)
        # A full disk must not stop the app; the next check tries again.
        self.is_behind = True
        with suppress(OSError, UserError):
            write_draft(draft)
            self.written, self.is_behind = draft, False

    def drop(self) -> None:
        """Remove the draft."""
        self.is_behind = False
        if self.written is not None:
            remove_draft(self.written.id)
            self.written = None

    def release(self) -> None:
        """Release the draft, so that another app can take it over."""
        if self.written is not None:
            for twin in self._left(self.written.subject):
                if twin.data == self.written.data:
                    remove_draft(twin.id)
            with suppress(OSError, UserError):
                write_draft(self.written, release=True)
            self.written = None

    def take_up(self, draft: Draft, subject: str = "") -> None:
        """Take over a draft that another app has released, exclusively.

        Args:
            draft: The draft.
            subject: A new subject for it.
        """
        self.drop()
        self.written = Draft(draft.kind, subject or draft.subject, draft.data, draft.time, draft.id)
        with suppress(OSError, UserError):
            write_draft(self.written)

    def _left(self, subject: str) -> list[Draft]:
        return [one for one in list_drafts(self.kind) if one.subject == subject and one.is_left]


class DraftKeeper:
    """Writer of an app's drafts, and finder of those left by an earlier app.

    Args:
        state: The configuration, and the content of its file.
        panes: The panes, with unparsed text and the conversation.
        remembers: Whether the app restores its last session; if not, conversations are dropped when the user quits,
            and are not kept with their runs.
    """

    def __init__(self, state: AppState, panes: Panes, *, remembers: bool = True) -> None:
        self._state, self._panes, self._remembers = state, panes, remembers
        self._config = _Slot("config")
        self._chat = _Slot("chat")
        self._document: ConfigDocument | None = None
        self._dialogue: Dialogue | None = None
        self._transcript: tuple[str, list[dict[str, Any]]] = ("", [])
        self._is_closed = self._sets_aside = False

    def look(self) -> None:
        """Write changed drafts, and remove saved or discarded ones."""
        if not self._is_closed:
            self._look_at_config()
            self._look_at_chat()

    def set_aside(self) -> None:
        """Keep the edits of the present configuration when another one is opened, even edits of a file.

        They are restored when the file is opened again.
        """
        self.look()
        self._sets_aside = True

    def close(self, *, discards: bool = False) -> None:
        """Release the drafts to the next app, as the user quits.

        Args:
            discards: Whether the user discards the edits of the configuration.
        """
        self.look()
        self._is_closed = True
        if discards:
            self._config.drop()
        if not self._remembers:
            self._chat.drop()
        self._config.release()
        self._chat.release()

    @property
    def kept(self) -> str:
        """The present drafts in words; empty if there are none."""
        parts = []
        if self._config.written is not None:
            parts.append("edits that were not saved")
        if self._chat.written is not None:
            parts.append("the conversation")
        return f"{' and '.join(parts)} {'are' if self._config.written is not None else 'is'} kept" if parts else ""

    # The configuration.

    @property
    def new_config(self) -> str:
        """The data of a kept configuration without a file, in words; empty if there is none."""
        draft = self._config.written
        if draft is None or not draft.is_of_new_config or self._document is None:
            return ""
        from core.runs.catalog.earlier import run_name

        return run_name(self._document) or "no data yet"

    @property
    def is_config_kept(self) -> bool:
        """True if the draft has every edit of the configuration; False if it cannot be written."""
        self.look()
        return not self._config.is_behind

    @property
    def config_id(self) -> str:
        """The id of the draft of the configuration; empty if there is none."""
        return self._config.written.id if self._config.written is not None else ""

    def _look_at_config(self) -> None:
        state = self._state
        document = state.document
        if document is None:
            return
        if document is not self._document:
            self._turn_to(document)
        pane = self._panes.config
        text, unread = document.dumps(), ""
        if pane is not None and pane.document is document:
            unread = pane.unread_text
        elif self._config.written is not None:
            # Another configuration is being opened, and the pane has it already.
            unread = str(self._config.written.data.get("unread", ""))
        # The state gets a save one message later than the document.
        is_saved = text == state.saved_text or (document.path is not None and text == document.saved_text)
        if is_saved and not unread:
            self._config.drop()
        else:
            data: dict[str, Any] = {"text": text, "unread": unread, "saved": _digest(state.saved_text)}
            if (origin := state.origin) is not None:
                # With its values: they are not the run's where it is trained further.
                data |= {"run": str(origin.run.path), "values": dict(origin.values)}
            self._config.keep(config_subject(document.path), data)

    def _turn_to(self, document: ConfigDocument) -> None:
        """Switch to another configuration; keep the old draft if it has no file or was set aside."""
        if self._document is not None and (self._document.path is None or self._sets_aside):
            self._config.release()
        self._config.drop()
        self._sets_aside = False
        self._document = document

    def adopt(self, document: ConfigDocument, identity: str) -> None:
        """Take over a draft that has been opened.

        Args:
            document: The configuration opened from it.
            identity: The id of the draft.
        """
        self._turn_to(document)
        draft = next((one for one in list_drafts("config") if one.id == identity and one.is_left), None)
        if draft is not None:
            self._config.take_up(draft, config_subject(document.path))

    def find_config(self, document: ConfigDocument) -> ConfigDraft | None:
        """The draft of a configuration left by an earlier app; None if there is none.

        Args:
            document: The configuration as in its file.
        """
        draft = find_draft("config", config_subject(document.path))
        if draft is None or (draft.is_of_new_config and draft.is_released and self._remembers):
            # A draft left by quitting is opened from the session, or from the list.
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
        """Take over the edits as this app's draft."""
        self._document = document
        self._config.take_up(found.draft)

    # The conversation.

    def _look_at_chat(self) -> None:
        pane = self._panes.chat
        if pane is None:
            return
        dialogue, written = pane.dialogue, self._chat.written
        if dialogue is not self._dialogue:
            if written is not None and written.subject != pane.subject:
                # A conversation with another model; it is restored with that model.
                self._chat.release()
            self._chat.drop()
            self._dialogue = dialogue
        unsent = pane.unsent
        if not dialogue.exchanges and not unsent:
            self._chat.drop()
        elif pane.subject:
            exchanges = dialogue.to_data()
            about = {"id": dialogue.id, "started": dialogue.started}
            self._chat.keep(pane.subject, {"exchanges": exchanges, "unsent": unsent, **about})
            self._keep_transcript(pane, exchanges)

    def _keep_transcript(self, pane: ChatPane, exchanges: list[dict[str, Any]]) -> None:
        """Save the conversation in its run's directory too, once it has an answer: a draft ends with it."""
        run = pane.partner.run
        if run is None or pane.is_answering or not exchanges or not self._remembers:
            return
        if (pane.dialogue.id, exchanges) == self._transcript:
            return
        from core.chat.transcripts import keep_transcript

        # If it cannot be written, the draft remains; the next change tries again.
        self._transcript = (pane.dialogue.id, exchanges)
        with suppress(OSError, UserError):
            keep_transcript(run, pane.dialogue, pane.system)

    def restore_chat(self) -> str:
        """Restore the conversation that an earlier app left for the current model.

        Returns:
            Its time, for a notice; empty if there is none, or if the user quit that app.
        """
        pane = self._panes.chat
        if pane is None or not pane.subject or pane.dialogue.exchanges:
            return ""
        draft = find_draft("chat", pane.subject)
        if draft is None:
            return ""
        dialogue, unsent = _dialogue(draft), draft.data.get("unsent")
        unsent = unsent if isinstance(unsent, str) else ""
        if not dialogue.exchanges and not unsent:
            remove_draft(draft.id)
            return ""
        pane.take_up(dialogue, unsent)
        self._dialogue = dialogue
        self._chat.take_up(draft)
        # Text in the prompt alone is not a conversation.
        return draft.when if dialogue.exchanges and not draft.is_released else ""


@dataclass(frozen=True)
class ConfigDraft:
    """A draft of a configuration, left by an earlier app."""

    draft: Draft
    text: str
    """The whole configuration."""
    unread: str
    """Text of an editor that is not valid TOML; empty if there is none."""
    is_stale: bool
    """True if the file has changed since the draft was written."""

    @property
    def time(self) -> str:
        """The time of the draft, in words."""
        return self.draft.when

    def discard(self) -> None:
        """Discard the edits."""
        remove_draft(self.draft.id)


def _dialogue(draft: Draft) -> Dialogue:
    """The conversation of a draft, with the id under which its run keeps it."""
    dialogue = Dialogue.from_data(draft.data.get("exchanges"))
    identity, started = draft.data.get("id"), draft.data.get("started")
    if isinstance(identity, str) and identity.isalnum() and identity.isascii() and len(identity) <= 64:
        dialogue.id = identity
    if isinstance(started, float) and 0 <= started < time.time() + 86400:
        dialogue.started = started
    return dialogue


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
