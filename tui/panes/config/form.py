"""The form of a configuration: its summary, the options with problems and differences, and help on them."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.containers import Container, Vertical
from textual.content import Content

from core.config.compare import differences, holding_values
from core.config.unused import used_by
from core.text import one_line
from tui.panes.config.editor import ConfigEditor
from tui.panes.config.facts import FactsFinder
from tui.panes.config.help import PATH_OPTIONS, difference_notes, explain, help_facts, unset_text
from tui.panes.config.model import Findings
from tui.panes.config.option_filter import OptionFilter
from tui.shell import shell_of
from tui.widgets.forms.option_field import OptionField
from tui.widgets.forms.option_form import OptionForm
from tui.widgets.forms.option_help import OptionHelp
from tui.widgets.text_block import ClippedBlock, TextLine


class ConfigForm(Vertical):
    """The form of an editor's configuration; with the class ``-beside`` the long help is shown to the right.

    Args:
        editor: The configuration.
        known: The facts for its checks.
    """

    DEFAULT_CSS = """
    ConfigForm {
        height: 1fr;
        & > #config-summary { height: auto; max-height: 2; }
        & > #config-strangers { height: auto; max-height: 3; color: $limit; }
        & > #config-body { height: 1fr; layout: vertical; }
        & #config-manual { display: none; }
        & > #config-help { height: 2; color: $muted; }
        &.-manual #config-manual { display: block; }
        &.-beside > #config-body { layout: horizontal; }
        &.-beside #config-form { width: 3fr; height: 100%; }
        &.-beside #config-manual {
            width: 2fr; height: 100%; max-height: 100%; border-top: none; border-left: solid $border; padding-left: 1;
        }
        &.-beside #config-manual:focus { border-left: solid $border-focus; }
    }
    """

    def __init__(self, editor: ConfigEditor, known: FactsFinder) -> None:
        super().__init__()
        self.options = OptionForm(id="config-form")
        self.filter = OptionFilter(self.options)
        self.findings = Findings({}, {})
        """The problems and warnings that are shown."""
        self._editor, self._known = editor, known
        self._summary = TextLine(id="config-summary")
        self._strangers = TextLine(id="config-strangers")
        self._manual = OptionHelp(id="config-manual")
        self._line = ClippedBlock(id="config-help")
        self._note = ""
        self._note_field: OptionField | None = None

    def compose(self) -> ComposeResult:
        """Summary, problems of no option, the options with the long help, and the help line of the current option."""
        yield self._summary
        yield self._strangers
        with Container(id="config-body"):
            yield self.options
            yield self._manual
        yield self._line

    async def build(self) -> None:
        """Create the fields, if that has not been done."""
        if self.options.fields:
            return
        model, fields = self._editor.model, []
        for option in model.options:
            field = OptionField(option, base=model.base, suffixes=PATH_OPTIONS.get(option.name))
            fields.append(field)
        await self.options.build(fields)

    def show(self) -> None:
        """Update every field and its notes from the document."""
        model, last, preset = self._editor.model, self._known.last_run, self._editor.preset
        document = model.document
        problem = self._known.base_problem(model.named_base)
        self.findings = found = model.findings(self._known.facts_for(model), problem)
        others = differences(holding_values(document), last.values) if last is not None else {}
        for field in self.options.fields:
            name = field.option.name
            field.base = model.base
            field.unset_text = unset_text(name, document)
            field.value = document.get(name)
            field.problem = found.problems.get(name, "")
            field.warning = found.warnings.get(name, "")
            field.baseline = model.baseline(field.option, preset)
            field.notes = difference_notes(field, preset, others)
            field.used_by = used_by(name, model.effective)
        known = {field.option.name for field in self.options.fields}
        strangers = [sentence for name, sentence in found.problems.items() if name not in known]
        self._strangers.display = bool(strangers)
        self._strangers.update(Content("\n").join(Content(one_line(f"✗ {sentence}")) for sentence in strangers[:3]))
        self.show_summary()
        self._refresh_help()

    def show_summary(self) -> None:
        """Update the summary at the top."""
        self._summary.update(Content(self._editor.model.summary(self._known.rows)))

    # The help line below the options.

    def say(self, text: str) -> None:
        """Show a message below the options, until the cursor moves."""
        self._note, self._note_field = one_line(text), self.options.current
        self._refresh_help()

    def forget_note(self) -> None:
        """Drop the message: it no longer holds, and goes with the next update of the line."""
        self._note = ""

    def _refresh_help(self) -> None:
        """Update the help line: the last message, else the current option in full."""
        field, keys = self.options.current, shell_of(self).keys
        if field is not None and self.has_class("-manual"):
            last = self._known.last_run
            facts = help_facts(field, self._editor.preset, last.run.id if last is not None else "", self._known.advice)
            hints = keys.hints(["config.help_down", "config.help_up", "config.help"])
            self._manual.explain(field.option, facts, hints)
        if self._note:
            style = "$limit" if self._note.startswith("✗") else "$foreground"
            self._line.show(Content.styled(self._note, style))
        elif field is None:
            self._line.show(Content(one_line(self.filter.reason_for_none(keys["config.back"].display))))
        else:
            self._line.show(Content(explain(field.option, keys["config.form"].display, keys["config.edit"].display)))

    @on(OptionForm.Moved)
    def _moved(self, message: OptionForm.Moved) -> None:
        message.stop()
        if self.options.current is not self._note_field:
            self._note = ""
        self._refresh_help()

    # The long help.

    def toggle_manual(self) -> None:
        """Show or hide the long help of the option under the cursor."""
        if self.toggle_class("-manual").has_class("-manual"):
            self._refresh_help()
        elif self._manual.has_focus:
            self.options.focus()
        # The form's height has changed, and the cursor is to stay in view.
        self.options.cursor = self.options.cursor

    def scroll_manual(self, lines: int) -> None:
        """Scroll the long help while the cursor stays; a hidden one is shown first."""
        if not self.has_class("-manual"):
            self.toggle_manual()
        else:
            self._manual.scroll_relative(y=lines, animate=False)

    @on(OptionHelp.Left)
    def _manual_left(self, message: OptionHelp.Left) -> None:
        message.stop()
        self.options.focus()
