"""Available chat templates, rows rendered by them, and their list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from textual.content import Content
from textual.widgets.option_list import Option

from core.data.conversation import Example, RowError
from core.errors import UserError
from core.template.builtin import NAMED_TEMPLATES, NamedTemplate, template_source
from core.template.preview import SAMPLE, Preview
from core.template.sandboxed import TokenizerFacts, preview, read_tokenizer
from core.template.settings import MaskSettings
from core.text import one_line
from core.units import format_count
from tui.datasets.plan import TokenPlan, find_base
from tui.datasets.view import DatasetView
from tui.widgets.lists.choice_list import ChoiceList
from tui.widgets.lists.mask_view import TokenCell, TokenPart
from tui.widgets.strips import fit

OWN, FILE = "own", "file"


@dataclass(frozen=True)
class TemplateEntry:
    """A template to choose."""

    id: str
    """The id: ``own``, ``file``, or the name of a named template."""
    title: str
    about: str
    """A few words on its origin or look."""
    source: str | None
    """The Jinja template; None for none."""
    problem: str = ""
    """The reason why there is none."""
    path: Path | None = None
    """The path of the entry ``file``."""

    @property
    def values(self) -> Mapping[str, str | Path | None]:
        """The options that put it in force."""
        named = self.id if self.id not in (OWN, FILE) else None
        return {"template.name": named, "template.file": self.path if self.id == FILE else None}

    @property
    def file_name(self) -> str:
        """The suggested file name of a copy."""
        return f"{'template' if self.id == OWN else self.id}.jinja"


@dataclass(frozen=True)
class TemplateSet:
    """Available templates and their model."""

    entries: tuple[TemplateEntry, ...]
    in_force: str | None
    """The entry named by the configuration; None if it names two."""
    settings: MaskSettings | None
    """Mask settings; None if the model's tokenizer is not available."""
    error: UserError | None = None
    """The reason why the tokenizer is not available."""

    def entry(self, id: str) -> TemplateEntry | None:  # noqa: A002
        """The entry of an id."""
        return next((entry for entry in self.entries if entry.id == id), None)


def load_templates(plan: TokenPlan) -> TemplateSet:
    """Load all templates that a configuration can name; reads files, so call it from a thread.

    Args:
        plan: The options of the configuration.
    """
    error: UserError | None = None
    tokenizer: TokenizerFacts | None = None
    settings: MaskSettings | None = None
    try:
        base = find_base(plan.base, plan.directory)
        stops = [text for template in NAMED_TEMPLATES.values() for text in template.stops]
        tokenizer = read_tokenizer(base, stops)
        settings = replace(plan.settings, model=str(base))
    except UserError as found:
        error = found
    entries = [_own(plan, tokenizer)]
    if plan.template_file is not None:
        entries.append(file_entry(plan.template_file))
    entries += [_named(template, tokenizer) for template in NAMED_TEMPLATES.values()]
    return TemplateSet(tuple(entries), in_force(plan), settings, error)


def in_force(plan: TokenPlan) -> str | None:
    """The id of the template named by a configuration; None if it names two."""
    if plan.template_file is not None:
        return FILE if plan.template_name is None else None
    return plan.template_name or OWN


def file_entry(path: Path, source: str | None = None) -> TemplateEntry:
    """A template in a file, read unless its source is given."""
    shown = one_line(path.name, 60)
    if source is not None:
        return TemplateEntry(FILE, shown, str(path), source, path=path)
    try:
        return TemplateEntry(FILE, shown, str(path), template_source(str(path), None), path=path)
    except UserError as error:
        return TemplateEntry(FILE, shown, str(path), None, str(error), path=path)


def _own(plan: TokenPlan, tokenizer: TokenizerFacts | None) -> TemplateEntry:
    model = one_line(Path(plan.base).name or plan.base, 60)
    source = tokenizer.chat_template if tokenizer is not None else None
    problem = ""
    if tokenizer is None:
        problem = "The model is not at hand, so its template is not known."
    elif source is None:
        problem = "The model has no chat template of its own. Choose one of the others."
    return TemplateEntry(OWN, "model's own", f"from {model}", source, problem)


def _named(template: NamedTemplate, tokenizer: TokenizerFacts | None) -> TemplateEntry:
    missing = []
    if tokenizer is not None:
        missing = [text for text in template.stops if text in tokenizer.missing]
    lacks = f"; the model has no token {missing[0]}" if missing else ""
    return TemplateEntry(template.name, template.name, template.about + lacks, template.source)


@dataclass(frozen=True)
class ShownRow:
    """The conversation in the previews."""

    example: Example
    index: int | None = None
    """The index of its row; None for the built-in example."""
    reason: str = ""
    """The reason for the built-in example."""


def row_for(view: DatasetView | None, index: int) -> ShownRow:
    """A row of a dataset as a conversation, or the built-in example with the reason; reads the file."""
    if view is None:
        return ShownRow(SAMPLE, reason="no data is open")
    try:
        example = view.example(index)
    except (RowError, UserError) as error:
        reason = error.message if isinstance(error, RowError) else str(error)
        return ShownRow(SAMPLE, reason=f"row {index + 1} cannot be used: {reason}")
    if not example.messages and not example.chosen:
        return ShownRow(SAMPLE, reason=f"row {index + 1} is not a conversation and needs no template")
    return ShownRow(example, index)


def preview_entry(entry: TemplateEntry, row: ShownRow, settings: MaskSettings | None) -> Preview:
    """The preview of a row by a template; ``settings`` as in :class:`TemplateSet`."""
    if entry.source is None:
        return Preview(problem=entry.problem)
    try:
        return preview(entry.source, row.example, settings)
    except UserError as error:
        return Preview(problem=error.message)


_NARROW, _WIDE = 18, 44


class TemplateList(ChoiceList):
    """List of templates: a mark if in force, the name, a mark if it fails on the row, and the look if there is room."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.is_wide = False
        self._templates: TemplateSet | None = None
        self._previews: Mapping[str, Preview] = {}
        self._pointed_at: TemplateEntry | None = None

    @property
    def current(self) -> TemplateEntry | None:
        """The template under the cursor."""
        place = self.highlighted
        return self._templates.entries[place] if self._templates is not None and place is not None else None

    def show(self, templates: TemplateSet, previews: Mapping[str, Preview], at: str | None = None) -> None:
        """Show the templates; the cursor goes to an entry, or stays.

        Args:
            templates: The templates to choose from.
            previews: Previews of the row by id, as far as they are known.
            at: The id of the entry.
        """
        self._templates, self._previews = templates, previews
        place = self.highlighted or 0
        if at is not None:
            place = next((place for place, entry in enumerate(templates.entries) if entry.id == at), 0)
        self.clear_options()
        self.add_options([Option(self._prompt(entry)) for entry in templates.entries])
        self.highlighted = place

    def show_anew(self, *entries: TemplateEntry | None) -> None:
        """Update the lines of some entries."""
        for place, entry in enumerate(self._templates.entries if self._templates is not None else ()):
            if entry in entries:
                self.replace_option_prompt_at_index(place, self._prompt(entry))

    def mark_cursor(self) -> None:
        """Move the pointer, which marks the cursor on terminals without color."""
        before, self._pointed_at = self._pointed_at, self.current
        self.show_anew(before, self._pointed_at)

    def _prompt(self, entry: TemplateEntry) -> Content:
        width = (_WIDE if self.is_wide else _NARROW) - 6
        preview = self._previews.get(entry.id)
        is_refused = preview is not None and bool(preview.problem)
        mark = "●" if self._templates is not None and self._templates.in_force == entry.id else " "
        pointer = "▸" if entry is self._pointed_at else " "
        line = Content.assemble(
            (f"{pointer}{mark} ", "$primary bold"),
            (fit(entry.title, width), "$muted" if is_refused else "$foreground"),
            (" ✗" if is_refused else "  ", "$limit bold"),
        )
        if not self.is_wide:
            return line
        return Content.assemble(line, "\n   ", (fit(one_line(entry.about, 200), width), "$muted"))


def head(templates: TemplateSet, current: TemplateEntry | None) -> Content:
    """Heading: the template in force with its origin, and a description of the template under the cursor."""
    entry = templates.entry(templates.in_force) if templates.in_force is not None else None
    if entry is None:
        text = Content.styled("✗ template.name and template.file are both set; choose one template.", "$limit")
    else:
        by = {OWN: entry.about, FILE: "by template.file"}.get(entry.id, "by template.name")
        text = Content.assemble(("in force: ", "$muted"), (entry.title, "bold"), (f", {by}", "$muted"))
    if current is not None:
        about = "The template that comes with the model." if current.id == OWN else current.about
        text = Content.assemble(text, "\n", (one_line(about, 300), "$muted"))
    if templates.error is not None:
        text = Content.assemble(text, "\n", (one_line(f"! {templates.error}", 300), "$near"))
    return text


def token_parts(preview: Preview, limit: int) -> list[TokenPart]:
    """Parts of a row for display, token by token.

    Args:
        preview: The row, rendered by a template.
        limit: ``train.max_length``, the truncation length in tokens.
    """
    label = f"train.max_length = {format_count(limit)}"
    return [
        TokenPart(
            [TokenCell(token.text, token.learned, token.special, token.prompt) for token in part.tokens],
            part.cut,
            label,
            f"{part.answer} answer" if part.answer else "",
        )
        for part in preview.rows
    ]


def problem(preview: Preview) -> Content:
    """The reason why a row has no preview; empty if it has one."""
    if not preview.problem:
        return Content("")
    known = preview.line is not None and f"line {preview.line}" not in preview.problem
    place = f"Line {preview.line}: " if known else ""
    return Content.styled(one_line(f"✗ {place}{preview.problem}", 500), "$limit")
