"""What the form says about options beyond their declaration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from core.config.document import describe_type
from core.config.schema import Option
from core.text import one_line
from tui.panes.config_model import DATA_PATHS
from tui.widgets.data_tree import DATA_SUFFIXES
from tui.widgets.option_field import format_value

#: Options whose values are completed from the file system, with the endings that are offered.
PATH_OPTIONS: dict[str, Sequence[str]] = {
    **dict.fromkeys(DATA_PATHS, DATA_SUFFIXES),
    "model.base": (".gguf",),
    "template.file": (".jinja", ".j2", ".txt"),
}
#: Options that are also chosen in a screen that shows the rows, with its name.
FORMS: dict[str, Literal["template", "columns"]] = {
    "template.name": "template",
    "template.file": "template",
    "data.format": "columns",
    "data.columns": "columns",
}
#: What an absent value means, where a dash would not tell.
UNSET_TEXTS = {
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


def explain(option: Option, form_key: str = "") -> str:
    """An option in full: name, help, what it accepts and what holds without it.

    Args:
        option: The declaration.
        form_key: The key that opens the screen of an option that has one.
    """
    default = format_value(option.default) or UNSET_TEXTS.get(option.name, "none")
    accepts = describe_type(option) + (f" ({option.unit})" if option.unit else "")
    about = "needed" if option.required else f"default {default}"
    form = f" ({form_key} shows it with the rows)" if form_key and option.name in FORMS else ""
    return one_line(f"{option.name}{form}: {option.help} {accepts[0].upper()}{accepts[1:]}; {about}.")
