"""Drafts: unsaved edits of the configuration and the conversation, kept so that they outlive the app.

They are written within a second of a change. A configuration that was never saved and a conversation stay when the app
is left; edits of a file are asked about then, and stay only where the app ends in another way.
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


#: Seconds between two looks for changes.
LOOK_SECONDS = 1.0


@dataclass
class _Slot:
    """A draft of this app, and the content of its file, if there is one."""

    kind: str
    written: Draft | None = field(default=None)
    is_behind: bool = False
    """Whether the last change could not be written."""

    def keep(self, subject: str, data: Mapping[str, Any]) -> None:
        """Write the draft, where it differs from its file."""
        before = self.written
        if before is not None and (before.subject, before.data) == (subject, data):
            self.is_behind = False
            return
        # One that was released and is now gone on with, as after an undo, is not kept twice.
        before = before or next((one for one in self._left(subject) if one.data == data), None)
        draft = Draft(self.kind, subject, data) if before is None else Draft(self.kind, subject, data, id=before.id)
        # Work goes on where it cannot be kept: a disk may be full, and the next look tries again.
        self.is_behind = True
        with suppress(OSError, UserError):
            write_draft(draft)
            self.written, self.is_behind = draft, False

    def drop(self) -> None:
        """Remove the draft: there is nothing to keep any more."""
        self.is_behind = False
        if self.written is not None:
            remove_draft(self.written.id)
            self.written = None

    def release(self) -> None:
        """Leave the draft to whoever goes on with it: this app does no more."""
        if self.written is not None:
            for twin in self._left(self.written.subject):
                if twin.data == self.written.data:
                    remove_draft(twin.id)
            with suppress(OSError, UserError):
                write_draft(self.written, release=True)
            self.written = None

    def take_up(self, draft: Draft, subject: str = "") -> None:
        """Take over a draft that another app has left; no third app can take it from now on.

        Args:
            draft: The draft.
            subject: Another subject for it.
        """
        self.drop()
        self.written = Draft(draft.kind, subject or draft.subject, draft.data, draft.time, draft.id)
        with suppress(OSError, UserError):
            write_draft(self.written)

    def _left(self, subject: str) -> list[Draft]:
        return [one for one in list_drafts(self.kind) if one.subject == subject and one.is_left]


class DraftKeeper:
    """Drafts of one app: written, and found again when an earlier app has left some.

    Args:
        state: The configuration, and the content of its file.
        panes: Where unread text and the conversation are.
        remembers: Whether the app begins with what was open last; else no conversation stays when it is left by choice,
            and none is kept with its run.
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
        """Write changed drafts, and remove those that were saved or discarded."""
        if not self._is_closed:
            self._look_at_config()
            self._look_at_chat()

    def set_aside(self) -> None:
        """Keep the edits of the present configuration when the next one is turned to, those of a file too.

        They come back with the next opening of the file.
        """
        self.look()
        self._sets_aside = True

    def close(self, *, discards: bool = False) -> None:
        """Leave the drafts to the next app: the user quits by choice.

        Args:
            discards: Whether the user gives up the edits of the configuration.
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
        """The drafts kept now, in words; empty where there are none."""
        parts = []
        if self._config.written is not None:
            parts.append("edits that were not saved")
        if self._chat.written is not None:
            parts.append("the conversation")
        return f"{' and '.join(parts)} {'are' if self._config.written is not None else 'is'} kept" if parts else ""

    # The configuration.

    @property
    def new_config(self) -> str:
        """The data of the configuration that has no file and is kept, in words; empty where none is."""
        draft = self._config.written
        if draft is None or not draft.is_of_new_config or self._document is None:
            return ""
        from core.runs.catalog.earlier import run_name

        return run_name(self._document) or "no data yet"

    @property
    def is_config_kept(self) -> bool:
        """Whether no edit of the configuration is missing in its draft; False where that cannot be written."""
        self.look()
        return not self._config.is_behind

    @property
    def config_id(self) -> str:
        """The id of the draft of the configuration; empty where there is none."""
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
            # Another one is being opened, and the pane has that already.
            unread = str(self._config.written.data.get("unread", ""))
        # A save is heard of a message later than it is done.
        is_saved = text == state.saved_text or (document.path is not None and text == document.saved_text)
        if is_saved and not unread:
            self._config.drop()
        else:
            run = str(state.origin.run.path) if state.origin is not None else ""
            data = {"text": text, "unread": unread, "saved": _digest(state.saved_text), "run": run}
            self._config.keep(config_subject(document.path), data)

    def _turn_to(self, document: ConfigDocument) -> None:
        """Turn to another configuration; one that was never saved stays, edits of a file were asked about or stay."""
        if self._document is not None and (self._document.path is None or self._sets_aside):
            self._config.release()
        self._config.drop()
        self._sets_aside = False
        self._document = document

    def adopt(self, document: ConfigDocument, identity: str) -> None:
        """Go on with a draft that has been opened, as this app's own.

        Args:
            document: The configuration that was opened from it.
            identity: Its id.
        """
        self._turn_to(document)
        draft = next((one for one in list_drafts("config") if one.id == identity and one.is_left), None)
        if draft is not None:
            self._config.take_up(draft, config_subject(document.path))

    def find_config(self, document: ConfigDocument) -> ConfigDraft | None:
        """A draft of this configuration that an earlier app has left; None where there is none.

        Args:
            document: The configuration as its file has it.
        """
        draft = find_draft("config", config_subject(document.path))
        if draft is None or (draft.is_of_new_config and draft.is_released and self._remembers):
            # One that was left by choice is opened from the session, or from the list.
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
        dialogue, written = pane.dialogue, self._chat.written
        if dialogue is not self._dialogue:
            if written is not None and written.subject != pane.subject:
                # With another model; this one goes on when that model is back.
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
        """Keep the conversation with its run as well, once an answer is there; a draft ends with the conversation."""
        run = pane.partner.run
        if run is None or pane.is_answering or not exchanges or not self._remembers:
            return
        if (pane.dialogue.id, exchanges) == self._transcript:
            return
        from core.chat.transcripts import keep_transcript

        # Where it cannot be written, the draft is what there is; the next change tries again.
        self._transcript = (pane.dialogue.id, exchanges)
        with suppress(OSError, UserError):
            keep_transcript(run, pane.dialogue, pane.system)

    def restore_chat(self) -> str:
        """Restore the conversation that an earlier app has left for the current model.

        Returns:
            When it was, for a notice; empty where there is none, or where the app was left by choice.
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
        # A text that was only typed stands in the prompt, and is no conversation.
        return draft.when if dialogue.exchanges and not draft.is_released else ""


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
        return self.draft.when

    def discard(self) -> None:
        """Discard the edits."""
        remove_draft(self.draft.id)


def _dialogue(draft: Draft) -> Dialogue:
    """The conversation of a draft, by its name, under which it is kept with its run."""
    dialogue = Dialogue.from_data(draft.data.get("exchanges"))
    identity, started = draft.data.get("id"), draft.data.get("started")
    if isinstance(identity, str) and identity.isalnum() and identity.isascii() and len(identity) <= 64:
        dialogue.id = identity
    if isinstance(started, float) and 0 <= started < time.time() + 86400:
        dialogue.started = started
    return dialogue


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
