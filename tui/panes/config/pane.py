"""Config pane: every option as a form, checked while typing, saved with all comments."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import ClassVar

from textual import events, on, work
from textual.app import ComposeResult, SuspendNotSupported
from textual.binding import BindingType
from textual.worker import get_current_worker

from core.analysis.result import Analysis
from core.config.document import ConfigDocument
from core.errors import UserError
from core.models.architecture.measuring import telling
from core.presets.switch import apply_switch
from core.runs.record.sentences import brief_id
from core.text import one_line
from tui.datasets.summary import counted
from tui.files import edit_text, path_text
from tui.keys import bindings
from tui.panes.base import SHORT_NAME, Pane
from tui.panes.config.editor import ConfigEditor, Opened, Step, path_shown
from tui.panes.config.facts import FactsFinder
from tui.panes.config.files import SUFFIXES, FileQuestions, read_import, report_screen, show_difference
from tui.panes.config.form import FORMS, ConfigForm
from tui.panes.config.model import BASE, DATA_PATHS, ConfigModel, NamedBase
from tui.widgets.charts.plan_bar import PlanBar, Planner, PlanView, whole_plan
from tui.widgets.forms.ask_bar import AskBar
from tui.widgets.forms.option_field import OptionField
from tui.widgets.forms.option_form import OptionForm

#: Minimum columns for the long help to the right of the form instead of below it.
BESIDE_WIDTH = 110


def _conversing(action: Callable[[ConfigPane], Awaitable[object]]) -> Callable[[ConfigPane], Awaitable[None]]:
    """Commit an open input before an action that may open dialogs, and show the errors of the action."""

    @wraps(action)
    async def converse(pane: ConfigPane) -> None:
        await pane._converse(partial(action, pane))

    return converse


class ConfigPane(Pane):
    """Pane of the configuration.

    A :class:`~tui.panes.config.editor.ConfigEditor` holds the configuration, its file and its edits; a
    :class:`~tui.panes.config.facts.FactsFinder` finds the facts about it. The pane displays them, and has the actions.
    """

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("config")]

    def __init__(self) -> None:
        super().__init__()
        self.editor = ConfigEditor()
        self.known = FactsFinder()
        self.planner: Planner = self.known.plan
        """The planner of the memory plan."""
        self._view = ConfigForm(self.editor, self.known)
        self.form, self.filter = self._view.options, self._view.filter
        self.ask_bar = AskBar(id="config-ask")
        self._questions = FileQuestions(self.editor, self.ask_bar)
        self._plan_bar = PlanBar(id="config-plan")
        self._greeting = ""
        self._emptied: OptionField | None = None
        self._looked_at: tuple[NamedBase, str] | None = None
        self._named_device: tuple[str, str | None] = "auto", None

    def compose(self) -> ComposeResult:
        """The form, the memory plan and the ask bar."""
        yield self._view
        self._plan_bar.more = self.keys["config.plan"].display
        yield self._plan_bar
        yield self.ask_bar

    async def on_mount(self) -> None:
        """Build the form of the loaded configuration."""
        self.prefer_focus(self.form)
        self.refresh_hints()
        self._view.watch_help(self.refresh_hints)
        if self.shell.state.is_opening:
            self.set_title("2 Config", "opening …")
        else:
            await self._build()
        self._find_card(*self.model.device)
        self._read_paces()

    def on_resize(self, event: events.Resize) -> None:
        """Place the long help to the right of the form, or below it."""
        self._view.set_class(event.size.width >= BESIDE_WIDTH, "-beside")

    def refresh_hints(self) -> None:
        """Show the most important keys in the lower border."""
        others = "basic options" if self.filter.shows_expert else "all options"
        names = ("edit", "help", "expert", "presets", "save")
        keys = [self.keys[f"config.{name}"] for name in names]
        hints = [(key.display, others if key.id == "config.expert" else key.description) for key in keys]
        if self._view.has_hidden_help:
            hints.insert(1, (self.keys["config.help_down"].display, "read on"))
        self.show_hints(hints)

    # Display.

    @property
    def model(self) -> ConfigModel:
        """The configuration and its checks."""
        return self.editor.model

    @property
    def document(self) -> ConfigDocument:
        """The configuration being edited."""
        return self.editor.document

    @property
    def unread_text(self) -> str:
        """Text of the user's editor that is not valid yet; empty if there is none."""
        return self.editor.unread_text

    @property
    def problems(self) -> dict[str, str]:
        """The problems: option to sentence."""
        return dict(self._view.findings.problems)

    @property
    def preset_name(self) -> str:
        """The active preset; empty if there is none."""
        preset = self.editor.preset
        return preset.name if preset is not None else ""

    def load(self, document: ConfigDocument) -> None:
        """Show another configuration, or reload the present one; undo brings back the old one with its edits."""
        if document is self.document:
            # The file's content at reading time stays the saved text.
            self.editor.record()
            self.reload_values()
        else:
            self.open(Opened(document, f"opening {document.path.name if document.path else 'another'}"))

    async def open_over(self, opened: Opened, then: Callable[[], None] | None = None) -> None:
        """Continue with another configuration, then with an action; asks about unsaved edits of a file first."""

        async def work() -> None:
            if await self._questions.may_leave("open the other anyway"):
                self._go_on(opened)
                if then is not None:
                    self.call_later(then)

        await self._converse(work)

    @property
    def option(self) -> str:
        """The option under the cursor; empty if there is none."""
        return field.option.name if (field := self.form.current) is not None else ""

    def return_to(self, option: str) -> None:
        """Move the cursor to an option once the form has been built."""
        self.call_later(self._return_to, option)

    def _return_to(self, name: str) -> None:
        if any(field.option.name == name for field in self.form.fields):
            self.go_to_option(name)

    def open(self, opened: Opened) -> None:
        """Show another configuration, which the app's state already has."""
        self.editor.take(opened)
        self._view.forget_note()
        self._greeting = opened.text
        if opened.unread:
            self._greeting = f"✗ The text of the editor is not valid TOML yet; {self._editor_key} opens it."
        if self.is_mounted:
            self.call_later(self._build)

    def _go_on(self, opened: Opened) -> None:
        """Show another configuration in the form, and pass it to the app."""
        self.open(opened)
        document = opened.document
        if document.path is not None:
            self.shell.configuration.loaded(document)
        else:
            saved, origin = self.model.saved_text, self.model.origin
            self.shell.configuration.edited(document, saved=saved, origin=origin, draft=opened.draft)

    def take_up(self, text: str, unread: str, when: str) -> None:
        """Restore a draft of an earlier app, as an edit that can be undone.

        Args:
            text: The whole configuration.
            unread: Text of the user's editor that is not valid; empty if there was none.
            when: The time of the draft, in words.
        """
        try:
            self.document.rewrite(text)
        except UserError as error:
            self.say(f"✗ {error}")
            return
        save, undo = self.keys["config.save"].display, self.keys["config.undo"].display
        told = f"✓ edits of {when} not saved yet are back: {save} saves them, {undo} discards them"
        self.edited(f"the edits of {when}", told)
        if unread:
            self.editor.unread_text = unread
            self.say(f"✗ The editor's text of {when} is not valid TOML yet; {self._editor_key} opens it.")

    @property
    def _editor_key(self) -> str:
        return self.keys["config.editor"].display

    def edited(self, label: str = "", text: str = "") -> None:
        """Record an edit of the document, show it in the form and the app, and show a message.

        Args:
            label: The label for undo; empty if the difference describes the edit.
            text: The message.
        """
        self.editor.record(label)
        self._show_document(text)

    def _show_document(self, text: str) -> None:
        """Show a document with any changes in the form and the app, and show a message."""
        self.editor.unread_text = ""
        self.reload_values()
        if text:
            self.say(text)
        saved, origin = self.model.saved_text, self.model.origin
        self.shell.configuration.edited(self.document, saved=saved, origin=origin)

    def reload_values(self) -> None:
        """Update the values from the document, after it was changed outside the form."""
        if self.is_mounted:
            self.refresh_fields(rows=True)
            self.filter.apply()

    async def _build(self) -> None:
        await self._view.build()
        self.refresh_fields(rows=True)
        # After the check, as options with problems are always shown.
        self.filter.apply()
        self.form.cursor = 0
        if self._greeting:
            self.say(self._greeting)
        elif (errors := self._view.errors) and self.document.path is not None:
            self.say(f"✗ {next(iter(errors.values()))}")

    def refresh_fields(self, *, rows: bool = False) -> None:
        """Update every field, the title, the summary and the plan from the document."""
        if not self.form.fields:
            return
        self._view.show()
        self._refresh_title()
        self.refresh_plan()
        if rows:
            self._count_rows(self.model.train_paths())
            self.look_around()

    def _refresh_title(self) -> None:
        path = self.document.path
        name, origin = path.name if path is not None else "", self.model.origin
        if path is None and origin is not None and origin.covers(self.document):
            name = f"from {brief_id(origin.run.id)}"
        edited = " •edited" if self.model.is_edited and name else ""
        name = name or ("not saved yet" if self.model.is_edited else "new")
        preset = f"preset {self.preset_name}" if self.preset_name else ""
        changed = len(self._view.changed)
        wrong, doubtful = len(self._view.errors), len(self._view.findings.warnings)
        self.set_title(
            "2 Config",
            f"{name}{edited}",
            preset,
            f"{changed} changed" if changed else "",
            counted(wrong, "problem") if wrong else "",
            counted(doubtful, "warning") if doubtful else "",
            # The header says too that it is edited.
            shorter=((f"{name}{edited}", name), (preset, ""), (name, one_line(name, SHORT_NAME))),
        )

    def say(self, text: str) -> None:
        """Show a message below the form, until the cursor moves."""
        self._view.say(text)

    def action_toggle_help(self) -> None:
        """Show or hide the long help of the option under the cursor."""
        self._view.toggle_manual()

    def action_scroll_help(self, lines: int) -> None:
        """Scroll the long help while the cursor stays where it is."""
        self._view.scroll_manual(lines)

    # Moving and editing.

    def action_move(self, rows: int) -> None:
        """Commit an open input, and move the cursor."""
        self.commit_open()
        self.form.move(rows)

    def action_move_page(self, direction: int) -> None:
        """Move the cursor by a page."""
        self.commit_open()
        self.form.move_page(direction)

    def action_move_end(self, direction: int) -> None:
        """Move the cursor to the first or the last option."""
        self.form.move(direction * 10_000)

    async def action_edit(self) -> None:
        """Edit the option under the cursor: open its input, take its next choice, or list the base models."""
        field = self.form.current
        if field is None or not self.form.has_focus:
            return
        if field.option.name == BASE:
            await self.action_choose_model()
        elif field.choices:
            self.action_cycle(1)
        else:
            field.edit()

    def action_cycle(self, step: int) -> None:
        """Take the next choice of the option under the cursor."""
        field = self.form.current
        choice = field.next_choice(step) if field is not None else None
        if field is not None and choice is not None and self.form.has_focus:
            self._set(field, choice)
            self._edited(field)

    def action_form(self) -> None:
        """Open the screen for the option under the cursor, next to the rows."""
        field = self.form.current
        if field is None or not self.form.has_focus:
            return
        if (form := FORMS.get(field.option.name)) is not None:
            self.shell.configuration.open_form(form)
        else:
            self.say(f"Only {', '.join(FORMS)} have such a screen.")

    def action_reset(self) -> None:
        """Reset an option to the active preset; if it has that value already, to the default."""
        field, preset = self.form.current, self.editor.preset
        if field is None or not self.form.has_focus:
            return
        name = field.option.name
        value = self.document.get(name)
        if preset is not None and name in preset.values and value != preset.values[name]:
            self.document.set(name, preset.values[name])
            self.refresh_fields()
        elif value is not None:
            self._set(field, "")
        else:
            return
        self._edited(field)

    @on(OptionForm.Activated)
    async def _activated(self, message: OptionForm.Activated) -> None:
        message.stop()
        await self.action_edit()

    @on(OptionField.Typed)
    def _typed(self, message: OptionField.Typed) -> None:
        message.stop()
        field = message.field
        # An empty input means the default only once it is committed: until then the line and its comment stay.
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
        self.editor.history.revert()
        self.form.focus()
        self.refresh_fields()

    def _set(self, field: OptionField, text: str) -> None:
        try:
            self.model.set_text(field.option, text)
        except UserError as error:
            self.say(f"✗ {error}")
        self.refresh_fields()

    def _edited(self, field: OptionField) -> None:
        self._view.forget_note()
        self.editor.record()
        if field.option.name in DATA_PATHS:
            self._count_rows(self.model.train_paths())
        self.look_around()
        self._refresh_title()
        self._view.show_summary()
        self.shell.configuration.edited(self.document, field.option.name)

    def commit_open(self) -> None:
        """Close an open input and keep its text."""
        for field in self.form.fields:
            field.commit(refocus=True)

    # Facts.

    def look_around(self, *, anew: bool = False) -> None:
        """Look up the model, the card, the disk and the last run, if they may have changed."""
        if (device := self.model.device) != self._named_device:
            self._find_card(*device)
        wanted = (self.model.named_base, self.model.run_name)
        if anew or wanted != self._looked_at:
            self._looked_at = wanted
            self._look(*wanted)

    def run_ended(self) -> None:
        """Look up the last run and the paces of runs again, after a run has ended."""
        self.look_around(anew=True)
        self._read_paces()

    def take_analysis(self, path: Path, analysis: Analysis | None) -> None:
        """Plan with the rows of a file, if the configuration trains on it."""
        if self.known.take_analysis(self.model, path, analysis):
            self.refresh_fields()

    def refresh_plan(self) -> None:
        """Plan the present configuration."""
        # A copy, as the document may be edited meanwhile.
        self._plan(ConfigDocument(self.document.dumps(), self.document.path))

    @work(exclusive=True, group="config-card")
    async def _find_card(self, device: str, gpu: str | None) -> None:
        self._named_device = device, gpu
        await self.known.find_card(device, gpu)
        self.refresh_fields()

    @work(exclusive=True, group="config-around")
    async def _look(self, base: NamedBase, name: str) -> None:
        await self.known.check_base(base, self.keys["config.edit"].display)
        self.refresh_fields()
        await self.known.look_around(base.name, name, base.directory)
        self.refresh_fields()

    @work(exclusive=True, group="config-paces")
    async def _read_paces(self) -> None:
        await self.known.read_paces()
        self.refresh_plan()

    @work(exclusive=True, group="config-plan")
    async def _plan(self, document: ConfigDocument) -> None:
        bar, worker, rough = self._plan_bar, get_current_worker(), PlanView((), 0)

        def tell(_activity: str, seconds: float) -> None:
            # Called in the planning thread; call_later keeps it in order with the plan.
            bar.call_later(bar.show, replace(rough, advice=(f"measuring the model, {seconds:.0f} s",)))

        plan: PlanView | None
        try:
            # to_thread copies this context.
            with telling(tell, lambda: not worker.is_cancelled):
                plan = await asyncio.to_thread(self.planner, document, False)
                if plan is not None and plan.is_rough:
                    rough = replace(plan, advice=("measuring the model",))
                    bar.call_later(bar.show, rough)
                    plan = await asyncio.to_thread(self.planner, document, True)
        except UserError as error:
            plan = replace(rough, advice=(one_line(str(error), 200),))
        bar.call_later(bar.show, plan)

    @work(exclusive=True, group="config-rows")
    async def _count_rows(self, paths: Sequence[Path]) -> None:
        for path in paths:
            await self.known.count_rows(path)
            self.refresh_fields()

    # Finding options.

    def action_toggle_expert(self) -> None:
        """Show or hide the expert options."""
        self.filter.toggle_expert()
        self.refresh_hints()
        shown, total = len(self.form.shown), len(self.form.fields)
        search = self.keys["config.search"].display
        rest = f"; {search} finds the others, which are seldom needed" if self.filter.shows_expert else ""
        self.say(f"{shown} of {total} options are shown{rest}.")

    def action_toggle_changed(self) -> None:
        """Show only the options that the user changed or that differ from the last run, or the others again."""
        self.filter.toggle_changed()
        if not self.filter.shows_changed:
            self.say("")
        elif self.form.shown:
            last = ", what differs from the last run" if self.known.last_run is not None else ""
            self.say(f"Shown: what you changed{last} and what needs a look.")

    async def action_search(self) -> None:
        """Search names and help of the options."""
        await self.ask_bar.converse(self._search())

    async def _search(self) -> None:
        hint = "a text in a name or its help; all options are searched"
        answer = await self.ask_bar.ask("find", self.filter.term, placeholder=hint, changed=self.filter.search)
        if answer is None and not self.ask_bar.is_asking:
            self.action_back()

    def action_back(self) -> None:
        """Clear the search and the message."""
        if self.filter.is_narrowed:
            self.filter.widen()
        self.say("")

    def action_next_problem(self) -> None:
        """Go to the next option with a problem, or with a warning if there are no problems."""
        if name := self.filter.next_problem():
            self.go_to_option(name)
        else:
            errors = self._view.errors
            self.say(f"✗ {next(iter(errors.values()))}" if errors else "No problems.")

    def go_to_option(self, name: str) -> None:
        """Move the cursor to an option; a hidden option is shown."""
        self.filter.go_to(name)
        self.refresh_hints()

    def check(self) -> dict[str, str]:
        """The problems that prevent a run, including missing files and models: option to sentence."""
        # The card estimates by the runs there are now; another program may have ended some.
        self._read_paces()
        self.known.miss_base(self.model.named_base, self.keys["config.edit"].display)
        self.refresh_fields()
        if self.known.base_problem(self.model.named_base):
            # It may have been fixed since.
            self.look_around(anew=True)
        return self.problems

    def refuse_start(self) -> None:
        """Go to the first problem that prevents a run, and show the number of problems."""
        errors = self._view.errors
        name, sentence = next(iter(errors.items()))
        self.go_to_option(name)
        self.form.focus()
        count = len(errors)
        more = f"1 of {count} problems ({self.keys['config.problem'].display} next): " if count > 1 else ""
        self.say(f"✗ Not started. {more}{sentence}")

    def show_warning(self) -> None:
        """Go to the first option with a warning, if there is one."""
        if warnings := self._view.findings.warnings:
            self.go_to_option(next(iter(warnings)))
        self.form.focus()

    # Undo.

    def action_undo(self) -> None:
        """Undo the last edit."""
        self._settle()
        step = self.editor.history.undo()
        self._show_step(step, step.tell_undone() if step is not None else "There is nothing to undo.")

    def action_redo(self) -> None:
        """Redo the last undone edit."""
        self._settle()
        step = self.editor.history.redo()
        self._show_step(step, step.tell_redone() if step is not None else "There is nothing to do again.")

    def bring_back(self) -> None:
        """Go back to the previous configuration."""
        self._settle()
        if (step := self.editor.history.leave()) is not None:
            self._show_document("")
            self.say(step.tell_undone())

    def take_back(self) -> None:
        """Go back to the previous configuration, or to an empty one if there is none."""
        self.editor.drop()
        self._show_document("")
        self.say("")

    def _settle(self) -> None:
        """Record typed text as an edit of its own."""
        self.commit_open()
        self.editor.record()

    def _show_step(self, step: Step | None, sentence: str) -> None:
        if step is not None:
            self._show_document("")
            if len(names := step.changed) == 1:
                self.go_to_option(names[0])
        self.say(sentence)

    # Files. Dialogs run as coroutines besides the pane's messages.

    async def _converse(self, work: Callable[[], Awaitable[object]]) -> None:
        """Commit an open input, and run an action that may open dialogs; shows its errors."""

        async def converse() -> None:
            self.commit_open()
            try:
                await work()
            except UserError as error:
                self.say(f"✗ {error}")

        await self.ask_bar.converse(converse())

    async def save_then(self, then: Callable[[], None]) -> None:
        """Save, then run an action unless saving fails or the user cancels."""

        async def save() -> None:
            if await self._save():
                then()

        await self._converse(save)

    async def action_save(self) -> None:
        """Save the file; ask for a path if there is none, and what to do if another program changed the file."""
        await self._converse(self._save)

    @_conversing
    async def action_save_as(self) -> None:
        """Ask for another file, save there, and continue with that file."""
        self._saved(await self._questions.save_as())

    async def _save(self) -> bool:
        outcome = await self._questions.save()
        if isinstance(outcome, Opened):
            self._go_on(outcome)
            return False
        return self._saved(outcome)

    def _saved(self, moved: list[str] | None) -> bool:
        """Show the result of saving; returns True if the file was saved.

        Args:
            moved: The options whose paths have been rewritten; None if the file was not saved.
        """
        if moved is None:
            return False
        self.refresh_fields()
        wrong = len(self._view.errors)
        rest = f", with {counted(wrong, 'problem')} in it" if wrong else ""
        paths = f"; {', '.join(moved)} written as seen from there" if moved else ""
        place = path_shown(self.document.path) if self.document.path is not None else ""
        self.say(f"✓ saved to {place}{paths}{rest}")
        self.shell.configuration.saved(self.document)
        return True

    def action_duplicate(self) -> None:
        """Continue with an unsaved copy; the file stays unchanged."""
        self.commit_open()
        self._go_on(self.editor.copy(f"{self.keys['config.save'].display} asks for its file"))

    @_conversing
    async def action_open(self) -> None:
        """Open another configuration; asks about unsaved edits first."""
        if (opened := await self._questions.open()) is not None:
            self._go_on(opened)

    @_conversing
    async def action_compare(self) -> None:
        """Ask for another version, and show the difference."""
        await show_difference(self.app, self.editor, self.known.last_run, self._questions)

    @_conversing
    async def action_import_file(self) -> None:
        """Import a configuration of another tool; asks about unsaved edits first."""
        if await self._questions.may_leave("import over it"):
            path = await self.ask_bar.ask_path("import", suffixes=SUFFIXES)
            if path is not None:
                self.say(f"Reading {path.name} …")
                self._carry_over(path)

    @work(exclusive=True, group="config-import")
    async def _carry_over(self, path: Path) -> None:
        try:
            imported = await asyncio.to_thread(read_import, path)
        except UserError as error:
            self.say(f"✗ {error}")
            return
        self._go_on(Opened(ConfigDocument(imported.toml), f"importing {path.name}"))
        self.app.push_screen(report_screen(path, imported))

    @_conversing
    async def action_choose_model(self) -> None:
        """Choose a base model on this machine, or download one."""
        from tui.screens.models import ModelScreen

        # A copy, as a thread reads it too.
        document = ConfigDocument(self.document.dumps(), self.document.path)
        value = await self.app.push_screen_wait(ModelScreen(self.known.models, document, self.known.lengths))
        if value is not None:
            text = value if isinstance(value, str) else path_text(self.document, value)
            if text != self.model.effective(BASE):
                self.document.set(BASE, text)
                self.edited(f"the base model {one_line(text, 60)}", f"✓ {BASE} is {one_line(text, 200)}")
            # The model may have been downloaded now.
            self.look_around(anew=True)

    def action_show_plan(self) -> None:
        """Show the whole memory plan."""
        from tui.screens.box import ReportScreen

        if (plan := self._plan_bar.plan) is None:
            self.say("There is no memory plan yet.")
            return
        self.app.push_screen(ReportScreen("Memory plan", partial(whole_plan, plan)))

    def action_measure_bits(self) -> None:
        """Measure the loss of 4-bit quantization on the rows of the configuration."""
        from tui.screens.bits import BitsPage

        self.commit_open()
        try:
            config = ConfigDocument(self.document.dumps(), self.document.path).validate()
        except UserError as error:
            self.say(f"✗ {error}")
            return

        base = self.model.effective(BASE)

        def take(kept: tuple[str, ...]) -> None:
            if self.model.effective(BASE) != base:
                self.say(f"✗ The layers of {one_line(str(base), 60)} were measured, and the base is another one now.")
                return
            self.document.set("model.keep_16bit", list(kept))
            undo = self.keys["config.undo"].display
            self.edited("layers in 16 bit", f"✓ model.keep_16bit has {len(kept)} entries; {undo} undoes it")

        self.shell.jobs.open(BitsPage(config, take, self.refresh_plan))

    @_conversing
    async def action_presets(self) -> None:
        """Choose a preset, with a preview of its changes."""
        from tui.screens.presets import PresetScreen, suitable, tell_switch

        # A copy, as a thread reads it too.
        document = ConfigDocument(self.document.dumps(), self.document.path)
        switch = await self.app.push_screen_wait(PresetScreen(document, lambda: suitable(document)))
        if switch is not None:
            apply_switch(self.document, switch)
            undo = self.keys["config.undo"].display
            self.edited(f"preset {switch.preset.name}", f"✓ {tell_switch(switch)}; {undo} undoes it")

    def action_open_editor(self) -> None:
        """Edit the TOML in the user's editor; invalid text is kept for the next try."""
        self.commit_open()
        path, before = self.document.path, self.editor.editor_text
        try:
            with self.app.suspend():
                after = edit_text(before, path.name if path is not None else "localtune.toml")
        except SuspendNotSupported:
            self.say("✗ This terminal cannot run an editor. Edit the file in another terminal.")
            return
        except UserError as error:
            self.say(f"✗ {error}")
            return
        self._take_edited(before, after)

    def _take_edited(self, before: str, after: str | None) -> None:
        """Take the editor's result: None, invalid text, or a new configuration."""
        if after is None:
            self.editor.unread_text = ""
            self.say("The editor failed; nothing has changed.")
            return
        if after == before and not self.unread_text:
            self.say("Nothing has changed.")
            return
        try:
            self.document.rewrite(after)
        except UserError as error:
            self.editor.unread_text = after
            self.say(f"✗ {error} {self.keys['config.editor'].display} opens it where you left it.")
            return
        save = self.keys["config.save"].display
        self.edited("", "✓ edited" + (f"; {save} saves it" if self.model.is_edited else ""))
