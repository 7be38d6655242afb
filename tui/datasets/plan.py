"""Data plan: the part of the configuration that determines how rows are read and tokenized.

The shown rows, their tokens and the analysis of the file follow the same plan, and so match the training of a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from core.analysis.result import AnalysisRequest, request_for
from core.config.choices import Overlong
from core.config.document import ConfigDocument
from core.config.schema import Config, options
from core.data.registries.resolve import single_source
from core.data.registries.source import DataSource
from core.errors import UserError
from core.hub_uri import absolute
from core.models.find import STARTER_NAME, find_model, is_model_here, missing_model
from core.paths import user_path, working_directory
from core.template.builtin import template_source
from core.template.settings import MaskSettings, mask_settings
from tui.files import entry_text, follow_links, is_among


@dataclass(frozen=True)
class Reading:
    """Reading of a file's rows; ignored by entries of a registry, which declare their own.

    Args:
        format: The value of ``data.format``.
        columns: The pairs of ``data.columns``; None if no columns are named.
    """

    format: str = "auto"
    columns: tuple[tuple[str, str], ...] | None = None

    @property
    def column_names(self) -> dict[str, str] | None:
        """``data.columns`` as a dictionary; None if no columns are named."""
        return None if self.columns is None else dict(self.columns)

    def source(self, path: Path) -> DataSource:
        """The data source for a file, directory or entry.

        Raises:
            UserError: If a registry has no such entry, or the columns do not form rows to train on.
        """
        return single_source(entry_text(path), self.format, self.column_names)


@dataclass(frozen=True)
class ReadPlan:
    """Plan for reading rows, with absolute paths."""

    wanted: AnalysisRequest
    """The analysis request for all configured files, without tokens; its seed is set only if rows are sampled."""

    @property
    def overlong(self) -> Overlong:
        """The treatment of overlong rows."""
        return self.wanted.overlong

    def of(self, path: Path) -> Reading:
        """The reading of a file.

        ``data.format`` and ``data.columns`` apply to configured files, and to any file if no training file is
        configured. The format of other files is detected.
        """
        wanted = self.wanted
        if not wanted.train or is_among(wanted.train, path) or is_among(wanted.eval, path):
            return Reading(wanted.format, None if wanted.columns is None else tuple(wanted.columns.items()))
        return Reading()

    def held_out(self, path: Path) -> tuple[str, ...]:
        """The held-out files if a file is trained on; else none."""
        return self.wanted.eval if is_among(self.wanted.train, path) else ()

    def request(self, path: Path) -> AnalysisRequest:
        """The analysis request for a file, without tokens.

        Held-out and weighted rows are drawn from all training files together, so they are unknown for one of several.
        """
        reading, wanted = self.of(path), self.wanted
        if len(wanted.train) != 1 or follow_links(path) != follow_links(wanted.train[0]):
            exclude = wanted.exclude if is_among(wanted.train, path) else ()
            wanted = replace(wanted, weights=None, eval_share=0.0, seed=0, exclude=exclude, is_part=bool(exclude))
        return replace(
            wanted,
            train=(entry_text(path),),
            eval=self.held_out(path),
            format=reading.format,
            columns=reading.column_names,
            # The objective is chosen with the rows: it judges those of the configuration alone.
            objective=wanted.objective if is_among((*wanted.train, *wanted.eval), path) else None,
        )


@dataclass(frozen=True)
class TokenPlan:
    """Plan for tokenizing rows; invalid options are replaced by their defaults."""

    base: str
    directory: Path
    """The base directory of relative paths."""
    settings: MaskSettings
    """Mask settings without model and template."""
    template_name: str | None = None
    template_file: Path | None = None
    template_stamp: int = 0
    """Modification time of the template file in nanoseconds, so that an edited template changes the plan."""

    @property
    def max_length(self) -> int:
        """The maximum length of a row in tokens."""
        return self.settings.max_length or 0

    def template(self) -> str | None:
        """The configured template; None for the model's own.

        Raises:
            UserError: If it cannot be read.
        """
        return template_source(str(self.template_file) if self.template_file else None, self.template_name)

    def mask_settings(self) -> MaskSettings:
        """The mask settings with model and template.

        Raises:
            UserError: If the model is not ready, or the template cannot be read.
        """
        return replace(self.settings, model=str(find_base(self.base, self.directory)), template=self.template())


@dataclass(frozen=True)
class DataPlan:
    """Plan for reading and tokenizing rows; equal plans give equal results for a file."""

    reading: ReadPlan
    tokens: TokenPlan

    def request(self, path: Path, *, with_tokens: bool) -> AnalysisRequest:
        """The analysis request for a file; equal requests give equal results.

        Args:
            path: The file.
            with_tokens: Whether to count tokens, which needs the model.

        Raises:
            UserError: If the model or the template is missing.
        """
        return replace(self.reading.request(path), masks=self.tokens.mask_settings() if with_tokens else None)


def plan_data(document: ConfigDocument) -> DataPlan:
    """The data plan of a configuration, which may be invalid or empty."""
    directory = working_directory() / document.path.parent if document.path is not None else working_directory()
    config = _valid_part(document)
    request = request_for(config, model=None)
    columns = document.get("data.columns")
    reading = replace(
        request,
        train=_entries(document, "data.train", directory),
        eval=_entries(document, "data.eval", directory),
        columns={str(key): str(name) for key, name in columns.items()} if isinstance(columns, Mapping) else None,
        seed=request.seed if request.eval_share or request.weights else 0,
    )
    file = directory / user_path(config.template.file) if config.template.file else None
    tokens = TokenPlan(
        config.model.base, directory, mask_settings(config, ""), config.template.name, file, _stamp(file)
    )
    return DataPlan(ReadPlan(reading), tokens)


def plan_tokens(document: ConfigDocument) -> TokenPlan:
    """The token plan of a configuration, which may be invalid or empty."""
    return plan_data(document).tokens


def _valid_part(document: ConfigDocument) -> Config:
    """The configuration with invalid values replaced by defaults, without data files and columns.

    Errors in the columns are shown next to the rows.
    """
    skipped = {"data.train", "data.eval", "data.columns"}
    while True:
        content: dict[str, dict[str, object]] = {"data": {"train": "none"}}
        for option in options():
            value = document.get(option.name)
            if value is not None and option.name not in skipped:
                content.setdefault(option.section, {})[option.key] = value
        try:
            return Config.model_validate(content)
        except ValidationError as error:
            wrong = {".".join(map(str, item["loc"][:2])) for item in error.errors()}
            if wrong <= skipped:
                raise
            skipped |= wrong


def _entries(document: ConfigDocument, name: str, directory: Path) -> tuple[str, ...]:
    value = document.get(name)
    items = value if isinstance(value, list) else [value]
    return tuple(absolute(item, directory) for item in items if isinstance(item, str) and item)


def _stamp(file: Path | None) -> int:
    try:
        return file.stat().st_mtime_ns if file is not None else 0
    except (OSError, ValueError):
        return 0


def find_base(base: str, directory: Path) -> Path:
    """The directory of a base model.

    Raises:
        UserError: If it is not on this machine, with a hint how to get it.
    """
    if (found := find_model(base, directory)) is not None:
        return found
    missing = missing_model(base, directory)
    hint = missing.hint
    if base == STARTER_NAME:
        hint = "The sample run in the Train pane prepares it, as 'localtune-tui demo' does."
    elif not is_model_here(base, directory):
        hint = f"Choose or download one at model.base in the Config pane. {hint}"
    raise UserError(f"There are no tokens to show. {missing.message}", hint)
