"""The config pane: every option as a form, checked as it is typed, saved without losing a comment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult, SuspendNotSupported
from textual.binding import BindingType
from textual.content import Content
from textual.message import Message
from textual.widgets import Static
from textual.worker import get_current_worker

from core.config.document import ConfigDocument, describe_type
from core.errors import UserError
from core.text import one_line
from tui.keys import bindings
from tui.messages import ConfigEdited, ConfigLoaded, ConfigSaved, StartRequested
from tui.panes.base import Pane
from tui.panes.config_model import DATA_PATHS, ConfigModel
from tui.panes.editor import edit_text
from tui.widgets.ask_bar import AskBar
from tui.widgets.data_tree import DATA_SUFFIXES
from tui.widgets.option_field import OptionField, format_value
from tui.widgets.option_form import OptionForm

#: Options whose values are completed from the file system, with the endings that are offered.
PATH_OPTIONS: dict[str, Sequence[str]] = {
    **dict.fromkeys(DATA_PATHS, DATA_SUFFIXES),
    "model.base": (".gguf",),
    "template.file": (".jinja", ".j2", ".txt"),
}
#: What an absent value means, where a dash would not tell.
UNSET_TEXTS = {
    "data.train": "needed",
    "data.eval": "none",
    "template.file": "the model's own",
    "train.max_steps": "no limit",
    "train.micro_batch_size": "chosen",
    "eval.every_steps": "at the end",
    "checkpoint.every_steps": "ten times",
    "chat.system": "none",
}


@dataclass
class _RowsCounted(Message):
    path: Path
    count: int


class ConfigPane(Pane):
    """Edit the configuration; ``load`` shows another one."""

    DEFAULT_CSS = """
    ConfigPane {
        & > #config-summary { height: auto; max-height: 2; }
        & > #config-strangers { height: auto; max-height: 3; color: $limit; }
        & > #config-help { height: auto; max-height: 2; color: $muted; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("config")]

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.model = ConfigModel(ConfigDocument())
        self._shows_expert = False
        self._filter = ""
        self._note = ""
        self._problems: dict[str, str] = {}
        self._rows: dict[Path, int] = {}
        self._draft = ""
        self._save_target: Path | None = None
        self._emptied: OptionField | None = None

    def compose(self) -> ComposeResult:
        """Summary, the form, what the option under the cursor means."""
        yield Static(id="config-summary", markup=False)
        yield Static(id="config-strangers", markup=False)
        yield OptionForm(id="config-form")
        yield Static(id="config-help", markup=False)
        yield AskBar(id="config-ask")

    async def on_mount(self) -> None:
        """Build the form of what is loaded."""
        self.prefer_focus(self.form)
        self.set_hints(["config.edit", "config.search", "config.expert", "config.save"])
        await self._build()

    # What is shown.

    @property
    def form(self) -> OptionForm:
        """The fields."""
        return self.query_one("#config-form", OptionForm)

    @property
    def ask_bar(self) -> AskBar:
        """Where searches, file names and decisions are typed."""
        return self.query_one("#config-ask", AskBar)

    @property
    def document(self) -> ConfigDocument:
        """The configuration being edited."""
        return self.model.document

    @property
    def problems(self) -> dict[str, str]:
        """What is wrong with it, option to sentence."""
        return self._problems

    def load(self, document: ConfigDocument) -> None:
        """Show another configuration, or the present one anew; what was not saved of the old one is gone."""
        if document is self.document:
            # What its file was when it was read still counts.
            self.reload_values()
            return
        self.model = ConfigModel(document)
        self._draft, self._note = "", ""
        if self.is_mounted:
            self.call_later(self._build)

    def reload_values(self) -> None:
        """Show what the document says now, after something else has changed it."""
        if self.is_mounted:
            self._refresh(rows=True)
            self._apply_filter()

    async def _build(self) -> None:
        fields = []
        for option in self.model.options:
            field = OptionField(option, base=self.model.base, suffixes=PATH_OPTIONS.get(option.name))
            field.unset_text = UNSET_TEXTS.get(option.name, "")
            fields.append(field)
        await self.form.build(fields)
        self._apply_filter()
        self._refresh(rows=True)

    def _refresh(self, *, rows: bool = False) -> None:
        """Bring every field, the title and the summary up to the document."""
        self._problems = self.model.problems()
        for field in self.form.fields:
            field.value = self.document.get(field.option.name)
            field.problem = self._problems.get(field.option.name, "")
        known = {field.option.name for field in self.form.fields}
        strangers = [sentence for name, sentence in self._problems.items() if name not in known]
        line = self.query_one("#config-strangers", Static)
        line.display = bool(strangers)
        line.update(Content("\n").join(Content(one_line(f"✗ {sentence}")) for sentence in strangers[:3]))
        self._refresh_title()
        if rows:
            self._count_rows(self.model.train_paths())

    def _refresh_title(self) -> None:
        path = self.document.path
        name = path.name if path is not None else "not saved yet" if self.model.is_edited else "new"
        edited = "•edited" if self.model.is_edited and path is not None else ""
        changed = self.model.changed_count()
        wrong = len(self._problems)
        self.set_title(
            "2 Config",
            f"{name} {edited}".strip(),
            f"{changed} changed" if changed else "",
            f"{wrong} problem{'' if wrong == 1 else 's'}" if wrong else "",
        )
        self.query_one("#config-summary", Static).update(Content(self.model.summary(self._rows)))

    def _refresh_help(self) -> None:
        """Below the form: the last thing that happened, else the option under the cursor in full."""
        line = self.query_one("#config-help", Static)
        if self._note:
            style = "$limit" if self._note.startswith("✗") else "$foreground"
            line.update(Content.styled(self._note, style))
            return
        field = self.form.current
        if field is None:
            where = " in the basic options; all are searched with x" if not self._shows_expert else ""
            line.update(Content(f"No option has “{one_line(self._filter, 40)}” in it{where}.") if self._filter else "")
            return
        option = field.option
        default = format_value(option.default) or field.unset_text or "none"
        accepts = describe_type(option) + (f" ({option.unit})" if option.unit else "")
        about = "needed" if option.required else f"default {default}"
        line.update(Content(one_line(f"{option.name}: {option.help} {accepts[0].upper()}{accepts[1:]}; {about}.")))

    def _say(self, text: str) -> None:
        self._note = one_line(text)
        self._refresh_help()

    def _apply_filter(self) -> None:
        term = self._filter.lower()

        def keep(field: OptionField) -> bool:
            option = field.option
            if term:
                return term in option.name.lower() or term in option.help.lower()
            return self._shows_expert or option.basic or field.is_changed or bool(field.problem)

        self.form.filter(keep)

    @on(OptionForm.Moved)
    def _moved(self, message: OptionForm.Moved) -> None:
        message.stop()
        self._note = ""
        self._refresh_help()

    # Rows of the training data, for the summary.

    @work(thread=True, exclusive=True, group="config-rows")
    def _count_rows(self, paths: Sequence[Path]) -> None:
        from core.data.reader import open_rows

        worker = get_current_worker()
        for path in paths:
            if worker.is_cancelled:
                return
            try:
                with open_rows(path) as file:
                    file.index()
                    self.post_message(_RowsCounted(path, file.count_known))
            except UserError:
                # The data pane says what is wrong with the file; here its rows only stay unknown.
                continue

    @on(_RowsCounted)
    def _rows_counted(self, message: _RowsCounted) -> None:
        self._rows[message.path] = message.count
        self._refresh_title()

    # Moving and editing.

    def action_move(self, rows: int) -> None:
        """Move the cursor; an open input is committed first."""
        self._commit_open()
        self.form.move(rows)

    def action_move_page(self, direction: int) -> None:
        """A page up or down."""
        self._commit_open()
        self.form.move_page(direction)

    def action_move_end(self, direction: int) -> None:
        """To the first or the last option."""
        self.form.move(direction * 10_000)

    def action_edit(self) -> None:
        """Open the input of the option under the cursor, or take the next of its choices."""
        field = self.form.current
        if field is None or not self.form.has_focus:
            return
        if field.choices:
            self.action_cycle(1)
        else:
            field.edit()

    def action_cycle(self, step: int) -> None:
        """The next choice of the option under the cursor."""
        field = self.form.current
        choice = field.next_choice(step) if field is not None else None
        if field is not None and choice is not None and self.form.has_focus:
            self._set(field, choice)
            self._edited(field)

    def action_reset(self) -> None:
        """The default again."""
        field = self.form.current
        if field is None or not self.form.has_focus or self.document.get(field.option.name) is None:
            return
        self._set(field, "")
        self._edited(field)

    @on(OptionForm.Activated)
    def _activated(self, message: OptionForm.Activated) -> None:
        message.stop()
        self.action_edit()

    @on(OptionField.Typed)
    def _typed(self, message: OptionField.Typed) -> None:
        message.stop()
        field = message.field
        # An emptied input means the default only once it is left: until then the line and its comment stay.
        self._emptied = field if not message.text.strip() else None
        if self._emptied is None:
            self._set(field, message.text)
        else:
            field.problem = f"{field.option.name} is missing." if field.option.required else ""

    @on(OptionField.Committed)
    def _committed(self, message: OptionField.Committed) -> None:
        message.stop()
        if message.refocus:
            self.form.focus()
        if self._emptied is message.field:
            self._set(message.field, "")
        self._emptied = None
        self._edited(message.field)

    @on(OptionField.Abandoned)
    def _abandoned(self, message: OptionField.Abandoned) -> None:
        message.stop()
        self._emptied = None
        if self.document.get(message.field.option.name) != message.before:
            self.document.set(message.field.option.name, message.before)
        self.form.focus()
        self._refresh()

    def _set(self, field: OptionField, text: str) -> None:
        try:
            self.model.set_text(field.option, text)
        except UserError as error:
            self._say(f"✗ {error}")
        self._refresh()

    def _edited(self, field: OptionField) -> None:
        self._note = ""
        if field.option.name in DATA_PATHS:
            self._count_rows(self.model.train_paths())
        self._refresh_title()
        self.post_message(ConfigEdited(self.document))

    def _commit_open(self) -> None:
        for field in self.form.fields:
            field.commit(refocus=True)

    # Finding options.

    def action_toggle_expert(self) -> None:
        """All options, or only the ones most runs need."""
        self._shows_expert = not self._shows_expert
        self._filter = ""
        self._apply_filter()
        shown, total = len(self.form.shown), len(self.form.fields)
        self._say(f"All {total} options are shown." if self._shows_expert else f"{shown} of {total} options are shown.")

    def action_search(self) -> None:
        """Ask for a text to look for in names and help."""
        self.ask_bar.ask("search", "find", self._filter, "a text in a name or its help; all options are searched")

    def action_back(self) -> None:
        """Show all rows again after a search."""
        if self._filter:
            self._filter = ""
            self._apply_filter()
        self._say("")

    def action_next_problem(self) -> None:
        """Go to the next option with a problem."""
        names = [field.option.name for field in self.form.fields if field.problem]
        if not names:
            self._say("No problems." if not self._problems else f"✗ {next(iter(self._problems.values()))}")
            return
        order = [field.option.name for field in self.form.fields]
        current = self.form.current
        here = order.index(current.option.name) if current is not None else -1
        following = [name for name in names if order.index(name) > here]
        self._go_to(following[0] if following else names[0])

    def focus_first_problem(self) -> bool:
        """Put the cursor on the first option with a problem, if there is one, and say so."""
        self._refresh()
        if not self._problems:
            return False
        self.go_to_problem(next(iter(self._problems)))
        return True

    def go_to_problem(self, name: str) -> None:
        """Put the cursor on an option and say what is wrong with it."""
        self._refresh()
        self._go_to(name)
        self.form.focus()
        if sentence := self._problems.get(name):
            # After the cursor has moved, which clears what was said before.
            self.call_after_refresh(self._say, f"✗ {sentence}")

    def request_start(self) -> None:
        """Ask for a run, or go to what keeps it from starting."""
        if not self.focus_first_problem():
            self.post_message(StartRequested())

    def _go_to(self, name: str) -> None:
        field = self.form.field(name)
        if field is None:
            return
        if not field.display:
            self._filter = ""
            self._apply_filter()
        self.form.go_to(field)

    # Asking.

    @on(AskBar.Changed)
    def _searching(self, message: AskBar.Changed) -> None:
        message.stop()
        if message.purpose == "search":
            self._filter = message.value.strip()
            self._apply_filter()

    @on(AskBar.Submitted)
    def _answered(self, message: AskBar.Submitted) -> None:
        message.stop()
        if message.purpose == "save" and message.path is not None:
            self._save_as(message.path)

    @on(AskBar.Cancelled)
    def _cancelled(self, message: AskBar.Cancelled) -> None:
        message.stop()
        if message.purpose == "search":
            self.action_back()

    @on(AskBar.Chosen)
    def _chosen(self, message: AskBar.Chosen) -> None:
        message.stop()
        if message.purpose == "replace" and self._save_target is not None:
            self._write(self._save_target)
        elif message.key == "o":
            self._write(None)
        elif message.key == "l" and self.document.path is not None:
            self._load_from_disk(self.document.path)

    # Files.

    def action_save(self) -> None:
        """Write the file; ask where when there is none, and what to do when somebody else has changed it."""
        self._commit_open()
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
            self._say(f"✗ {target} is a directory. Give the file a name.")
        elif target.exists():
            self._save_target = target
            self.ask_bar.ask_key("replace", f"{target.name} exists already.", {"y": "replace it"})
        else:
            self._write(target)

    def _write(self, path: Path | None) -> None:
        try:
            self.document.save(path)
        except UserError as error:
            self._say(f"✗ {error}")
            return
        self.model.note_saved()
        self._refresh()
        wrong = len(self._problems)
        rest = f", with {wrong} problem{'' if wrong == 1 else 's'} in it" if wrong else ""
        self._say(f"✓ saved to {self.document.path}{rest}")
        self.post_message(ConfigSaved(self.document))

    def _load_from_disk(self, path: Path) -> None:
        try:
            document = ConfigDocument.load(path)
        except UserError as error:
            self._say(f"✗ {error}")
            return
        self._replace(document)
        self._say(f"✓ loaded {path.name} as it is now")
        self.post_message(ConfigLoaded(document))

    def action_open_editor(self) -> None:
        """Edit the TOML in the user's editor; what does not parse is kept for the next try."""
        self._commit_open()
        path = self.document.path
        before = self._draft or self.document.dumps() or _BLANK
        try:
            with self.app.suspend():
                after = edit_text(before, path.name if path is not None else "localtune.toml")
        except SuspendNotSupported:
            self._say("✗ This terminal cannot be lent to an editor. Edit the file in another one.")
            return
        except UserError as error:
            self._say(f"✗ {error}")
            return
        self._take_edited(before, after)

    def _take_edited(self, before: str, after: str | None) -> None:
        """Go on with what the editor left: nothing, a text that cannot be read, or a new configuration."""
        if after is None:
            self._draft = ""
            self._say("The editor gave up; nothing has changed.")
            return
        if after == before and not self._draft:
            self._say("Nothing has changed.")
            return
        try:
            document = ConfigDocument(after, self.document.path)
        except UserError as error:
            self._draft = after
            self._say(f"✗ {error} {self.keys['config.editor'].display} opens it where you left it.")
            return
        self._replace(document)
        self._say("✓ edited" + (f"; {self.keys['config.save'].display} saves it" if self.model.is_edited else ""))
        self.post_message(ConfigEdited(document))

    def _replace(self, document: ConfigDocument) -> None:
        """Another document for the same file: the form stays as it is."""
        disk, saved = self.model.disk, self.model.saved_text
        self.model = ConfigModel(document)
        if document.dumps() != self.model.saved_text:
            # What was read first stays what the file is compared with.
            self.model.disk, self.model.saved_text = disk, saved
        self._draft = ""
        self._refresh(rows=True)
        self._apply_filter()


_BLANK = """\
# Options are explained in the form; what is left out has its default.
[data]
train = ""
"""
