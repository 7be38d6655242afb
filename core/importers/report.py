"""The report on every key, in lines for people."""

from __future__ import annotations

import textwrap

from core.importers.convert import Imported
from core.importers.translation import Entry
from core.text import one_line

#: Longest value shown, in characters.
_LONGEST_VALUE = 32


def render(imported: Imported, width: int) -> list[str]:
    """The report: the tool, the copied keys in short, each other key in a line or two; then findings of the rules."""
    lines = [f"Read as a configuration of {imported.title}. {imported.reason}", ""]
    copied = [entry.key for entry in imported.carried if entry.to]
    idle = len(imported.carried) - len(copied)
    said = f"carried: {', '.join(copied) or 'nothing'}"
    if idle:
        said += f"; {idle} more {'matches' if idle == 1 else 'match'} what happens anyway"
    lines += textwrap.wrap(said, max(min(width, 120), 40), subsequent_indent="  ", break_on_hyphens=False)
    for name, entries in (("changed", imported.changed), ("unsupported", imported.unsupported)):
        if entries:
            lines += ["", f"{name}:", *_render_entries(entries, width)]
    if imported.remarks:
        lines += ["", "about the result:"]
        for remark in imported.remarks:
            lines += [f"  {line}" for line in textwrap.wrap(one_line(remark, 300), max(min(width, 120), 40) - 2)]
    return lines


def _render_entries(entries: list[Entry], width: int) -> list[str]:
    """Each key with its value and its result, those with the same reason together."""
    groups: dict[tuple[str | None, str], list[str]] = {}
    for entry in entries:
        value = "not given" if entry.value is None else _short(entry.value)
        groups.setdefault((entry.to, entry.reason), []).append(f"{one_line(entry.key, 60)}: {value}")
    room = max(min(width, 120), 40)
    lines = []
    for (to, reason), heads in groups.items():
        head = "  " + ", ".join(heads) + (f" -> {to}" if to else "")
        lines += textwrap.wrap(head, room, subsequent_indent="    ", break_on_hyphens=False)
        lines += [f"      {line}" for line in textwrap.wrap(one_line(reason), room - 6, break_on_hyphens=False)]
    return lines


def _short(value: object) -> str:
    return one_line(_in_words(value), _LONGEST_VALUE)


def _in_words(value: object) -> str:
    """A value as one would say it: ``q_proj and v_proj`` for a list, ``path rows.jsonl, type alpaca`` for a table."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(item)}" for key, item in value.items()) or "nothing"
    if isinstance(value, (list, tuple)):
        items = [_in_words(item) for item in value]
        return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else "".join(items) or "nothing"
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
