"""The chat template of the configuration: chosen from a list, or edited in a file of the user's own."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from textual import on, work
from textual.app import SuspendNotSupported
from textual.widgets import OptionList

from core.atomic import write_atomic
from core.errors import UserError
from core.template.sandboxed import check_template
from core.text import one_line
from tui.editor import edit_text
from tui.messages import OptionsChosen
from tui.screens.help import HelpScreen
from tui.screens.template.template_entries import FILE, OWN, TemplateEntry, file_entry
from tui.screens.template.template_view import TemplateView
from tui.widgets.forms.ask_bar import AskBar

SUFFIXES = (".jinja", ".j2", ".txt")

HELP = (
    "A chat template turns a conversation into the text that the model sees. The list has the model's own, the file of "
    "template.file and those that come with the app. The row shows what is learned with the one under the cursor, and "
    "the generation prompt with which the model is let to answer. ● marks the one in force, ✗ one that cannot be used "
    "for this row. What is chosen is in the configuration at once and in its file when that is saved."
)


class TemplateScreen(TemplateView):
    """Shows and chooses; posts :class:`~tui.messages.OptionsChosen` to the app."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._draft: str | None = None
        """What an editor left that could not be written."""
        self._target: Path | None = None

    @property
    def ask_bar(self) -> AskBar:
        """Where paths are typed."""
        return self.query_one("#template-ask", AskBar)

    # Choosing.

    @on(OptionList.OptionSelected)
    def _selected(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        self.action_use()

    @work(exclusive=True, group="template-use", description="template-use")
    async def action_use(self) -> None:
        """Put the template under the cursor into the configuration, and go back."""
        entry = self.current
        if entry is None or self.templates is None:
            return
        if entry.source is None and entry.id != OWN:
            self.say(f"✗ {entry.problem}")
            return
        if entry.source is not None and (error := await _refused(entry.source)) is not None:
            self.say(f"✗ {error}")
            return
        self._put_in_force(entry)
        self.dismiss(None)

    def _put_in_force(self, entry: TemplateEntry, *, is_told: bool = True) -> None:
        title = "The model's own" if entry.id == OWN else entry.title
        notice = entry.problem or f"{title} is the chat template."
        self.app.post_message(OptionsChosen(entry.values, notice if is_told else ""))

    def action_help(self) -> None:
        """Explain the keys."""
        self.app.push_screen(HelpScreen("Chat template", HELP, self.keys, "template"))

    def action_back(self) -> None:
        """Go back to the panes."""
        self.dismiss(None)

    # Editing.

    def action_edit(self) -> None:
        """Edit the file of a template in place, any other in a copy; ask where that is to be."""
        entry = self.current
        if entry is None:
            return
        if self._draft is not None:
            self._ask_path(entry)
        elif entry.path is not None:
            self._edit_file(entry.path)
        elif entry.source is None:
            self.say(f"✗ {entry.problem}")
        else:
            self._ask_path(entry)

    def _ask_path(self, entry: TemplateEntry) -> None:
        directory = self.plan.directory
        self.ask_bar.ask_path("copy", "save the copy as", entry.file_name, base=directory, suffixes=SUFFIXES)

    @on(AskBar.Submitted)
    def _path_given(self, message: AskBar.Submitted) -> None:
        message.stop()
        if message.path is None:
            return
        path = message.path if message.path.suffix else message.path.with_suffix(".jinja")
        if os.path.isdir(path):
            self.say(f"✗ {path} is a directory. Give the file a name.")
        elif os.path.exists(path) and self._draft is None:
            self._target = path
            answers = {"u": "edit it as it is", "r": "replace it"}
            self.ask_bar.ask_key("exists", f"{path.name} exists already.", answers)
        elif os.path.exists(path):
            self._target = path
            self.ask_bar.ask_key("exists", f"{path.name} exists already.", {"r": "replace it"})
        else:
            self._go_on(path)

    @on(AskBar.Chosen)
    def _existing_chosen(self, message: AskBar.Chosen) -> None:
        message.stop()
        path = self._target
        if path is None:
            return
        if message.key == "r":
            self._go_on(path)
            return
        self._edit_file(path)

    @on(AskBar.Changed)
    @on(AskBar.Cancelled)
    def _asking(self, message: AskBar.Changed | AskBar.Cancelled) -> None:
        message.stop()

    def _go_on(self, path: Path) -> None:
        """With a path: write what an editor left before, else edit a copy of the template under the cursor."""
        entry = self.current
        if self._draft is not None:
            self._write(self._draft, path)
        elif entry is not None and entry.source is not None:
            self._edit(entry.source, path)

    def _edit_file(self, path: Path) -> None:
        """Edit a file as it is now, which somebody else may have changed."""
        found = file_entry(path)
        if found.source is None:
            self.say(f"✗ {found.problem}")
        else:
            self._edit(found.source, path)

    def _edit(self, source: str, path: Path) -> None:
        """Lend the terminal to the editor; what it leaves goes into the file, and is used if it can be."""
        try:
            with self.app.suspend():
                after = edit_text(source.encode("utf-8", "replace").decode(), path.name)
        except SuspendNotSupported:
            self.say(
                "✗ This terminal cannot be lent to an editor. Edit the file in another one, and set template.file."
            )
            return
        except UserError as error:
            self.say(f"✗ {error}")
            return
        if after is None:
            self.say("The editor gave up; nothing has changed.")
        elif after != source:
            self._write(after, path)
        elif os.path.exists(path) and not self._is_in_force(path):
            self._take(after, path)
        else:
            self.say("Nothing has changed.")

    def _is_in_force(self, path: Path) -> bool:
        templates = self.templates
        file = templates.entry(FILE) if templates is not None and templates.in_force == FILE else None
        return file is not None and file.path == path

    def _write(self, text: str, path: Path) -> None:
        try:
            write_atomic(path, text, mode=0o644)
        except (OSError, UnicodeEncodeError) as error:
            self._draft = text
            reason = error.strerror if isinstance(error, OSError) else "it is no valid Unicode"
            again = self.keys["template.edit"].display
            self.say(f"✗ {path} cannot be written: {reason}. Your text is kept; {again} saves it elsewhere.")
            return
        self._draft = None
        self._take(text, path)

    @work(exclusive=True, group="template-use", description="template-take")
    async def _take(self, text: str, path: Path) -> None:
        """Show a file as the template, and put it in force unless it is no Jinja."""
        error = await _refused(text)
        templates = self.templates
        if templates is None:
            return
        entry = file_entry(path, text)
        others = [other for other in templates.entries if other.id != FILE]
        entries = (*others[:1], entry, *others[1:])
        shown = one_line(path.name, 60)
        if error is not None:
            is_used = self._is_in_force(path)
            self.templates = replace(templates, entries=entries)
            self.show_again(FILE)
            rest = "" if is_used else ", and not used until it is mended"
            again = self.keys["template.edit"].display
            self.say(f"✗ {error.message} It is saved in {shown}{rest}; {again} opens it again.")
            return
        self.templates = replace(templates, entries=entries, in_force=FILE)
        self.show_again(FILE)
        self._put_in_force(entry, is_told=False)
        self.say(f"✓ {shown} is saved and is the chat template.")


async def _refused(source: str) -> UserError | None:
    """Why a template cannot be used; None where it can."""
    try:
        await asyncio.to_thread(check_template, source)
    except UserError as error:
        return error
    return None
