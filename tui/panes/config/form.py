"""Form of a configuration: filtered options with their problems, differences and help."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from textual import on
from textual.app import ComposeResult
from textual.containers import Container, Vertical
from textual.content import Content

from core.config.compare import differences, holding_values
from core.config.derived import used_by
from core.config.document import ConfigDocument, describe_type
from core.config.rules.check import RULES
from core.config.schema import Option
from core.models.advice import Advice
from core.presets.library import Preset
from core.text import one_line
from core.units import exact_number
from tui.panes.config.editor import ConfigEditor
from tui.panes.config.facts import FactsFinder
from tui.panes.config.model import BASE, DATA_PATHS, TRAIN, Findings
from tui.shell import shell_of
from tui.widgets.forms.option_field import OptionField, format_value
from tui.widgets.forms.option_form import OptionForm, OptionHelp
from tui.widgets.lists.data_tree import DATA_SUFFIXES
from tui.widgets.strips import style_of
from tui.widgets.text_block import ClippedBlock, TextLine


class OptionFilter:
    """Filter of a form's fields.

    Args:
        form: The form.
    """

    def __init__(self, form: OptionForm) -> None:
        self._form = form
        self.shows_expert = False
        self.shows_changed = False
        self.term = ""
        """The search text; empty for none."""

    @property
    def is_narrowed(self) -> bool:
        """True if only search results or changed options are shown."""
        return bool(self.term) or self.shows_changed

    def reason_for_none(self, back: str) -> str:
        """A sentence that explains why no field is shown; empty if no filter is active.

        Args:
            back: The key that shows the options again.
        """
        if self.term:
            return f"No option has “{self.term}” in its name or help."
        return f"Nothing is changed. {back} shows the options again." if self.shows_changed else ""

    def apply(self) -> None:
        """Show the fields that pass the filter."""
        self._form.filter(self._keeps)

    def _keeps(self, field: OptionField) -> bool:
        option, term = field.option, self.term.lower()
        if term:
            return term in option.name.lower() or term in option.help.lower()
        if self.shows_changed:
            return field.is_changed or bool(field.notes or field.problem)
        if field.is_changed or field.differs or field.problem or field.warning:
            return True
        return option.audience == "basic" or (self.shows_expert and option.audience == "expert")

    def search(self, text: str) -> None:
        """Show the options with a text in name or help, and move the cursor to the first match in a name."""
        self.term = text.strip()
        self.apply()
        term = self.term.lower()
        named = next((field for field in self._form.shown if term and term in field.option.key.lower()), None)
        if named is not None:
            self._form.go_to(named)

    def widen(self) -> None:
        """Clear the search, or the restriction to changed options."""
        self.term, self.shows_changed = "", False
        self.apply()

    def toggle_expert(self) -> None:
        """Show or hide the expert options."""
        self.shows_expert = not self.shows_expert
        self.widen()

    def toggle_changed(self) -> None:
        """Show only options that differ or have findings, or the others again."""
        self.shows_changed, self.term = not self.shows_changed, ""
        self.apply()

    def go_to(self, name: str) -> None:
        """Move the cursor to an option; a hidden option is shown."""
        field = self._form.field(name)
        if field is None:
            return
        if not field.display:
            self.widen()
        if not field.display:
            # An expert or file-only option without findings.
            if field.option.audience == "file":
                self.term = name
            else:
                self.shows_expert = True
            self.apply()
        self._form.go_to(field)

    def next_problem(self) -> str:
        """The next option with a problem, or with a warning if there are no problems; empty if there are neither."""
        fields = self._form.fields
        wrong = [field for field in fields if field.problem] or [field for field in fields if field.warning]
        current = self._form.current
        here = fields.index(current) if current is not None else -1
        following = [field for field in wrong if fields.index(field) > here]
        return (following or wrong)[0].option.name if wrong else ""


#: Options with path completion, and the suffixes that it offers.
PATH_OPTIONS: dict[str, Sequence[str]] = {
    **dict.fromkeys(DATA_PATHS, DATA_SUFFIXES),
    "model.base": (".gguf",),
    "template.file": (".jinja", ".j2", ".txt"),
}
#: Options that can also be chosen in a screen next to the rows, and that screen.
FORMS: dict[str, Literal["template", "columns"]] = {
    "template.name": "template",
    "template.file": "template",
    "data.format": "columns",
    "data.columns": "columns",
}
#: Texts for values that are not set.
UNSET_TEXTS = {
    "model.keep_16bit": "none",
    "data.train": "needed",
    "data.eval": "none",
    "data.columns": "by the format",
    "template.name": "the model's own",
    "template.file": "the model's own",
    "train.max_steps": "no limit",
    "train.micro_batch_size": "chosen",
    "eval.every_steps": "at the end",
    "checkpoint.every_steps": "ten times",
    "chat.system": "none",
}


def unset_text(name: str, document: ConfigDocument) -> str:
    """The text of an option that is not set and has no default; empty if it has no text of its own."""
    epochs = document.get("eval.every_epochs")
    if name == "eval.every_steps" and isinstance(epochs, (int, float)):
        return f"every {exact_number(epochs)} epochs"
    return UNSET_TEXTS.get(name, "")


#: Maximum characters of another value in a note, and in the help.
_SHORT = 60
_LONG = 200


def difference_notes(field: OptionField, preset: Preset | None, others: Mapping[str, Any]) -> tuple[str, ...]:
    """Notes on the differences of a field from the active preset and from the last run.

    Args:
        field: The field, with up-to-date value and baseline.
        preset: The active preset.
        others: The options with another value in the last run, and that value.
    """
    name, notes = field.option.name, []
    if preset is not None and name in preset.values and field.is_changed:
        notes.append(f"• was {_short(name, preset.values[name], field.value)} in preset")
    if name in others:
        notes.append(f"≠ last run {_short(name, others[name], field.value)}")
    return tuple(notes)


def help_facts(
    field: OptionField, preset: Preset | None, run: str, advice: Sequence[Advice] = ()
) -> list[tuple[str, str]]:
    """Names and values of facts for the long help of a field.

    Args:
        field: The field.
        preset: The active preset.
        run: The id of the last run; empty if there is none.
        advice: The advice for the base model; advice on no option is shown at the model.
    """
    option = field.option
    default = "" if option.required else _full(option.name, option.default)
    accepts = describe_type(option) + (f" ({option.unit})" if option.unit else "")
    facts = [("accepts", accepts), ("default", default or "none; it must be given")]
    if preset is not None and option.name in preset.values:
        note = preset.notes.get(option.name, "")
        value = _full(option.name, preset.values[option.name])
        facts.append(("preset", f"{value} in {preset.name}" + (f": {note}" if note else "")))
    facts += [("last run", f"{note.removeprefix('≠ last run ')} in {run}") for note in field.notes if "≠" in note]
    for item in advice:
        if option.name == (item.option or "model.base"):
            value = "" if item.value is None else f"{_full(option.name, item.value)} for "
            facts.append(("advised", f"{value}{item}"))
    facts += [("rule", rule.says) for rule in RULES if option.name in rule.options]
    return facts


def _full(name: str, value: Any) -> str:
    return one_line(format_value(value), _LONG) or UNSET_TEXTS.get(name, "none")


def _short(name: str, value: Any, present: Any) -> str:
    """A value in a few characters. A path is shown from the part on that differs from the present value's."""
    if name in PATH_OPTIONS and value is not None:
        texts, beside = (item if isinstance(item, list) else [item] for item in (value, present))
        others = [*beside, *[None] * (len(texts) - len(beside))]
        value = [
            _tail(text, other) if isinstance(text, str) else text for text, other in zip(texts, others, strict=False)
        ]
    return one_line(format_value(value), _SHORT) or UNSET_TEXTS.get(name, "none")


def _tail(path: str, other: Any) -> str:
    """The name of a path, with as many directories as it takes to differ from another path."""
    parts, beside = Path(path).parts, Path(other).parts if isinstance(other, str) else ()
    count = next((count for count in range(1, len(parts)) if parts[-count:] != beside[-count:]), len(parts))
    return str(Path(*parts[-count:])) if path != other else Path(path).name


def explain(option: Option, form_key: str = "", edit_key: str = "") -> str:
    """The full help line of an option: name, help, accepted values and default.

    Args:
        option: The declaration.
        form_key: The key that opens the option's screen, if it has one.
        edit_key: The key that lists the base models.
    """
    default = format_value(option.default) or UNSET_TEXTS.get(option.name, "none")
    is_free = option.type == "text" and not option.unit
    accepts = "" if is_free else describe_type(option) + (f" ({option.unit})" if option.unit else "") + "; "
    about = "needed" if option.required else f"default {default}"
    values = f"{accepts}{about}"
    form = f" ({form_key} shows it with the rows)" if form_key and option.name in FORMS else ""
    if edit_key and option.name == BASE:
        form = f" ({edit_key} lists those here)"
    return one_line(f"{option.name}{form}: {option.help} {values[0].upper()}{values[1:]}.")


class ConfigForm(Vertical):
    """Form of an editor's configuration; the class ``-beside`` puts the long help to its right.

    Args:
        editor: The editor of the configuration.
        known: The facts for its checks.
    """

    DEFAULT_CSS = style_of("ConfigForm")

    def __init__(self, editor: ConfigEditor, known: FactsFinder) -> None:
        super().__init__()
        self.options = OptionForm(id="config-form")
        self.filter = OptionFilter(self.options)
        self.findings = Findings({}, {})
        """The shown problems and warnings."""
        self.changed: set[str] = set()
        """The options that the user changed."""
        self._editor, self._known = editor, known
        self._summary = TextLine(id="config-summary")
        self._strangers = TextLine(id="config-strangers")
        self._manual = OptionHelp(id="config-manual")
        self._line = ClippedBlock(id="config-help")
        self._note = ""
        self._note_field: OptionField | None = None

    def compose(self) -> ComposeResult:
        """Summary, problems without an option, options, long help and help line."""
        yield self._summary
        yield self._strangers
        with Container(id="config-body"):
            yield self.options
            yield self._manual
        yield self._line

    async def build(self) -> None:
        """Create the fields, once."""
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
        self.changed, errors, keys = model.changed(), self.errors, shell_of(self).keys
        for field in self.options.fields:
            name = field.option.name
            field.base = model.base
            field.unset_text = unset_text(name, document)
            field.value = document.get(name)
            field.problem = errors.get(name, "")
            field.warning = found.warnings.get(name, "")
            field.baseline = model.baseline(field.option, preset)
            field.is_changed = name in self.changed
            field.notes = difference_notes(field, preset, others)
            if name in found.problems and name not in errors:
                field.notes = (f"choose a file in Data: {keys['data.train'].display}",)
            field.used_by = used_by(name, model.effective)
        known = {field.option.name for field in self.options.fields}
        strangers = [sentence for name, sentence in found.problems.items() if name not in known]
        self._strangers.display = bool(strangers)
        self._strangers.update(Content("\n").join(Content(one_line(f"✗ {sentence}")) for sentence in strangers[:3]))
        self.show_summary()
        self._refresh_help()

    @property
    def errors(self) -> dict[str, str]:
        """The problems without missing training data, which is the next step rather than an error."""
        found = self.findings.problems
        return {name: found[name] for name in found if name != TRAIN or self._editor.document.get(TRAIN) is not None}

    def show_summary(self) -> None:
        """Update the summary at the top."""
        model = self._editor.model
        rows, is_exact = self._known.rows_of(model), self._known.analysis_of(model) is not None
        self._summary.update(Content(model.summary(rows, is_exact=is_exact)))

    # The help line below the options.

    def say(self, text: str) -> None:
        """Show a message below the options, until the cursor moves."""
        self._note, self._note_field = one_line(text), self.options.current
        self._refresh_help()

    def forget_note(self) -> None:
        """Drop the message at the next update of the line."""
        self._note = ""

    def _refresh_help(self) -> None:
        """Update the help line: the message, else the help of the current option."""
        field, keys = self.options.current, shell_of(self).keys
        if field is not None and self.has_class("-manual"):
            last = self._known.last_run
            facts = help_facts(field, self._editor.preset, last.run.id if last is not None else "", self._known.advice)
            self._manual.explain(field.option, facts)
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

    @property
    def has_hidden_help(self) -> bool:
        """True if the long help is shown, and is longer than its panel."""
        return self.has_class("-manual") and self._manual.show_vertical_scrollbar

    def watch_help(self, changed: Callable[[], None]) -> None:
        """Call a function when the long help becomes longer than its panel, or fits."""
        self.watch(self._manual, "show_vertical_scrollbar", changed, init=False)

    def toggle_manual(self) -> None:
        """Show or hide the long help of the option under the cursor."""
        if self.toggle_class("-manual").has_class("-manual"):
            self._refresh_help()
        elif self._manual.has_focus:
            self.options.focus()
        # The form's height has changed; scroll the cursor into view.
        self.options.cursor = self.options.cursor

    def scroll_manual(self, lines: int) -> None:
        """Scroll the long help, or show it if it is hidden."""
        if not self.has_class("-manual"):
            self.toggle_manual()
        else:
            self._manual.scroll_relative(y=lines, animate=False)

    @on(OptionHelp.Left)
    def _manual_left(self, message: OptionHelp.Left) -> None:
        message.stop()
        self.options.focus()
