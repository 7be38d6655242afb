"""Conversion of another tool's configuration: recognizes the tool, applies its table, writes TOML and a report."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomlkit

from core.config.document import ConfigDocument
from core.config.facts import Facts
from core.config.schema import options
from core.errors import UserError
from core.importers.axolotl import AXOLOTL
from core.importers.data_files import count_rows
from core.importers.llama_factory import LLAMA_FACTORY
from core.importers.llama_factory_v1 import LLAMA_FACTORY_V1
from core.importers.python_calls import CodeFile, read_calls
from core.importers.redact import cleaned, redact_name, shown
from core.importers.tool import DATA, Tool, carry_over
from core.importers.translation import Entry, Places, Translation, Unknown, file_name
from core.importers.unsloth import UNSLOTH
from core.importers.unsloth_script import UNSLOTH_SCRIPT
from core.path_kind import CODE_SUFFIXES
from core.text import one_line
from core.yaml.file import YamlFile, read_yaml

#: Supported tools, by the name for ``--from``.
TOOLS: dict[str, Tool] = {tool.kind: tool for tool in (AXOLOTL, LLAMA_FACTORY, UNSLOTH)}
#: Their forms: the tools, and what some of them read besides.
FORMS: dict[str, Tool] = {**TOOLS, LLAMA_FACTORY_V1.kind: LLAMA_FACTORY_V1}

_CODE = "It calls FastLanguageModel.from_pretrained, as programs of Unsloth do."
#: Characters that TOML does not escape but a terminal acts on: DEL, C1, bidirectional controls, separators.
_ACTED_ON = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
#: Longest value and widest line of the report, in characters.
_LONGEST_VALUE, _WIDEST = 32, 120


@dataclass(frozen=True)
class Imported:
    """A converted configuration.

    Args:
        kind: Its tool: ``axolotl``, ``llama-factory`` or ``unsloth``.
        title: Name of the tool.
        reason: Evidence for the tool, in a sentence.
        toml: Our configuration. Values with a comment were decided, values without were copied.
        carried: Keys with the same meaning here.
        changed: Keys with a slightly different meaning, and defaults of the tool that differ from ours.
        unsupported: Unsupported keys, each with the reason, and keys unknown to the tool.
        unknown: Keys unknown to the tool.
        remarks: Findings of our rules about the result, a sentence or two each.
    """

    kind: str
    title: str
    reason: str
    toml: str
    carried: list[Entry]
    changed: list[Entry]
    unsupported: list[Entry]
    unknown: list[Unknown]
    remarks: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The result as ``import --json`` prints it."""
        return {name: value for name, value in asdict(self).items() if name not in ("title", "unknown")}


def import_config(path: Path, kind: str | None = None, home: Path | None = None) -> Imported:
    """Convert a configuration.

    Args:
        path: The YAML file; or the script or notebook, for Unsloth.
        kind: The tool, as for ``--from``; None to recognize it from the keys.
        home: Directory of the result; paths below it are written relative to it, others absolute.

    Raises:
        UserError: If the file cannot be read, its tool is unclear, a value is of the wrong kind, or keys contradict
            each other so that the tool itself refuses them. The message names file, line and key.
    """
    if path.suffix.lower() == ".toml":
        raise UserError(
            f"{one_line(str(path), 200)} is TOML; configurations of other tools are YAML.",
            "A configuration of ours needs no import: localtune-tui opens it, and train takes it.",
        )
    is_code = path.suffix.lower() in CODE_SUFFIXES
    if is_code and kind not in (None, UNSLOTH.kind):
        problem = f"{one_line(str(path), 200)} is Python, and {TOOLS[kind].title} is set by YAML."
        raise UserError(problem, "Leave out --from.")
    source = read_calls(path) if is_code else read_yaml(path, cleaned)
    tool, reason = (UNSLOTH_SCRIPT, _CODE) if is_code else _tool(source, kind)
    values, empty = _flatten(tool, source)
    places = Places.find(path, tool.places(source.values), home)
    work = Translation(tool.title, source, places, values, empty)
    if isinstance(source, CodeFile):
        _note_code(work, source)
    carry_over(tool, work)
    work.note_repeated()
    toml = _write(work)
    facts = Facts(rows=count_rows(work))
    remarks = [f"{remark.sentence} {remark.hint}" for remark in ConfigDocument(toml).remarks(facts)]
    lists = (work.carried, work.changed, work.unsupported, work.unknown)
    return Imported(tool.kind, tool.title, reason, toml, *lists, remarks)


def _note_code(work: Translation, source: CodeFile) -> None:
    """Report the arguments that are computed, and the places that are not read."""
    for key, code in source.computed.items():
        work.inner[key] = code
        work.drop(key, "Computed in the code, which is not run: the option keeps its default.")
    for place, (code, reason) in source.left.items():
        work.inner[place] = code
        work.drop(place, reason)


def _flatten(tool: Tool, source: YamlFile) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keys with values, and keys without; keys of sections as ``section.key``."""
    values: dict[str, Any] = {}
    empty: dict[str, Any] = {}
    for key, value in source.values.items():
        pairs: Iterable[tuple[str, Any]] = [(key, value)]
        if key in tool.sections and value is not None:
            if not isinstance(value, dict):
                place, hint = source.place(key), f"Write {key}: and its keys below."
                raise UserError(f"{place}: {key} must be a table of keys, not {shown(key, value)}.", hint)
            pairs = [(f"{key}.{name}", inner) for name, inner in value.items()]
        for name, inner in pairs:
            if inner is None or (isinstance(inner, str) and not inner.strip()):
                empty[name] = inner
            else:
                values[name] = inner
    return values, empty


# Recognition of the tool.


def _tool(source: YamlFile, kind: str | None) -> tuple[Tool, str]:
    keys = set(source.values)
    own = {name: _own_keys(tool, keys, source.values) for name, tool in FORMS.items()}
    ranked = sorted(FORMS, key=lambda name: -len(own[name]))
    if kind is not None:
        forms = [name for name in ranked if kind in TOOLS and FORMS[name].title == TOOLS[kind].title]
        return FORMS[forms[0] if forms else kind], "Given by --from."
    best = ranked[0]
    second = next(name for name in ranked if FORMS[name].title != FORMS[best].title)
    if (other := _other_kind(keys, own)) is not None:
        raise UserError(f"{source.shown} is {other}.", "Name the configuration of a training.")
    names = ", ".join(TOOLS)
    if not own[best]:
        raise UserError(
            f"{source.shown} has no key by which a configuration of Axolotl, LLaMA-Factory or Unsloth is known.",
            f"If it is one, say which with --from: {names}.",
        )
    if len(own[second]) * 3 > len(own[best]):
        raise UserError(
            f"{source.shown} has keys of {FORMS[best].title} ({_some(own[best])}) and of {FORMS[second].title} "
            f"({_some(own[second])}).",
            f"Say which it is with --from: {names}.",
        )
    return FORMS[best], f"It has {_some(own[best])}, as configurations of {FORMS[best].title} have."


def _own_keys(tool: Tool, keys: set[str], values: Mapping[str, Any]) -> list[str]:
    """Keys of a file that only this tool has, the most characteristic first; ``model`` is in too many files."""
    others = {key for other in TOOLS.values() if other.title != tool.title for key in other.table}
    tables = [key for key in tool.signs if key in tool.sections and isinstance(values.get(key), dict)]
    # Both the sections and their keys count.
    inner = [f"{key}.{name}" for key in tables for name in values[key] if f"{key}.{name}" in tool.table]
    mine = [key for key in tool.table if key in keys and key not in others and key != "model"]
    signs = [key for key in tool.signs if key in mine or key in tables]
    return [*signs, *inner, *(key for key in mine if key not in signs)]


def _other_kind(keys: set[str], own: Mapping[str, list[str]]) -> str | None:
    for other in DATA["others"]:
        if len(keys.intersection(other["keys"].split())) >= 2 and all(len(found) < 4 for found in own.values()):
            return str(other["noun"])
    return None


def _some(keys: list[str]) -> str:
    first = [one_line(redact_name(key), 40) for key in keys[:3]]
    return first[0] if len(first) == 1 else f"{', '.join(first[:-1])} and {first[-1]}"


# The configuration.


def _write(work: Translation) -> str:
    name, title = file_name(work.source.path), work.title
    lines = [
        f"# Imported from {name}, a configuration of {title}.",
        "# A line with a comment was decided or asks for something, one without was copied.",
    ]
    section = ""
    for option in options():
        setting = work.settings.get(option.name)
        if setting is None:
            continue
        if option.section != section:
            section = option.section
            lines += ["", f"[{section}]"]
        comment = f"  # {one_line(setting.comment, 400)}" if setting.comment else ""
        lines.append(f"{option.key} = {_toml_value(setting.value)}{comment}")
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    item: Any = tomlkit.item(value)
    if isinstance(value, Mapping):
        item = tomlkit.inline_table()
        item.update(value)
    return _ACTED_ON.sub(lambda found: f"\\u{ord(found[0]):04x}", item.as_string())


# The report.


def render(imported: Imported, width: int) -> list[str]:
    """Lines of the report: the tool, the copied keys in short, all other keys with reasons, the findings of rules."""
    width = max(min(width, _WIDEST), 40)
    copied = [entry.key for entry in imported.carried if entry.to]
    said = f"carried: {', '.join(copied) or 'nothing'}"
    if idle := len(imported.carried) - len(copied):
        said += f"; {idle} more {'matches' if idle == 1 else 'match'} our behavior"
    lines = [f"Read as a configuration of {imported.title}. {imported.reason}", "", *_wrapped(said, width, "", "  ")]
    for name, entries in (("changed", imported.changed), ("unsupported", imported.unsupported)):
        if entries:
            lines += ["", f"{name}:", *_render_entries(entries, width)]
    if imported.remarks:
        lines += ["", "about the result:"]
        lines += [line for remark in imported.remarks for line in _wrapped(one_line(remark, 300), width, "  ", "  ")]
    return lines


def _render_entries(entries: list[Entry], width: int) -> list[str]:
    """Lines with keys, values and results; keys with the same reason are grouped."""
    groups: dict[tuple[str | None, str], list[str]] = {}
    for entry in entries:
        value = "not given" if entry.value is None else one_line(_in_words(entry.value), _LONGEST_VALUE)
        groups.setdefault((entry.to, entry.reason), []).append(f"{one_line(entry.key, 60)}: {value}")
    lines = []
    for (to, reason), heads in groups.items():
        lines += _wrapped(", ".join(heads) + (f" -> {to}" if to else ""), width, "  ", "    ")
        lines += _wrapped(one_line(reason), width, " " * 6, " " * 6)
    return lines


def _wrapped(text: str, width: int, first: str, others: str) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=others, break_on_hyphens=False)


def _in_words(value: object) -> str:
    """A value in words: ``q_proj and v_proj`` for a list, ``path rows.jsonl, type alpaca`` for a table."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(item)}" for key, item in value.items()) or "nothing"
    if isinstance(value, (list, tuple)):
        items = [_in_words(item) for item in value]
        return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else "".join(items) or "nothing"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
