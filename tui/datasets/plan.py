"""What of the configuration decides how rows are read, become tokens and are counted.

:func:`plan_data` makes one plan of a configuration. The rows shown, their tokens and the analysis of the whole file all
follow it, so that what is seen is what a run would learn.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.analysis.result import AnalysisRequest
from core.config.document import ConfigDocument
from core.config.schema import find_option
from core.data.registries.resolve import single_source
from core.data.registries.source import DataSource
from core.errors import UserError
from core.hub_uri import absolute
from core.models.find import STARTER_NAME, find_model, missing_model
from core.paths import user_path
from core.template.builtin import template_source
from core.template.settings import MaskSettings, supervised_turns
from tui.data_paths import entry_text, follow_links


@dataclass(frozen=True)
class Reading:
    """How the rows of one file are read; an entry of a registry says its own and does not heed it.

    Args:
        format: As ``data.format``.
        columns: As ``data.columns``, as pairs; None where no columns are named.
    """

    format: str = "auto"
    columns: tuple[tuple[str, str], ...] | None = None

    @property
    def column_names(self) -> dict[str, str] | None:
        """The columns by their part."""
        return None if self.columns is None else dict(self.columns)

    def source(self, path: Path) -> DataSource:
        """A file, directory or entry, read in this way.

        Raises:
            UserError: If a registry has no such entry, or the columns make no row to learn from.
        """
        return single_source(entry_text(path), self.format, self.column_names)


@dataclass(frozen=True)
class ReadPlan:
    """How the configuration has rows read and counted; paths are absolute."""

    train: tuple[str, ...] = ()
    eval: tuple[str, ...] = ()
    format: str = "auto"
    columns: tuple[tuple[str, str], ...] | None = None
    overlong: Any = "drop"
    objective: Any = "sft"
    weights: tuple[float, ...] | None = None
    eval_share: float = 0.0
    seed: int = 0
    """Which rows are held out or left out; 0 where none is."""

    def of(self, path: Path) -> Reading:
        """How one file is read.

        ``data.format`` and ``data.columns`` are for the files that the configuration names, and for any while it names
        none to train on; another file, opened to be looked at, is recognized by itself.
        """
        if not self.train or _names(self.train, path) or _names(self.eval, path):
            return Reading(self.format, self.columns)
        return Reading()

    def held_out(self, path: Path) -> tuple[str, ...]:
        """What is held out while a file is trained on."""
        return self.eval if _names(self.train, path) else ()

    def sampling(self, path: Path) -> dict[str, Any]:
        """What is held out of a file and left out of it, as :class:`AnalysisRequest` takes it.

        It is decided over all that is trained on, so for a file that is a part of it nothing can be said.
        """
        if len(self.train) != 1 or follow_links(path) != follow_links(self.train[0]):
            return {}
        return {"weights": self.weights, "eval_share": self.eval_share, "seed": self.seed}


@dataclass(frozen=True)
class TokenPlan:
    """The options behind the tokens of a row; what is invalid in the file has its default here."""

    base: str
    directory: Path
    """What relative paths in the configuration are relative to."""
    template_name: str | None = None
    template_file: Path | None = None
    template_stamp: int = 0
    """When that file was last changed, in nanoseconds: a plan with an edited template is another one."""
    supervise: Any = "assistant"
    keep_special: bool = False
    end_answers: bool = False
    max_length: int = 2048

    def template(self) -> str | None:
        """The template that replaces the model's own.

        Raises:
            UserError: If it cannot be read.
        """
        return template_source(str(self.template_file) if self.template_file else None, self.template_name)

    def mask_settings(self) -> MaskSettings:
        """How rows become tokens.

        Raises:
            UserError: If the model is not ready, or the template cannot be read.
        """
        return MaskSettings(
            str(find_base(self.base, self.directory)),
            self.template(),
            self.supervise,
            self.keep_special,
            self.end_answers,
            self.max_length,
        )


@dataclass(frozen=True)
class DataPlan:
    """How rows are read and become tokens. Two plans are equal when nothing that is shown of a file could differ."""

    reading: ReadPlan
    tokens: TokenPlan

    def request(self, path: Path, *, with_tokens: bool) -> AnalysisRequest:
        """What an analysis of one file looks at, and how; equal requests have equal answers.

        Args:
            path: The file.
            with_tokens: Whether the model is ready; its tokens are counted then.

        Raises:
            UserError: If model or template have gone meanwhile.
        """
        reading, tokens = self.reading.of(path), self.tokens
        request = AnalysisRequest(
            train=(entry_text(path),),
            eval=self.reading.held_out(path),
            format=reading.format,
            columns=reading.column_names,
            overlong=self.reading.overlong,
            objective=self.reading.objective,
            **self.reading.sampling(path),
        )
        if not with_tokens:
            return request
        return replace(
            request,
            model=str(find_base(tokens.base, tokens.directory)),
            template=tokens.template(),
            supervise=tokens.supervise,
            allow_special=tokens.keep_special,
            end_answers=tokens.end_answers,
            max_length=tokens.max_length,
        )


def plan_data(document: ConfigDocument) -> DataPlan:
    """The plan of a configuration, which may be invalid or empty."""
    return DataPlan(plan_reading(document), plan_tokens(document))


def _listed(value: Any) -> list[Any]:
    """One value or several, as a list; what is neither in the file is no value."""
    return value if isinstance(value, list) else [value]


def _stamp(file: Path | None) -> int:
    try:
        return file.stat().st_mtime_ns if file is not None else 0
    except (OSError, ValueError):
        return 0


def plan_reading(document: ConfigDocument) -> ReadPlan:
    """What a configuration says about reading."""
    directory = _directory(document)

    def entries(name: str) -> tuple[str, ...]:
        value = document.get(name)
        items = value if isinstance(value, list) else [value]
        return tuple(absolute(item, directory) for item in items if isinstance(item, str) and item)

    columns, weights = document.get("data.columns"), document.get("data.weights")
    numbers = weights if isinstance(weights, list) and all(isinstance(item, int | float) for item in weights) else None
    eval_share = float(_value(document, "data.eval_share", (int, float)))
    return ReadPlan(
        train=entries("data.train"),
        eval=entries("data.eval"),
        format=_value(document, "data.format", str),
        columns=tuple((str(key), str(item)) for key, item in columns.items()) if isinstance(columns, Mapping) else None,
        overlong=_value(document, "data.overlong", str),
        objective=_value(document, "train.objective", str),
        weights=None if numbers is None else tuple(float(item) for item in numbers),
        eval_share=eval_share,
        seed=int(_value(document, "train.seed", int)) if eval_share or numbers else 0,
    )


def plan_tokens(document: ConfigDocument) -> TokenPlan:
    """What a configuration says about tokens."""
    directory = _directory(document)
    file = _value(document, "template.file", str)
    template_file = directory / user_path(file) if file else None
    objective = _value(document, "train.objective", str)
    return TokenPlan(
        base=_value(document, "model.base", str),
        directory=directory,
        template_name=_value(document, "template.name", str),
        template_file=template_file,
        template_stamp=_stamp(template_file),
        supervise=supervised_turns(objective, _value(document, "data.supervise", str)),
        keep_special=_value(document, "data.special_tokens", str) == "keep",
        end_answers="stop_untrained" in _listed(document.get("data.allow")),
        max_length=_value(document, "train.max_length", int),
    )


def _directory(document: ConfigDocument) -> Path:
    return document.path.parent.absolute() if document.path is not None else Path.cwd()


def _value(document: ConfigDocument, name: str, wanted: type | tuple[type, ...]) -> Any:
    option = find_option(name)
    value = document.get(name)
    fits = isinstance(value, wanted) and not isinstance(value, bool)
    if fits and option is not None and option.choices and isinstance(value, str):
        fits = value in option.choices
    return value if fits else option.default if option is not None else None


def _names(entries: Iterable[str], path: Path) -> bool:
    """Whether one of the entries is a path, or the directory that it is in; links are followed."""
    wanted = follow_links(path)
    for entry in map(follow_links, entries):
        if wanted == entry:
            return True
        directory = entry if os.path.isdir(entry) else entry.rpartition("#")[0]
        if directory and wanted.startswith(directory + os.sep):
            return True
    return False


def find_base(base: str, directory: Path) -> Path:
    """The directory of a base model, if it is ready.

    Raises:
        UserError: If there is none; the hint says what makes it ready.
    """
    if (found := find_model(base, directory)) is not None:
        return found
    missing = missing_model(base, directory)
    hint = (
        "Press 3, then d: the sample run prepares it; or run 'localtune-tui demo'."
        if base == STARTER_NAME
        else missing.hint
    )
    raise UserError(f"There are no tokens to show. {missing.message}", hint)
