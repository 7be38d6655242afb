"""The config pane: every option as a form, checked as it is typed, saved without losing a comment."""

from __future__ import annotations

from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container
from textual.content import Content
from textual.widgets import Static

from core.config.compare import differences, holding_values
from core.config.document import ConfigDocument
from core.config.recent import remember_config
from core.errors import UserError
from core.text import one_line
from tui.datasets.summary import counted
from tui.keys import bindings
from tui.messages import ConfigEdited, FormRequested, StartRequested
from tui.panes.config.find import ConfigFind
from tui.panes.config.help import FORMS, PATH_OPTIONS, UNSET_TEXTS, difference_notes, explain, help_facts
from tui.panes.config.importing import ConfigImport
from tui.panes.config.model import DATA_PATHS, ConfigModel, Findings
from tui.panes.config.undo import ConfigUndo
from tui.panes.config.variants import ConfigVariants
from tui.widgets.charts.plan_bar import PlanBar, PlanView
from tui.widgets.forms.ask_bar import AskBar
from tui.widgets.forms.option_field import OptionField
from tui.widgets.forms.option_form import OptionForm
from tui.widgets.forms.option_help import OptionHelp

#: Columns from which the long help is beside the form instead of below it.
BESIDE_WIDTH = 110


class ConfigPane(ConfigFind, ConfigVariants, ConfigImport, ConfigUndo):
    """Edit the configuration; ``load`` shows another one.

    Its subjects are in the classes it is made of: the file (:mod:`~tui.panes.config.files`), undo
    (:mod:`~tui.panes.config.undo`), what is known beside it (:mod:`~tui.panes.config.facts`), finding options
    (:mod:`~tui.panes.config.find`), presets (:mod:`~tui.panes.config.presets`), several configurations
    (:mod:`~tui.panes.config.variants`) and importing (:mod:`~tui.panes.config.importing`); here is the form.
    """

    HELP = (
        "Every option of a run. • is changed: from the preset in force, else from the default; ≠ was another in the "
        "last run of this file or model. ✗ keeps a run from starting, ! is worth a look and does not. A preset "
        "keeps model, data and what you wrote. Every edit can be undone; the file is written only when you save it."
    )
    DEFAULT_CSS = """
    ConfigPane {
        & > #config-summary { height: auto; max-height: 2; }
        & > #config-strangers { height: auto; max-height: 3; color: $limit; }
        & > #config-body { height: 1fr; layout: vertical; }
        & #config-manual { display: none; }
        & > #config-help { height: auto; max-height: 2; color: $muted; }
        &.-manual #config-manual { display: block; }
        &.-beside > #config-body { layout: horizontal; }
        &.-beside #config-form { width: 3fr; height: 100%; }
        &.-beside #config-manual {
            width: 2fr; height: 100%; max-height: 100%; border-top: none; border-left: solid $border; padding-left: 1;
        }
        &.-beside #config-manual:focus { border-left: solid $border-focus; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("config")]

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.planner = self._make_plan
        self._note, self._greeting = "", ""
        self._note_field: OptionField | None = None
        self._findings = Findings({}, {})
        self._emptied: OptionField | None = None

    def compose(self) -> ComposeResult:
        """Summary, the form with the long help, what the option under the cursor means, the plan."""
        yield Static(id="config-summary", markup=False)
        yield Static(id="config-strangers", markup=False)
        with Container(id="config-body"):
            yield OptionForm(id="config-form")
            yield OptionHelp(id="config-manual")
        yield Static(id="config-help", markup=False)
        yield PlanBar(id="config-plan")
        yield AskBar(id="config-ask")

    async def on_mount(self) -> None:
        """Build the form of what is loaded."""
        self.prefer_focus(self.form)
        self.refresh_hints()
        await self._build()
        self.look_for_card()
        self.read_paces()

    def on_resize(self, event: events.Resize) -> None:
        """The long help beside the form, or below it."""
        self.set_class(event.size.width >= BESIDE_WIDTH, "-beside")

    def refresh_hints(self) -> None:
        """Write the keys that matter most into the lower border."""
        hints = self.keys.hints
        expert = f"{self.keys['config.expert'].display} {'basic options' if self.shows_expert else 'all options'}"
        parts = [
            hints(["config.edit", "config.search"]),
            expert,
            hints(["config.presets", "config.undo", "config.save"]),
        ]
        self.border_subtitle = Content("  ".join(parts))

    def _make_plan(self, document: ConfigDocument) -> PlanView | None:
        from tui.panes.config.plan import plan_document

        return plan_document(document, self.paces, self.planned_rows)

    # What is shown.

    @property
    def problems(self) -> dict[str, str]:
        """What is wrong with it, option to sentence."""
        return dict(self._findings.problems)

    @property
    def preset_name(self) -> str:
        """The preset in force; empty where there is none."""
        return self.preset.name if self.preset is not None else ""

    def load(self, document: ConfigDocument, label: str = "", text: str = "") -> None:
        """Show another configuration, or the present one anew; what was not saved of the old one can be brought back.

        Args:
            document: The configuration.
            label: What brought it, for who undoes it.
            text: What is said when it is shown.
        """
        if document is self.document:
            # What its file was when it was read still counts.
            self.history.record(self.model)
            self.reload_values()
            return
        self.history.record(self.model)
        is_first = self.document.path is None and not self.document.dumps()
        self.model = ConfigModel(document)
        if is_first:
            self.history.begin(self.model)
        else:
            self.history.record(self.model, label or f"opening {document.path.name if document.path else 'another'}")
        self._draft, self._note, self._greeting = "", "", text
        if document.path is not None:
            self._suggested = None
            remember_config(document.path)
        if self.is_mounted:
            self.call_later(self._build)

    def reload_values(self) -> None:
        """Show what the document says now, after something else has changed it."""
        if self.is_mounted:
            self.refresh_fields(rows=True)
            self.apply_filter()

    async def _build(self) -> None:
        if not self.form.fields:
            fields = []
            for option in self.model.options:
                field = OptionField(option, base=self.model.base, suffixes=PATH_OPTIONS.get(option.name))
                field.unset_text = UNSET_TEXTS.get(option.name, "")
                fields.append(field)
            await self.form.build(fields)
        self.refresh_fields(rows=True)
        # After the check: an option with a problem is shown whether or not it is one of the basic ones.
        self.apply_filter()
        self.form.cursor = 0
        if self._greeting:
            self.say(self._greeting)
        elif self.problems and self.document.path is not None:
            self.say(f"✗ {next(iter(self.problems.values()))}")

    def refresh_fields(self, *, rows: bool = False) -> None:
        """Bring every field, the title, the summary and the plan up to the document."""
        if not self.form.fields:
            return
        self._findings = found = self.model.findings(self.facts_now())
        preset, last = self.preset, self.last_run
        values = holding_values(self.document)
        others = differences(values, last.values) if last is not None else {}
        for field in self.form.fields:
            name = field.option.name
            field.base = self.model.base
            field.value = self.document.get(name)
            field.problem = found.problems.get(name, "")
            field.warning = found.warnings.get(name, "")
            field.baseline = self.model.baseline(field.option, preset)
            field.notes = difference_notes(field, preset, others)
        known = {field.option.name for field in self.form.fields}
        strangers = [sentence for name, sentence in found.problems.items() if name not in known]
        line = self.query_one("#config-strangers", Static)
        line.display = bool(strangers)
        line.update(Content("\n").join(Content(one_line(f"✗ {sentence}")) for sentence in strangers[:3]))
        self._refresh_title()
        self._refresh_help()
        self.refresh_plan()
        if rows:
            self.count_rows(self.model.train_paths())
            self.look_around()

    def _refresh_title(self) -> None:
        path = self.document.path
        name = path.name if path is not None else "not saved yet" if self.model.is_edited else "new"
        edited = "•edited" if self.model.is_edited and path is not None else ""
        changed = self.model.changed_count(self.preset)
        wrong, doubtful = len(self._findings.problems), len(self._findings.warnings)
        self.set_title(
            "2 Config",
            f"{name} {edited}".strip(),
            f"preset {self.preset_name}" if self.preset_name else "",
            f"{changed} changed" if changed else "",
            counted(wrong, "problem") if wrong else "",
            counted(doubtful, "warning") if doubtful else "",
        )
        self.query_one("#config-summary", Static).update(Content(self.model.summary(self.rows)))

    def _refresh_help(self) -> None:
        """Below the form: the last thing that happened, else the option under the cursor in full."""
        line, field = self.query_one("#config-help", Static), self.form.current
        if field is not None and self.has_class("-manual"):
            run = self.last_run.run.id if self.last_run is not None else ""
            keys = self.keys.hints(["config.help_down", "config.help_up", "config.help"])
            self.query_one(OptionHelp).explain(field.option, help_facts(field, self.preset, run), keys)
        if self._note:
            style = "$limit" if self._note.startswith("✗") else "$foreground"
            line.update(Content.styled(self._note, style))
        elif field is None:
            line.update(Content(one_line(self.nothing_shown())))
        else:
            line.update(Content(explain(field.option, self.keys["config.form"].display)))

    def say(self, text: str) -> None:
        """Say something below the form, until the cursor moves from where it is now."""
        self._note, self._note_field = one_line(text), self.form.current
        self._refresh_help()

    @on(OptionForm.Moved)
    def _moved(self, message: OptionForm.Moved) -> None:
        message.stop()
        if self.form.current is not self._note_field:
            self._note = ""
        self._refresh_help()

    # The long help.

    def action_toggle_help(self) -> None:
        """Show all there is to say about the option under the cursor, or put it away."""
        if self.toggle_class("-manual").has_class("-manual"):
            self._refresh_help()
        elif self.query_one(OptionHelp).has_focus:
            self.form.focus()
        # The form has another height now, and the cursor is to stay in view.
        self.form.cursor = self.form.cursor

    def action_scroll_help(self, lines: int) -> None:
        """Scroll the long help while the cursor stays where it is."""
        if not self.has_class("-manual"):
            self.action_toggle_help()
        else:
            self.query_one(OptionHelp).scroll_relative(y=lines, animate=False)

    @on(OptionHelp.Left)
    def _help_left(self, message: OptionHelp.Left) -> None:
        message.stop()
        self.form.focus()

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
        """The value of the preset in force again, or the default where it has that or there is no preset."""
        field, preset = self.form.current, self.preset
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
        self.history.revert()
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
        self.history.record(self.model)
        if field.option.name in DATA_PATHS:
            self.count_rows(self.model.train_paths())
        self.look_around()
        self._refresh_title()
        self.post_message(ConfigEdited(self.document, field.option.name))

    def commit_open(self) -> None:
        """Close an open input and keep its text."""
        for field in self.form.fields:
            field.commit(refocus=True)

    def request_start(self) -> None:
        """Ask for a run, or go to what keeps it from starting."""
        if not self.focus_first_problem():
            self.post_message(StartRequested())
