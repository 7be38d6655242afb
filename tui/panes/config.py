"""The config pane: every option as a form, checked as it is typed, saved without losing a comment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.content import Content
from textual.message import Message
from textual.timer import Timer
from textual.widgets import Static
from textual.worker import get_current_worker

from core.config.document import ConfigDocument
from core.errors import UserError
from core.text import one_line
from tui.keys import bindings
from tui.messages import ConfigEdited, FormRequested, StartRequested
from tui.panes.config_help import FORMS, PATH_OPTIONS, UNSET_TEXTS, explain
from tui.panes.config_import import ConfigImport
from tui.panes.config_model import DATA_PATHS, ConfigModel
from tui.panes.dataset_opening import DatasetOpening
from tui.widgets.ask_bar import AskBar
from tui.widgets.option_field import OptionField
from tui.widgets.option_form import OptionForm

#: Seconds from a change of the files until their rows are counted.
_COUNT_SECONDS = 0.3


@dataclass
class _RowsCounted(Message):
    path: Path
    count: int


class ConfigPane(ConfigImport):
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
        self._shows_expert = False
        self._filter = ""
        self._note = ""
        self._problems: dict[str, str] = {}
        self._rows: dict[Path, int] = {}
        self._count_timer: Timer | None = None
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
        self._refresh_hints()
        await self._build()

    def _refresh_hints(self) -> None:
        hints = self.keys.hints
        expert = f"{self.keys['config.expert'].display} {'basic options' if self._shows_expert else 'all options'}"
        parts = [hints(["config.edit", "config.search"]), expert, hints(["config.save"])]
        self.border_subtitle = Content("  ".join(parts))

    # What is shown.

    @property
    def form(self) -> OptionForm:
        """The fields."""
        return self.query_one("#config-form", OptionForm)

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
            self.refresh_fields(rows=True)
            self.apply_filter()

    async def _build(self) -> None:
        fields = []
        for option in self.model.options:
            field = OptionField(option, base=self.model.base, suffixes=PATH_OPTIONS.get(option.name))
            field.unset_text = UNSET_TEXTS.get(option.name, "")
            fields.append(field)
        await self.form.build(fields)
        self.refresh_fields(rows=True)
        # After the check: an option with a problem is shown whether or not it is one of the basic ones.
        self.apply_filter()
        if self._problems and self.document.path is not None:
            # After the cursor has found its place, which clears what was said before.
            self.call_after_refresh(self.say, f"✗ {next(iter(self._problems.values()))}")

    def refresh_fields(self, *, rows: bool = False) -> None:
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
            self._count_rows_soon()

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
        line.update(Content(explain(field.option, self.keys["config.form"].display)))

    def say(self, text: str) -> None:
        """Say something below the form, until the cursor moves."""
        self._note = one_line(text)
        self._refresh_help()

    def apply_filter(self) -> None:
        """Show the fields that the search or the expert switch leaves."""
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

    def _count_rows_soon(self) -> None:
        """Count them when the data pane has had the time to open what it shows, whose rows it finds itself."""
        if self._count_timer is not None:
            self._count_timer.stop()
        self._count_timer = self.set_timer(_COUNT_SECONDS, self._count_or_ask)

    def _count_or_ask(self) -> None:
        panes = self.screen.query(DatasetOpening)
        uncounted, waits = [], False
        for path in self.model.train_paths():
            rows = next((rows for pane in panes if (rows := pane.rows_of(path)) is not None), None)
            if rows == "not yet":
                waits = True
            elif rows is not None:
                self._rows[path] = rows
            else:
                uncounted.append(path)
        if waits:
            self._count_rows_soon()
        else:
            self._refresh_title()
            self._count_rows(uncounted)

    @work(thread=True, exclusive=True, group="config-rows")
    def _count_rows(self, paths: Sequence[Path]) -> None:
        from core.data.registry import resolve_source

        worker = get_current_worker()
        for path in paths:
            if worker.is_cancelled:
                return
            try:
                count = 0
                for source in resolve_source(str(path)):
                    with source.open() as file:
                        file.index()
                        known = file.count_known
                        count += known if source.limit is None else min(known, source.limit)
                self.post_message(_RowsCounted(path, count))
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
        self.commit_open()
        self.form.move(rows)

    def action_move_page(self, direction: int) -> None:
        """A page up or down."""
        self.commit_open()
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

    def action_form(self) -> None:
        """Open the screen in which the option under the cursor is chosen with the rows in view."""
        field = self.form.current
        if field is None or not self.form.has_focus:
            return
        if (form := FORMS.get(field.option.name)) is not None:
            self.post_message(FormRequested(form))
        else:
            self.say(f"Such a screen is there for {', '.join(FORMS)}.")

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
        self.refresh_fields()

    def _set(self, field: OptionField, text: str) -> None:
        try:
            self.model.set_text(field.option, text)
        except UserError as error:
            self.say(f"✗ {error}")
        self.refresh_fields()

    def _edited(self, field: OptionField) -> None:
        self._note = ""
        if field.option.name in DATA_PATHS:
            self._count_rows_soon()
        self._refresh_title()
        self.post_message(ConfigEdited(self.document, field.option.name))

    def commit_open(self) -> None:
        """Close an open input and keep its text."""
        for field in self.form.fields:
            field.commit(refocus=True)

    # Finding options.

    def action_toggle_expert(self) -> None:
        """All options, or only the ones most runs need."""
        self._shows_expert = not self._shows_expert
        self._filter = ""
        self._refresh_hints()
        self.apply_filter()
        shown, total = len(self.form.shown), len(self.form.fields)
        self.say(f"All {total} options are shown." if self._shows_expert else f"{shown} of {total} options are shown.")

    def action_search(self) -> None:
        """Ask for a text to look for in names and help."""
        self.ask_bar.ask("search", "find", self._filter, "a text in a name or its help; all options are searched")

    def action_back(self) -> None:
        """Show all rows again after a search."""
        if self._filter:
            self._filter = ""
            self.apply_filter()
        self.say("")

    def action_next_problem(self) -> None:
        """Go to the next option with a problem."""
        names = [field.option.name for field in self.form.fields if field.problem]
        if not names:
            self.say("No problems." if not self._problems else f"✗ {next(iter(self._problems.values()))}")
            return
        order = [field.option.name for field in self.form.fields]
        current = self.form.current
        here = order.index(current.option.name) if current is not None else -1
        following = [name for name in names if order.index(name) > here]
        self._go_to(following[0] if following else names[0])

    def check(self) -> dict[str, str]:
        """What keeps a run from starting, option to sentence; data files that are not there among it."""
        self.refresh_fields()
        return self._problems

    def focus_first_problem(self) -> bool:
        """Put the cursor on the first option with a problem, if there is one, and say so."""
        self.refresh_fields()
        if not self._problems:
            return False
        self.go_to_problem(next(iter(self._problems)))
        return True

    def go_to_problem(self, name: str) -> None:
        """Put the cursor on an option and say what is wrong with it."""
        self.refresh_fields()
        self._go_to(name)
        self.form.focus()
        if sentence := self._problems.get(name):
            # After the cursor has moved, which clears what was said before.
            self.call_after_refresh(self.say, f"✗ {sentence}")

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
            self.apply_filter()
        self.form.go_to(field)

    # Asking.

    @on(AskBar.Changed)
    def _searching(self, message: AskBar.Changed) -> None:
        message.stop()
        if message.purpose == "search":
            self._filter = message.value.strip()
            self.apply_filter()

    @on(AskBar.Cancelled)
    def _cancelled(self, message: AskBar.Cancelled) -> None:
        message.stop()
        if message.purpose == "search":
            self.action_back()
