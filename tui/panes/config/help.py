"""Help texts of the form, beyond the declaration of an option."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from core.config.document import ConfigDocument, describe_type
from core.config.rules.check import RULES
from core.config.schema import Option
from core.models.advice import Advice
from core.presets.library import Preset
from core.text import one_line
from core.units import exact_number
from tui.panes.config.model import BASE, DATA_PATHS
from tui.widgets.forms.option_field import OptionField, format_value
from tui.widgets.lists.data_tree import DATA_SUFFIXES

#: Options with a path that is completed from the file system, with the suffixes that are offered.
PATH_OPTIONS: dict[str, Sequence[str]] = {
    **dict.fromkeys(DATA_PATHS, DATA_SUFFIXES),
    "model.base": (".gguf",),
    "template.file": (".jinja", ".j2", ".txt"),
}
#: Options that can also be chosen in a screen with the rows in view, with the screen's name.
FORMS: dict[str, Literal["template", "columns"]] = {
    "template.name": "template",
    "template.file": "template",
    "data.format": "columns",
    "data.columns": "columns",
}
#: The meaning of an absent value, where a dash would not say it.
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
    """The text of an option that is not set, where its default is none; empty for no text of its own."""
    epochs = document.get("eval.every_epochs")
    if name == "eval.every_steps" and isinstance(epochs, (int, float)):
        return f"every {exact_number(epochs)} epochs"
    return UNSET_TEXTS.get(name, "")


#: Maximum characters of another value next to an option.
_SHORT = 18
_LONG = 200


def difference_notes(field: OptionField, preset: Preset | None, others: Mapping[str, Any]) -> tuple[str, ...]:
    """Notes on the difference of a field's value from the preset in force and from the last run.

    Args:
        field: The field, its value and baseline up to date.
        preset: The preset in force.
        others: The options that had another value in the last run, with that value.
    """
    name, notes = field.option.name, []
    if preset is not None and name in preset.values and field.is_changed:
        notes.append(f"• was {_short(name, preset.values[name])} in preset")
    if name in others:
        notes.append(f"≠ last run {_short(name, others[name])}")
    return tuple(notes)


def help_facts(
    field: OptionField, preset: Preset | None, run: str, advice: Sequence[Advice] = ()
) -> list[tuple[str, str]]:
    """Facts for the long help of a field, each with its name.

    Args:
        field: The field.
        preset: The preset in force.
        run: The id of the last run; empty where there is none.
        advice: The advice for the base model; what no option says is shown at the model.
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


def _short(name: str, value: Any) -> str:
    """A value in a few characters; the last part of a path."""
    if name in PATH_OPTIONS and value is not None:
        texts = value if isinstance(value, list) else [value]
        value = [Path(text).name if isinstance(text, str) else text for text in texts]
    return one_line(format_value(value), _SHORT) or UNSET_TEXTS.get(name, "none")


def explain(option: Option, form_key: str = "", edit_key: str = "") -> str:
    """The full help line of an option: name, help, accepted values and default.

    Args:
        option: The declaration.
        form_key: The key that opens the screen of an option that has one.
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
