"""Screen of the base models: local models as they are found, and downloads from a hub."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import OptionList
from textual.worker import get_current_worker

from core.analysis.result import Lengths
from core.config.document import ConfigDocument, valid_part
from core.config.schema import Config, ModelSection
from core.errors import UserError
from core.hub.job import hub_host
from core.memory.plan import Machine
from core.memory.planner import Fit
from core.memory.planner import fit as find_fit
from core.memory.rows import rows_of_lengths
from core.models.find import find_model, most_like
from core.models.inspection import ModelFacts
from core.models.places import FoundModel, UnreadPlace, fetchable, typed_model
from core.paths import shown_path, working_directory
from core.runs.catalog.earlier import ModelCatalog
from core.runs.outlook.forecast import machine_for
from core.text import one_line
from core.units import format_bytes, format_count, short_count
from tui.screens.fetch import FetchPage
from tui.screens.pick import FindScreen
from tui.shell import shell_of
from tui.widgets.forms.inputs import SafeInput, common_prefix, complete_path
from tui.widgets.strips import fit, style_of
from tui.widgets.text_block import TextBlock

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
        model: Name and location.
        facts: Its properties; None until it has been read.
        fit: The memory of a run with it; None until it has been read.
    """

    model: FoundModel
    facts: ModelFacts | None = None
    fit: Fit | None = None

    @property
    def is_fetched_anew(self) -> bool:
        """True for an incomplete download from a hub."""
        is_incomplete = self.facts is not None and self.facts.is_incomplete
        return is_incomplete and self.model.source == "hub cache" and fetchable(self.model.base) is not None

    def has(self, term: str) -> bool:
        """True if the name, path or location contains a lower-case text."""
        model = self.model
        return any(term in text.lower() for text in (model.name, model.base, model.place, str(model.path)))


def tell_fit(memory: Fit) -> tuple[str, str]:
    """A few words on needed and free memory, and their style."""
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
    """A few words on whether the model can be trained here, and their style."""
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
        is_present: True for the model of the configuration.
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
    """A name; an id that is too long loses its owner."""
    shown = one_line(name, 200)
    return shown if len(shown) <= width else shown.partition("/")[2] or shown


def _end(text: str, width: int) -> str:
    """Fit a text into ``width`` cells, keeping its end: the end of a path or id says more than its beginning."""
    shown = one_line(text, 400)
    return fit(shown if len(shown) <= width else "…" + shown[-(width - 1) :], width)


def hub_line(name: str, width: int) -> Content:
    """The line of a downloadable model.

    Args:
        name: ``owner/name``.
        width: Columns of the line.
    """
    about = "fetch from the hub · enter asks its size"
    return Content.assemble("  ", fit(one_line(name, 200), max(width - 4 - len(about), 8)), (f"  {about}", "$accent"))


def model_details(row: ModelRow, width: int) -> Content:
    """Details of a model in a few lines: location, properties, and whether it can be trained.

    Args:
        row: The model.
        width: Columns of a line; only the last sentence may wrap.
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


#: Maximum number of listed models; more are found by typing.
LISTED = 200
#: Seconds for which found models are gathered before they are listed.
_GATHERED = 0.05


@dataclass(frozen=True)
class _Entry:
    """An entry of the list: a model, a download, the typed text itself, or a note that cannot be chosen."""

    kind: Literal["model", "fetch", "typed", "note"]
    key: str
    prompt: Content | None = None


class ModelScreen(FindScreen[str | Path | None]):
    """Screen to choose the base model; returns a value for ``model.base``, or nothing for ``esc``.

    Args:
        catalog: The models on this machine.
        document: The configuration, for the memory plan and the current choice; a thread reads it, so pass a copy.
        lengths: The lengths of its rows; None if unknown.
    """

    DEFAULT_CSS = style_of("ModelScreen")
    HELP = "models"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("tab", "complete", show=False, priority=True)]

    def __init__(self, catalog: ModelCatalog, document: ConfigDocument, lengths: Lengths | None = None) -> None:
        super().__init__("a part of a name, a path, or owner/name of a model of a hub")
        self._catalog, self._document = catalog, document
        self._rows_of_data = rows_of_lengths(lengths) if lengths is not None else None
        here = working_directory()
        self._directory = here / document.path.parent if document.path is not None else here
        written = document.get("model.base")
        self._present = written if isinstance(written, str) else ModelSection().base
        self._rows: dict[str, ModelRow] = {}
        """Found models by their value for ``model.base``."""
        self._typed_row: ModelRow | None = None
        """The model at the typed path."""
        self._notes: list[UnreadPlace] = []
        self._entries: list[_Entry] = []
        self._has_moved = False
        self._is_searching = True

    def compose(self) -> ComposeResult:
        """The search text, the models, and the details of the model under the cursor."""
        with Vertical() as box:
            more = f"  {shell_of(self).keys['app.help'].display} help"
            box.border_subtitle = Content(f"type to find  tab complete  enter choose  esc back{more}")
            yield self.line
            yield self.options
            yield TextBlock(Content(" "), id="model-details")

    def on_mount(self) -> None:
        """Start the search."""
        self._show_title()
        self._list()
        self._search()

    def on_resize(self) -> None:
        """Fit the lines to the width."""
        self.call_after_refresh(self._list, keep=True)

    def _show_title(self) -> None:
        count = len(self._rows)
        looking = "looking …" if self._is_searching else f"{count} on this machine"
        self.query_one(Vertical).border_title = Content(f"Base model · {looking}")

    # Finding and reading, in threads.

    @work(thread=True, exclusive=True, group="models-search")
    def _search(self) -> None:
        worker = get_current_worker()
        found: list[FoundModel] = []
        batch: list[FoundModel | UnreadPlace] = []
        begun = time.monotonic()
        try:
            for item in self._catalog.find(self._directory, lambda: worker.is_cancelled):
                batch.append(item)
                if isinstance(item, FoundModel):
                    found.append(item)
                if time.monotonic() - begun >= _GATHERED:
                    self.post_call(self._found, batch)
                    batch, begun = [], time.monotonic()
        except UserError as error:
            batch.append(UnreadPlace(Path(), str(error)))
        except OSError as error:
            # For example, the working directory has been removed.
            batch.append(UnreadPlace(Path(), f"The models on this machine cannot be listed: {error.strerror}."))
        self.post_call(self._found, batch, is_over=True)
        config = valid_part(self._document)
        machine = machine_for(config)
        # The current model first: the cursor is on it.
        for model in sorted(found, key=lambda model: model.base != self._present):
            if worker.is_cancelled:
                return
            self._read(model, config, machine)

    @work(thread=True, exclusive=True, group="models-typed")
    def _read_typed(self, model: FoundModel) -> None:
        config = valid_part(self._document)
        self._read(model, config, machine_for(config))

    def _read(self, model: FoundModel, config: Config, machine: Machine) -> None:
        facts = self._catalog.read(model)
        found = find_fit(facts.architecture, config, machine, rows=self._rows_of_data)
        self.post_call(self._has_read, model, facts, found)

    def _found(self, items: Sequence[FoundModel | UnreadPlace], *, is_over: bool = False) -> None:
        for item in items:
            if isinstance(item, UnreadPlace):
                self._notes.append(item)
            else:
                self._rows.setdefault(item.base, ModelRow(item))
        self._is_searching = not is_over
        self._show_title()
        self._list(keep=True)

    def _has_read(self, model: FoundModel, facts: ModelFacts, fit: Fit) -> None:
        row = self._row_of(model.base)
        if row is None or row.model != model:
            return
        row.facts, row.fit = facts, fit
        for place, entry in enumerate(self._entries):
            if entry.kind == "model" and entry.key == model.base:
                self.options.draw(place, self._prompt(entry))
        self._show_details()

    # The list.

    @property
    def _term(self) -> str:
        return self.line.value.strip()

    def _list(self, *, keep: bool = False) -> None:
        """List the entries that match the typed text; the cursor stays on its entry if ``keep`` is set."""
        before = self._current
        self._entries = self._entries_for(self._term)
        notes = [place for place, entry in enumerate(self._entries) if entry.kind == "note"]
        self.options.fill([self._prompt(entry) for entry in self._entries], notes)
        self.options.highlighted = self._start(before if keep and self._has_moved else None)
        self._show_details()

    def _entries_for(self, term: str) -> list[_Entry]:
        rows = [row for row in self._rows.values() if row.has(term.lower())]
        if self._typed_row is not None and self._typed_row.model.base not in self._rows:
            rows.insert(0, self._typed_row)
        entries = [_Entry("model", row.model.base) for row in rows[:LISTED]]
        if len(rows) > LISTED:
            entries.append(_note(f"… {len(rows) - LISTED} more; type a part of the name"))
        known = {row.model.base for row in rows}
        # The model of the configuration is offered without typing, once the search has not found it.
        hub = fetchable(term or ("" if self._is_searching else self._present))
        if hub is not None and hub.repository not in known and str(hub) not in known:
            entries.insert(0 if not term else len(entries), _Entry("fetch", str(hub)))
        if term and term not in known and self._typed_row is None:
            entries.append(_Entry("typed", term, self._as_typed(term)))
        if not term:
            entries += [_note(one_line(note.sentence, 200)) for note in self._notes]
            if not self._is_searching:
                entries.append(_note("fetch from the hub: type owner/name"))
        return entries

    def _as_typed(self, term: str) -> Content:
        near = most_like(term, [row.model.name for row in self._rows.values()])
        guess = f"; did you mean {one_line(near, 60)}?" if near is not None else ""
        return Content.assemble("  ", (one_line(term, 60), ""), (f"  as typed; no such model is here{guess}", "$muted"))

    def _start(self, before: _Entry | None) -> int | None:
        """Index of the cursor in a new list: its previous entry, else the current choice, else the first."""
        choosable = [place for place, entry in enumerate(self._entries) if entry.kind != "note"]
        if before is not None:
            again = [place for place in choosable if self._entries[place].key == before.key]
            if again:
                return again[0]
        if not self._term:
            present = [place for place in choosable if self._is_present(self._entries[place].key)]
            if present:
                return present[0]
        return choosable[0] if choosable else None

    def _is_present(self, key: str) -> bool:
        return key == self._present or (
            os.path.isabs(key) and key == os.path.normpath(self._directory / os.path.expanduser(self._present))
        )

    def _row_of(self, key: str) -> ModelRow | None:
        if (row := self._rows.get(key)) is not None:
            return row
        typed = self._typed_row
        return typed if typed is not None and typed.model.base == key else None

    def _prompt(self, entry: _Entry) -> Content:
        row = self._row_of(entry.key) if entry.kind == "model" else None
        width = max(self.options.scrollable_content_region.width - 2, 40)
        if row is not None:
            return model_line(row, width, is_present=self._is_present(entry.key))
        if entry.kind == "fetch":
            return hub_line(entry.key.removeprefix("hf://"), width)
        return entry.prompt or Content(" ")

    @property
    def _current(self) -> _Entry | None:
        place = self.options.highlighted
        return self._entries[place] if place is not None and place < len(self._entries) else None

    @on(OptionList.OptionHighlighted)
    def _highlighted(self, message: OptionList.OptionHighlighted) -> None:
        message.stop()
        self._show_details()

    def _show_details(self) -> None:
        entry, text = self._current, Content(" ")
        if entry is not None and entry.kind == "model" and (row := self._row_of(entry.key)) is not None:
            text = model_details(row, max(self.options.size.width, 40))
        elif entry is not None and entry.kind == "fetch":
            text = Content.assemble(
                f"It is not on this machine. {hub_host()} is asked how large it is; then you decide.",
                "\n",
                ("Configuration, tokenizer and safetensors come, as with ", "$muted"),
                (f"'localtune-tui fetch {one_line(entry.key, 200)}'.", "$muted"),
            )
        elif entry is not None and entry.kind == "typed":
            text = Content.styled(
                "No model of this name or path is here. The configuration can name it anyway; a run cannot start "
                "before it is here.",
                "$muted",
            )
        self.query_one("#model-details", TextBlock).show(text)

    # Keys.

    @on(SafeInput.Changed)
    def _typed(self, message: SafeInput.Changed) -> None:
        message.stop()
        self._has_moved = False
        found = typed_model(self._term, self._directory) if _is_path(self._term) else None
        if found is None:
            self._typed_row = None
        elif self._typed_row is None or self._typed_row.model != found:
            self._typed_row = ModelRow(found)
            if found.base not in self._rows:
                self._read_typed(found)
        self._list()

    def action_move(self, rows: int) -> None:
        """Move the cursor, which then stays on its entry while more models are found."""
        self._has_moved = True
        super().action_move(rows)

    def action_complete(self) -> None:
        """Complete the typed text to the common prefix of matching names or paths."""
        line, typed = self.line, self.line.value
        names = {name for row in self._rows.values() for name in (row.model.name, row.model.base)}
        candidates = sorted(name for name in names if name.lower().startswith(typed.lower()) and typed)
        if not candidates and _is_path(typed):
            candidates = complete_path(typed, self._directory, (".gguf",))
        if candidates and len(common := common_prefix(candidates)) >= len(typed):
            line.value = common
            line.cursor_position = len(common)

    # Choosing.

    def take(self) -> None:
        """Choose the entry under the cursor, or offer its download."""
        entry = self._current
        if entry is None or entry.kind == "note":
            return
        if entry.kind == "fetch":
            self._fetch(entry.key)
        elif entry.kind == "typed":
            self.dismiss(entry.key)
        elif (row := self._row_of(entry.key)) is not None:
            if row.is_fetched_anew:
                self._fetch(row.model.base)
            else:
                self.dismiss(self._value(row.model))

    def _value(self, model: FoundModel) -> str | Path:
        """The value for ``model.base``: the name, unless it resolves to another model here."""
        if not model.has_name:
            return Path(model.base)
        if model.source == "starter" or find_model(model.base, self._directory) == model.path:
            return model.base
        return model.path

    def _fetch(self, text: str) -> None:
        hub = fetchable(text)
        if hub is None:
            return
        base = hub.repository if not hub.revision else str(hub)

        def take() -> None:
            # It may have been left meanwhile: the model is in its list then.
            if self.is_attached:
                self.dismiss(base)

        why = f"{hub} is not whole on this machine." if base in self._rows else f"{hub} is not on this machine."
        shell_of(self).jobs.open(FetchPage(hub, why, take, asks_size=True))


def _note(text: str) -> _Entry:
    return _Entry("note", text, Content.styled(f"    {text}", "not bold $muted"))


def _is_path(text: str) -> bool:
    return os.sep in text or text.startswith(("~", "."))
