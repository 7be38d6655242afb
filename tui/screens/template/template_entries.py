"""The chat templates to choose from, and rows rendered by them, without any widget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from core.data.conversation import Example, RowError
from core.errors import UserError
from core.template.builtin import NAMED_TEMPLATES, NamedTemplate, template_source
from core.template.preview import SAMPLE, Preview
from core.template.sandboxed import TokenizerFacts, preview, read_tokenizer
from core.template.settings import MaskSettings
from core.text import one_line
from tui.datasets.plan import TokenPlan, find_base
from tui.datasets.view import DatasetView

OWN, FILE = "own", "file"


@dataclass(frozen=True)
class TemplateEntry:
    """A template to choose."""

    id: str
    """The id: ``own``, ``file``, or the name of a named template."""
    title: str
    about: str
    """A description in a few words: its origin, or its look."""
    source: str | None
    """The Jinja template; None where there is none."""
    problem: str = ""
    """The reason why there is none."""
    path: Path | None = None
    """The file it is in, of ``file``."""

    @property
    def values(self) -> Mapping[str, str | Path | None]:
        """The options of the configuration when it is in force."""
        named = self.id if self.id not in (OWN, FILE) else None
        return {"template.name": named, "template.file": self.path if self.id == FILE else None}

    @property
    def file_name(self) -> str:
        """The suggested file name of a copy."""
        return f"{'template' if self.id == OWN else self.id}.jinja"


@dataclass(frozen=True)
class TemplateSet:
    """The templates to choose from, and their model."""

    entries: tuple[TemplateEntry, ...]
    in_force: str | None
    """The entry that the configuration means; None where it names two at once."""
    settings: MaskSettings | None
    """Mask settings; None where the model's tokenizer is not available."""
    error: UserError | None = None
    """The reason why it is not."""

    def entry(self, id: str) -> TemplateEntry | None:  # noqa: A002
        """The entry of an id."""
        return next((entry for entry in self.entries if entry.id == id), None)


def load_templates(plan: TokenPlan) -> TemplateSet:
    """Load every template that a configuration can choose; reads files, so call it from a thread.

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
    """The id of the template that a configuration means; None where it names two."""
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
    """The conversation that templates are previewed with."""

    example: Example
    index: int | None = None
    """The number of its row; None for a made-up conversation."""
    reason: str = ""
    """The reason why it is made up."""


def row_for(view: DatasetView | None, index: int) -> ShownRow:
    """A row of a dataset as a conversation, else a made-up one with the reason; reads the file."""
    if view is None:
        return ShownRow(SAMPLE, reason="no data is open")
    try:
        example = view.example(index)
    except (RowError, UserError) as error:
        reason = error.message if isinstance(error, RowError) else str(error)
        return ShownRow(SAMPLE, reason=f"row {index + 1} cannot be used: {reason}")
    if not example.messages and not example.chosen:
        return ShownRow(SAMPLE, reason=f"row {index + 1} is no conversation and needs no template")
    return ShownRow(example, index)


def preview_entry(entry: TemplateEntry, row: ShownRow, settings: MaskSettings | None) -> Preview:
    """The preview of a row by a template; ``settings`` as in :class:`TemplateSet`."""
    if entry.source is None:
        return Preview(problem=entry.problem)
    try:
        return preview(entry.source, row.example, settings)
    except UserError as error:
        return Preview(problem=error.message)
