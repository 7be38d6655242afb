"""The reference page of the configuration, ``docs/reference/configuration.md``, made from the declarations."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from core.config.rules.check import RULES
from core.config.schema import Option, options, sections
from core.config.values import describe_type
from core.units import exact_number

_HEAD = """\
# Configuration

Made by `localtune-tui schema --markdown --out docs/reference/configuration.md` from the declarations in
`core/config/schema.py` and `manual.toml`; change it there.

A configuration is one TOML file. Only `data.train` is needed; every other option has the default that is named with
it. Paths are relative to the file. An option may be written in its section or as `section.key = value` at the top. An
unknown key, and a value that is none, are errors that name file, line and key. `localtune-tui train mine.toml --set
section.key=value` overrides an option for one run.

Editors check and complete the file by the JSON Schema that `localtune-tui schema --out localtune.schema.json` writes;
with the line `#:schema ./localtune.schema.json` at the top of the file, Taplo and the editors that use it (Even
Better TOML in VS Code) find it.

Options marked **basic** are those that most runs need; the Config pane shows them first and all with `x`. What an
option costs is told for Llama-3.1-8B where no model is named.
"""
_RULES_HEAD = """\
Looked at before a run, as far as model, device, disk and rows are known. An error keeps the run from starting, a
warning is told.

| rule | |
|---|---|"""
_WIDTH = 120
_AUDIENCE = {"basic": "everybody", "expert": "experts"}


def render_reference() -> str:
    """The page as Markdown, a newline at its end."""
    parts = [_HEAD, *_overview()]
    for section, declaration in sections().items():
        parts.append(f"## [{section}]\n\n{(declaration.__doc__ or '').strip()}\n")
        parts += [_describe(option) for option in options() if option.section == section]
    parts += ["## Rules between options\n", _RULES_HEAD, *(f"| {rule.says} | {rule.level} |" for rule in RULES), ""]
    return "\n".join(parts)


def _overview() -> Iterator[str]:
    yield "| option | default | |\n|---|---|---|"
    for option in options():
        name = f"[`{option.name}`](#{_anchor(option)})" + (" **basic**" if option.basic else "")
        yield f"| {name} | {_default(option)} | {_cell(option.help)} |"
    yield ""


def _describe(option: Option) -> str:
    entry = option.manual
    accepts = describe_type(option) + (f", in {option.unit}" if option.unit else "")
    default = "needed" if option.required else f"default {_default(option)}"
    facts = f"*{accepts[0].upper()}{accepts[1:]}; {default}; for {_AUDIENCE[option.audience]}.*"
    paragraphs = [option.help, facts, entry.about]
    told = (("Memory", entry.memory), ("Time", entry.time), ("Source", entry.source))
    costs = "\n".join(f"- {what}: {text}" for what, text in told if text)
    wrapped = [textwrap.fill(text, _WIDTH, break_on_hyphens=False, break_long_words=False) for text in paragraphs]
    return "\n\n".join(filter(None, [f"### {option.name}", *wrapped, costs])) + "\n"


def _default(option: Option) -> str:
    if option.required:
        return "needed"
    return "none" if option.default is None else f"`{_toml(option.default)}`"


def _toml(value: Any) -> str:
    """A default as it is written in TOML."""
    if isinstance(value, float):
        return exact_number(value)
    return json.dumps(value, ensure_ascii=False)


def _anchor(option: Option) -> str:
    """The anchor that Markdown viewers give a heading: the name without its dot."""
    return option.name.replace(".", "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
