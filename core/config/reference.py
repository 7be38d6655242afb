"""The reference page of the configuration, ``docs/reference/configuration.md``, made from the declarations."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from core.config.rules.check import RULES
from core.config.schema import Option, options, sections
from core.config.values import describe_type
from core.units import exact_number

_HEAD = Path(__file__).with_name("reference.md").read_text(encoding="utf-8")
_SELDOM_HEAD = """\
## Seldom needed

Options with a good default and a rare reason to change it. The Config pane lists one where it is set; `/` finds all.
"""
_RULES_HEAD = """\
Checked before a run, as far as model, device, disk and rows are known. An error prevents the start; a warning is
printed.

| rule | |
|---|---|"""
_WIDTH = 120
_AUDIENCE = {"basic": "everybody", "expert": "experts", "file": "the file alone"}


def render_reference() -> str:
    """The page as Markdown, a newline at its end."""
    listed = [option for option in options() if option.audience != "file"]
    seldom = [option for option in options() if option.audience == "file"]
    parts = [_HEAD, *_overview(listed)]
    for section, declaration in sections().items():
        parts.append(f"## [{section}]\n\n{(declaration.__doc__ or '').strip()}\n")
        parts += [_describe(option) for option in listed if option.section == section]
    parts += [_SELDOM_HEAD, *_overview(seldom), *map(_describe, seldom)]
    parts += ["## Rules between options\n", _RULES_HEAD, *(f"| {rule.says} | {rule.level} |" for rule in RULES), ""]
    return "\n".join(parts)


def _overview(shown: Iterable[Option]) -> Iterator[str]:
    yield "| option | default | |\n|---|---|---|"
    for option in shown:
        # Markdown viewers leave the dot out of a heading's anchor.
        name = f"[`{option.name}`](#{option.name.replace('.', '')})"
        name += " **basic**" if option.audience == "basic" else ""
        help_cell = option.help.replace("|", "\\|")
        yield f"| {name} | {_default(option)} | {help_cell} |"
    yield ""


def _describe(option: Option) -> str:
    entry = option.manual
    accepts = describe_type(option) + (f", in {option.unit}" if option.unit else "")
    default = "required" if option.required else f"default {_default(option)}"
    facts = f"*{accepts[0].upper()}{accepts[1:]}; {default}; for {_AUDIENCE[option.audience]}.*"
    paragraphs = [option.help, facts, entry.about]
    told = (("Memory", entry.memory), ("Time", entry.time), ("Source", entry.source))
    costs = "\n".join(f"- {what}: {text}" for what, text in told if text)
    wrapped = [textwrap.fill(text, _WIDTH, break_on_hyphens=False, break_long_words=False) for text in paragraphs]
    return "\n\n".join(filter(None, [f"### {option.name}", *wrapped, costs])) + "\n"


def _default(option: Option) -> str:
    if option.required:
        return "required"
    if option.default is None:
        return "none"
    if isinstance(option.default, float):
        return f"`{exact_number(option.default)}`"
    return f"`{json.dumps(option.default, ensure_ascii=False)}`"
