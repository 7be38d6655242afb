"""The file side of the config pane: saving, a file that changed meanwhile, and the user's editor."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from textual import on
from textual.app import SuspendNotSupported

from core.config.document import ConfigDocument
from core.config.recent import remember_config
from core.errors import UserError
from core.hub_uri import is_hub_entry
from tui.data_paths import entry_path
from tui.editor import edit_text
from tui.messages import ConfigEdited, ConfigLoaded, ConfigSaved
from tui.panes.base import Pane
from tui.panes.config.history import EditHistory
from tui.panes.config.model import DATA_PATHS, ConfigModel, is_there
from tui.widgets.forms.ask_bar import AskBar

_BLANK = """\
# Options are explained in the form; what is left out has its default.
[data]
train = ""
"""


class ConfigFiles(Pane):
    """A pane with a configuration that has a file; what is shown of it is up to the pane."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.model = ConfigModel(ConfigDocument())
        self.history = EditHistory(self.model)
        self._draft = ""
        self._suggested: Path | None = None
        self._save_target: Path | None = None
        self._then: Callable[[], None] | None = None

    @property
    def document(self) -> ConfigDocument:
        """The configuration being edited."""
        return self.model.document

    @property
    def unread_text(self) -> str:
        """What was written in the editor and is no configuration yet; empty where nothing is."""
        return self._draft

    def take_up(self, text: str, unread: str, when: str) -> None:
        """Go on with edits of an earlier time; undone, the configuration is as its file has it.

        Args:
            text: The whole configuration.
            unread: What was written in the editor and is no configuration; empty where nothing was.
            when: When that was.
        """
        try:
            self.document.rewrite(text)
        except UserError as error:
            self.say(f"✗ {error}")
            return
        save, undo = self.keys["config.save"].display, self.keys["config.undo"].display
        told = f"✓ edits of {when} that were not saved are back: {save} saves them, {undo} gives them up"
        self.edited(f"the edits of {when}", told)
        self._draft = unread
        if unread:
            editor = self.keys["config.editor"].display
            self.say(f"✗ What was written in the editor at {when} is not valid TOML yet; {editor} opens it.")

    @property
    def ask_bar(self) -> AskBar:
        """Where searches, file names and decisions are typed."""
        return self.query_one("#config-ask", AskBar)

    @property
    def problems(self) -> dict[str, str]:
        """What is wrong with it, option to sentence."""
        return self.model.problems()

    def say(self, text: str) -> None:
        """Tell the user something in a sentence."""
        raise NotImplementedError

    def commit_open(self) -> None:
        """Take over what is being typed."""
        raise NotImplementedError

    def load(self, document: ConfigDocument, label: str = "", text: str = "") -> None:
        """Show another configuration; ``label`` says what brought it, ``text`` is said."""
        raise NotImplementedError

    def refresh_fields(self, *, rows: bool = False) -> None:
        """Show what the document says now; ``rows`` where its data may be another."""
        raise NotImplementedError

    def apply_filter(self) -> None:
        """Show the options that are to be shown."""
        raise NotImplementedError

    def edited(self, label: str = "", text: str = "") -> None:
        """The document has been changed: take it down, show it, tell the app, and say something.

        Args:
            label: What was done, for who undoes it; empty where the difference tells.
            text: What is said.
        """
        self.history.record(self.model, label)
        self.show_document(text)

    def show_document(self, text: str = "") -> None:
        """Show a document that may be another one in every part, tell the app, and say something."""
        self._draft = ""
        self.refresh_fields(rows=True)
        self.apply_filter()
        if text:
            self.say(text)
        self.post_message(ConfigEdited(self.document, saved=self.model.saved_text))

    @on(AskBar.Submitted)
    def _answered(self, message: AskBar.Submitted) -> None:
        message.stop()
        if message.purpose == "save" and message.path is not None:
            self._save_as(message.path)
        elif message.purpose == "save":
            self._then = None

    @on(AskBar.Chosen)
    def _chosen(self, message: AskBar.Chosen) -> None:
        message.stop()
        if message.purpose == "replace" and self._save_target is not None:
            self._write(self._save_target, overwrite=True)
        elif message.purpose == "conflict" and message.key == "o":
            self._write(None, overwrite=True)
        elif message.purpose == "conflict" and message.key == "l" and self.document.path is not None:
            self._then = None
            self._load_from_disk(self.document.path)

    @on(AskBar.Cancelled)
    def _asking_cancelled(self) -> None:
        self._then = None

    def save_then(self, then: Callable[[], None]) -> None:
        """Save, and do something once it is saved; nothing where it cannot be, or the user gives up.

        Args:
            then: What is to be done.
        """
        self.action_save()
        if self.model.is_edited or self.ask_bar.is_asking:
            self._then = then if self.ask_bar.is_asking else None
        else:
            then()

    def action_save(self) -> None:
        """Write the file; ask where when there is none, and what to do when somebody else has changed it."""
        self._then = None
        self.commit_open()
        path = self.document.path
        if path is None:
            self.action_save_as()
        elif self.model.has_changed_on_disk:
            question = f"{path.name} has been changed by something else since it was read."
            self.ask_bar.ask_key("conflict", question, {"o": "overwrite it", "l": "load it, without my changes"})
        else:
            self._write(None)

    def action_save_as(self) -> None:
        """Ask for another file, and go on in that one."""
        self._then = None
        self.commit_open()
        self.ask_bar.ask_path("save", "save as", self._suggested_name(), suffixes=(".toml",))

    def _suggested_name(self) -> str:
        if self._suggested is not None:
            return path_shown(self._suggested)
        if self.document.path is not None:
            return path_shown(free_name(self.document.path))
        files = self.model.train_paths()
        return f"{files[0].stem if files else 'localtune'}.toml"

    def _save_as(self, path: Path) -> None:
        target = path if path.suffix else path.with_suffix(".toml")
        if target.is_dir():
            self._then = None
            self.say(f"✗ {target} is a directory. Give the file a name.")
        elif target.exists():
            self._save_target = target
            self.ask_bar.ask_key("replace", f"{target.name} exists already.", {"y": "replace it"})
        else:
            self._write(target)

    def _write(self, path: Path | None, *, overwrite: bool = False) -> None:
        is_copy = self._suggested is not None
        moved = rebase(self.document, self.model.base, path.parent, shorten=is_copy) if path is not None else []
        try:
            self.document.save(path, overwrite=overwrite)
        except UserError as error:
            self.history.revert()
            self._then = None
            self.say(f"✗ {error}")
            return
        self._suggested = None
        self.model.note_saved()
        if self.document.path is not None:
            remember_config(self.document.path)
        self.history.record(self.model, "paths, as seen from the new file")
        self.refresh_fields()
        wrong = len(self.problems)
        rest = f", with {wrong} problem{'' if wrong == 1 else 's'} in it" if wrong else ""
        paths = f"; {', '.join(moved)} written as seen from there" if moved else ""
        self.say(f"✓ saved to {self.document.path}{paths}{rest}")
        self.post_message(ConfigSaved(self.document))
        then, self._then = self._then, None
        if then is not None:
            then()

    def _load_from_disk(self, path: Path) -> None:
        try:
            document = ConfigDocument.load(path)
        except UserError as error:
            self.say(f"✗ {error}")
            return
        self.load(document, f"loading {path.name} from the disk", f"✓ loaded {path.name} as it is now")
        self.post_message(ConfigLoaded(document))

    def action_open_editor(self) -> None:
        """Edit the TOML in the user's editor; what does not parse is kept for the next try."""
        self.commit_open()
        path = self.document.path
        before = self._draft or self.document.dumps() or _BLANK
        try:
            with self.app.suspend():
                after = edit_text(before, path.name if path is not None else "localtune.toml")
        except SuspendNotSupported:
            self.say("✗ This terminal cannot be lent to an editor. Edit the file in another one.")
            return
        except UserError as error:
            self.say(f"✗ {error}")
            return
        self._take_edited(before, after)

    def _take_edited(self, before: str, after: str | None) -> None:
        """Go on with what the editor left: nothing, a text that cannot be read, or a new configuration."""
        if after is None:
            self._draft = ""
            self.say("The editor gave up; nothing has changed.")
            return
        if after == before and not self._draft:
            self.say("Nothing has changed.")
            return
        try:
            self.document.rewrite(after)
        except UserError as error:
            self._draft = after
            self.say(f"✗ {error} {self.keys['config.editor'].display} opens it where you left it.")
            return
        is_edited = self.model.is_edited
        self.edited("", "✓ edited" + (f"; {self.keys['config.save'].display} saves it" if is_edited else ""))


def rebase(document: ConfigDocument, old: Path, new: Path, *, shorten: bool = False) -> list[str]:
    """Write relative paths so that they mean the same files from another directory.

    Args:
        document: The configuration.
        old: What they are relative to now.
        new: What they will be relative to.
        shorten: Make absolute paths relative too, where they lie below the new directory.

    Returns:
        The options that were changed.
    """
    before, after = old.absolute(), new.absolute()
    changed: list[str] = []
    if not shorten and os.path.normpath(before) == os.path.normpath(after):
        return changed

    def moved(text: str) -> str:
        whole = entry_path(text, before)
        is_fixed = os.path.isabs(os.path.expanduser(text)) and not (shorten and whole.is_relative_to(after))
        # A model may be a name that no file has.
        if is_fixed or is_hub_entry(text) or not is_there(whole):
            return text
        return str(whole.relative_to(after)) if whole.is_relative_to(after) else os.path.normpath(whole)

    for name in ("model.base", *DATA_PATHS, "template.file"):
        value = document.get(name)
        texts = value if isinstance(value, list) else [value]
        written = [moved(text) if isinstance(text, str) and text else text for text in texts]
        if written != texts:
            document.set(name, written if isinstance(value, list) else written[0])
            changed.append(name)
    return changed


def free_name(path: Path) -> Path:
    """``tickets-2.toml`` of ``tickets.toml``, or the first number that no file has."""
    stem, number = path.stem, 2
    head, _, tail = stem.rpartition("-")
    if head and tail.isdecimal() and len(tail) < 4:
        stem, number = head, int(tail) + 1
    while (found := path.with_name(f"{stem}-{number}{path.suffix}")).exists():
        number += 1
    return found


def path_shown(path: Path) -> str:
    """A path as one would type it: from the working directory, where it lies below it."""
    whole = path.absolute()
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(whole)
