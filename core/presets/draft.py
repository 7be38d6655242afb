"""A configuration to start from, written out with a comment on every line."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import tomlkit

from core.config.schema import find_option, options

_WIDTH = 110
_EVAL_EXAMPLE = '# eval = "held-out.jsonl"'


def draft_config(
    values: Mapping[str, Any],
    *,
    head: Sequence[str] = (),
    notes: Mapping[str, str] | None = None,
) -> str:
    """A TOML text with some options, each below its help.

    Args:
        values: ``section.key`` to value; options that do not exist are an error.
        head: Paragraphs for the top of the file.
        notes: More to say about an option, below its help.

    Raises:
        KeyError: If a value is for no option.
    """
    for name in values:
        if find_option(name) is None:
            raise KeyError(name)
    lines = [line for paragraph in head for line in _comment(paragraph)]
    section = ""
    for option in options():
        is_example = option.name == "data.eval" and not values.keys() & {"data.eval", "data.eval_share"}
        if option.name not in values and not is_example:
            continue
        if option.section != section:
            section = option.section
            lines += ["", f"[{section}]"]
        lines += _comment(option.help)
        if note := (notes or {}).get(option.name):
            lines += _comment(note)
        if is_example:
            lines.append(_EVAL_EXAMPLE)
        else:
            lines.append(f"{option.key} = {tomlkit.item(values[option.name]).as_string()}")
    return "\n".join(lines).lstrip("\n") + "\n"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False, break_on_hyphens=False
    )
