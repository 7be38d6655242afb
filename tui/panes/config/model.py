"""Model of the edited configuration: its values, its base model and their checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.analysis.division import held_out_count
from core.config.derived import used_by
from core.config.document import ConfigDocument, parse_value
from core.config.facts import Facts
from core.config.schema import Option, find_option, options
from core.errors import UserError
from core.hub.store import is_fetched
from core.hub_uri import is_hub_entry
from core.models.find import close_name, is_model_here, model_entry
from core.paths import working_directory
from core.presets.library import Preset
from core.presets.provenance import find_provenance
from core.runs.catalog.earlier import Origin, run_name
from core.text import one_line
from core.units import format_count
from tui.datasets.summary import counted
from tui.files import entry_path, entry_text
from tui.widgets.forms.option_field import format_value


@dataclass(frozen=True)
class NamedBase:
    """Base model as named in a configuration.

    Args:
        name: The value of ``model.base``.
        directory: The base directory of a relative path.
    """

    name: str
    directory: Path


@dataclass(frozen=True)
class BaseFinding:
    """Result of checking a base model; an empty ``sentence`` means no problem."""

    base: NamedBase
    sentence: str = ""
    is_missing: bool = False
    """True if the model is not on this machine."""


def find_missing(base: NamedBase, key: str) -> BaseFinding | None:
    """The problem that a base model is not on this machine, by its name alone; None if it is there.

    Args:
        base: The model.
        key: The key that opens the list of models.
    """
    if is_model_here(base.name, base.directory):
        return None
    entry, near = model_entry(base.name), close_name(base.name)
    guess = f" (did you mean {one_line(near, 60)}?)" if near is not None else ""
    way = f"{key} picks one"
    if entry is not None:
        way += f" or fetches it, as 'localtune-tui fetch {entry}' does"
    return BaseFinding(base, f"There is no model {one_line(base.name, 100)} here{guess}; {way}.", is_missing=True)


def check_base(base: NamedBase, key: str) -> BaseFinding:
    """Look up a base model, and check its ``config.json`` in a helper process; blocks.

    Args:
        base: The model.
        key: The key that opens the list of models.
    """
    if (missing := find_missing(base, key)) is not None:
        return missing
    from core.models.sandboxed import check_base as check

    try:
        check(base.name, base.directory)
    except UserError as error:
        # Name the model as the configuration does, not by its directory.
        return BaseFinding(base, str(error).replace(str(base.directory.absolute() / base.name), base.name))
    except (OSError, ValueError):
        # A lookup that fails leaves the fact unknown; the run reports a missing model.
        pass
    return BaseFinding(base)


#: Options with the base model and the training data.
BASE, TRAIN = "model.base", "data.train"
#: Largest plausible number.
_GREATEST = 1e15
#: Options whose values are paths of data files.
DATA_PATHS = (TRAIN, "data.eval")


@dataclass(frozen=True)
class Findings:
    """Problems of a configuration, and warnings about likely mistakes: option to sentence, in form order."""

    problems: Mapping[str, str]
    warnings: Mapping[str, str]


class ConfigModel:
    """Document with the checks of the form.

    Args:
        document: The document; ``save`` replaces the file at its path, if it has one.
        origin: The run that it was copied from; None for none.
        begun: The initial text, if that needs no saving.
    """

    def __init__(self, document: ConfigDocument, origin: Origin | None = None, *, begun: str = "") -> None:
        self.document = document
        self.origin = origin
        self._begun = begun
        self.options: tuple[Option, ...] = tuple(options())

    @property
    def base(self) -> Path:
        """The base directory of its relative paths."""
        return self.document.path.parent if self.document.path is not None else working_directory()

    @property
    def saved_text(self) -> str:
        """The text that needs no saving: of its file, or of the run that it was copied from."""
        return self.document.saved_text if self.document.path is not None else self._begun

    @property
    def is_edited(self) -> bool:
        """True if it has unsaved edits."""
        return self.document.dumps() != self.saved_text

    def set_text(self, option: Option, text: str) -> None:
        """Set an option to typed text; empty text means the default.

        Text that cannot be parsed as the option's type is stored unchanged, and becomes a problem.

        Raises:
            UserError: If the option's section is not a table in this file.
        """
        if not text.strip():
            value: Any = None
        else:
            try:
                value = parse_value(option, text)
            except UserError:
                value = text
        self.document.set(option.name, value, text)

    def baseline(self, option: Option, preset: Preset | None) -> Any:
        """The baseline of an option: the value of the preset in force, else its default."""
        return option.default if preset is None else preset.values.get(option.name, option.default)

    def changed(self) -> set[str]:
        """The options that the user or the file sets, by the sources on the start card."""
        found = find_provenance(None, self.document, origin=self.origin, saved_text=self.saved_text)
        return {name for group in found.groups if group.source in ("user", "file") for name in group.values}

    @property
    def run_name(self) -> str:
        """The name of its runs: by its file, the run that it was copied from, or its data."""
        return run_name(self.document, self.origin)

    def findings(self, facts: Facts | None = None, base_problem: str = "") -> Findings:
        """Problems and warnings that follow from the known facts.

        Args:
            facts: The known facts.
            base_problem: The problem of the base model; empty if none is known.
        """
        problems = self.problems()
        if base_problem:
            problems.setdefault(BASE, base_problem)
        warnings: dict[str, str] = {}
        for remark in reversed(self.document.remarks(facts)):
            found = problems if remark.level == "error" else warnings
            # Shown at the option to change first, even if the file does not set it.
            found[remark.options[0]] = f"{remark.sentence} {remark.hint}".strip()
        return Findings(self._in_order(problems), self._in_order(warnings))

    def _in_order(self, found: Mapping[str, str]) -> dict[str, str]:
        order = {option.name: position for position, option in enumerate(self.options)}
        return dict(sorted(found.items(), key=lambda item: order.get(item[0], -1)))

    def problems(self) -> dict[str, str]:
        """Problems, including missing data files: ``section.key`` (or ``section``) to sentence."""
        found = self.document.problems()
        for name in DATA_PATHS:
            if name not in found and (sentence := self._missing_file(self.document.get(name))):
                found[name] = sentence
        return self._in_order(found)

    def _missing_file(self, value: Any) -> str:
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str):
                path = self.resolve(item)
                if not is_there(path) and is_hub_entry(path):
                    return f"{entry_text(path)} is not on this machine; opened in the Data pane, it can be downloaded."
                if not is_there(path):
                    return f"There is no file at {path}."
        return ""

    def resolve(self, text: str) -> Path:
        """The absolute path for a path in the configuration."""
        return entry_path(text, self.base)

    @property
    def named_base(self) -> NamedBase:
        """The base model, as named in the configuration."""
        base = self.effective(BASE)
        return NamedBase(base if isinstance(base, str) else "", self.base)

    @property
    def device(self) -> tuple[str, str | None]:
        """``hardware.device`` and ``hardware.gpu``; None for the first card."""
        device, gpu = self.effective("hardware.device"), self.document.get("hardware.gpu")
        return str(device), gpu if isinstance(gpu, str) and gpu else None

    def effective(self, name: str) -> Any:
        """The value of an option in the file, else its default."""
        value = self.document.get(name)
        if value is not None:
            return value
        option = find_option(name)
        return option.default if option is not None else None

    def train_paths(self) -> list[Path]:
        """The training files that exist."""
        value = self.document.get("data.train")
        texts = value if isinstance(value, list) else [value]
        paths = [self.resolve(text) for text in texts if isinstance(text, str) and text.strip()]
        return [path for path in paths if is_there(path)]

    def summary(self, rows: tuple[int, int] | None, *, is_exact: bool = False) -> str:
        """Model, method, data, rows, batch and steps on one line.

        Args:
            rows: Rows trained on and rows held out of the training files; None while they are unknown.
            is_exact: All rows have been analyzed; otherwise some may be dropped.
        """
        model = Path(str(self.effective("model.base"))).name or str(self.effective("model.base"))
        method = str(self.effective("method.name"))
        if not used_by("method.rank", self.effective):
            method += f" rank {format_value(self.effective('method.rank'))}"
        files = self.train_paths()
        batch = self.effective("train.batch_size")
        parts = [model, method]
        if not files:
            return one_line(" · ".join([*parts, "no training data", f"batch {format_value(batch)}"]))
        parts.append(files[0].name if len(files) == 1 else f"{len(files)} files")
        if rows is not None:
            used, kept_out = rows
            held_out = f" + {format_count(kept_out)} held out" if kept_out else ""
            steps = self._steps(used, batch, is_exact=is_exact)
            parts += [f"{counted(used, 'row')}{held_out}", f"batch {format_value(batch)}", steps]
        else:
            parts.append(f"batch {format_value(batch)}")
        return one_line(" · ".join(part for part in parts if part))

    def held_out(self, rows: int) -> int:
        """The number of rows that ``data.eval_share`` holds out."""
        share = self.effective("data.eval_share")
        return held_out_count(rows, share) if _is_number(share) and 0 < share < 1 else 0

    def _steps(self, rows: int, batch: Any, *, is_exact: bool) -> str:
        """The number of steps of a run, as the worker counts them; empty if an option it needs is invalid."""
        epochs, steps = self.effective("train.epochs"), self.effective("train.max_steps")
        if steps is None:
            if not _is_number(batch) or batch < 1 or not _is_number(epochs) or epochs <= 0:
                return ""
            steps = math.ceil(epochs * math.ceil(rows / batch))
            return f"{'' if is_exact else 'about '}{counted(steps, 'step')}"
        return counted(steps, "step") if _is_number(steps) and steps >= 1 else ""


def _is_number(value: Any) -> bool:
    # No conversion: an integer may be larger than any float.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and -_GREATEST < value < _GREATEST


def is_there(path: Path) -> bool:
    """True if a file or directory exists, with an optional ``#entry``, or a hub entry has been downloaded."""
    if is_hub_entry(path):
        return is_fetched(path)
    return path.exists() or ("#" in path.name and Path(str(path).rpartition("#")[0]).exists())
