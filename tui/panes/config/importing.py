"""A configuration of another tool, opened in the config pane as a new one that is not saved yet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from textual import on, work
from textual.message import Message

from core.config.document import ConfigDocument
from core.errors import UserError
from tui.messages import ConfigEdited
from tui.panes.config.files import ConfigFiles
from tui.screens.choice import Choice, ChoiceDialog
from tui.widgets.forms.ask_bar import AskBar

if TYPE_CHECKING:
    from core.importers.convert import Imported

_SUFFIXES = (".yml", ".yaml")
#: Columns of the report, inside of its dialog.
_WIDTH = 64


@dataclass
class _Carried(Message):
    path: Path
    imported: Imported


@dataclass
class _Refused(Message):
    error: UserError


class ConfigImport(ConfigFiles):
    """A pane that takes configurations of Axolotl, LLaMA-Factory and Unsloth."""

    def action_import_file(self) -> None:
        """Ask for a file; what has not been saved is not given up without asking."""
        self.commit_open()
        if self.model.is_edited:
            self.ask_bar.ask_key("import-over", "What is here has not been saved.", {"y": "import over it"})
        else:
            self._ask_file()

    def _ask_file(self) -> None:
        self.ask_bar.ask_path("import", "import", suffixes=_SUFFIXES)

    @on(AskBar.Chosen)
    def _import_over(self, message: AskBar.Chosen) -> None:
        if message.purpose == "import-over":
            self._ask_file()

    @on(AskBar.Submitted)
    def _file_named(self, message: AskBar.Submitted) -> None:
        if message.purpose == "import" and message.path is not None:
            self.say(f"Reading {message.path.name} …")
            self._carry_over(message.path)

    @work(thread=True, exclusive=True, group="config-import")
    def _carry_over(self, path: Path) -> None:
        from core.importers.convert import import_config

        try:
            self.post_message(_Carried(path, import_config(path)))
        except UserError as error:
            self.post_message(_Refused(error))

    @on(_Refused)
    def _import_refused(self, message: _Refused) -> None:
        self.say(f"✗ {message.error}")

    @on(_Carried)
    def _import_done(self, message: _Carried) -> None:
        from core.importers.report import render

        document = ConfigDocument(message.imported.toml)
        self.load(document, f"importing {message.path.name}")
        self.post_message(ConfigEdited(document, saved=""))
        text = "\n".join(render(message.imported, _WIDTH))
        for unknown in message.imported.unknown:
            guess = f" Did you mean {unknown.guess}?" if unknown.guess else ""
            text += f"\n\nLine {unknown.line}: {message.imported.title} has no key {unknown.key}.{guess}"
        self.app.push_screen(ChoiceDialog(f"Imported from {message.path.name}", text, [Choice("enter", "", "close")]))
