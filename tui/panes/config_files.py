"""The file side of the config pane: saving, a file that changed meanwhile, and the user's editor."""

from __future__ import annotations

from pathlib import Path

from textual import on
from textual.app import SuspendNotSupported

from core.config.document import ConfigDocument
from core.errors import UserError
from tui.messages import ConfigEdited, ConfigLoaded, ConfigSaved
from tui.panes.base import Pane
from tui.panes.config_model import ConfigModel
from tui.panes.editor import edit_text
from tui.widgets.ask_bar import AskBar

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
        self._draft = ""
        self._save_target: Path | None = None

    @property
    def document(self) -> ConfigDocument:
        """The configuration being edited."""
        return self.model.document

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

    def load(self, document: ConfigDocument) -> None:
        """Show another configuration."""
        raise NotImplementedError

    def refresh_fields(self, *, rows: bool = False) -> None:
        """Show what the document says now; ``rows`` where its data may be another."""
        raise NotImplementedError

    def apply_filter(self) -> None:
        """Show the options that are to be shown."""
        raise NotImplementedError

    @on(AskBar.Submitted)
    def _answered(self, message: AskBar.Submitted) -> None:
        message.stop()
        if message.purpose == "save" and message.path is not None:
            self._save_as(message.path)

    @on(AskBar.Chosen)
    def _chosen(self, message: AskBar.Chosen) -> None:
        message.stop()
        if message.purpose == "replace" and self._save_target is not None:
            self._write(self._save_target, overwrite=True)
        elif message.key == "o":
            self._write(None, overwrite=True)
        elif message.key == "l" and self.document.path is not None:
            self._load_from_disk(self.document.path)

    def action_save(self) -> None:
        """Write the file; ask where when there is none, and what to do when somebody else has changed it."""
        self.commit_open()
        path = self.document.path
        if path is None:
            self.ask_bar.ask_path("save", "save as", self._suggested_name(), suffixes=(".toml",))
        elif self.model.has_changed_on_disk:
            question = f"{path.name} has been changed by something else since it was read."
            self.ask_bar.ask_key("conflict", question, {"o": "overwrite it", "l": "load it, without my changes"})
        else:
            self._write(None)

    def _suggested_name(self) -> str:
        files = self.model.train_paths()
        return f"{files[0].stem if files else 'localtune'}.toml"

    def _save_as(self, path: Path) -> None:
        target = path if path.suffix else path.with_suffix(".toml")
        if target.is_dir():
            self.say(f"✗ {target} is a directory. Give the file a name.")
        elif target.exists():
            self._save_target = target
            self.ask_bar.ask_key("replace", f"{target.name} exists already.", {"y": "replace it"})
        else:
            self._write(target)

    def _write(self, path: Path | None, *, overwrite: bool = False) -> None:
        try:
            self.document.save(path, overwrite=overwrite)
        except UserError as error:
            self.say(f"✗ {error}")
            return
        self.model.note_saved()
        self.refresh_fields()
        wrong = len(self.problems)
        rest = f", with {wrong} problem{'' if wrong == 1 else 's'} in it" if wrong else ""
        self.say(f"✓ saved to {self.document.path}{rest}")
        self.post_message(ConfigSaved(self.document))

    def _load_from_disk(self, path: Path) -> None:
        try:
            document = ConfigDocument.load(path)
        except UserError as error:
            self.say(f"✗ {error}")
            return
        self._replace(document)
        self.say(f"✓ loaded {path.name} as it is now")
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
            document = ConfigDocument(after, self.document.path)
        except UserError as error:
            self._draft = after
            self.say(f"✗ {error} {self.keys['config.editor'].display} opens it where you left it.")
            return
        self._replace(document)
        self.say("✓ edited" + (f"; {self.keys['config.save'].display} saves it" if self.model.is_edited else ""))
        self.post_message(ConfigEdited(document))

    def _replace(self, document: ConfigDocument) -> None:
        """Another document for the same file: the form stays as it is."""
        disk, saved = self.model.disk, self.model.saved_text
        self.model = ConfigModel(document)
        if document.dumps() != self.model.saved_text:
            # What was read first stays what the file is compared with.
            self.model.disk, self.model.saved_text = disk, saved
        self._draft = ""
        self.refresh_fields(rows=True)
        self.apply_filter()
