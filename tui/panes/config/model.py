"""The model of the configuration being edited: its values, its base model and their checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.analysis.division import held_out_count
from core.config.document import ConfigDocument, parse_value
from core.config.facts import Facts
from core.config.schema import Option, find_option, options
from core.config.unused import used_by
from core.errors import UserError
from core.hub.store import is_fetched
from core.hub_uri import is_hub_entry
from core.models.find import close_name, is_model_here, model_entry
from core.paths import working_directory
from core.presets.library import Preset
from core.runs.catalog.earlier import Origin, run_name
from core.text import one_line
from core.units import format_count
from tui.datasets.summary import counted
from tui.files import entry_path, entry_text
from tui.widgets.forms.option_field import format_value


@dataclass(frozen=True)
class NamedBase:
    """A base model as a configuration names it.

    Args:
        name: As ``model.base``.
        directory: The directory that a relative path in it is relative to.
    """

    name: str
    directory: Path


@dataclass(frozen=True)
class BaseFinding:
    """Finding about a base model: what is wrong with it; nothing where the sentence is empty."""

    base: NamedBase
    sentence: str = ""
    is_missing: bool = False
    """Whether the model is not on this machine."""


def find_missing(base: NamedBase, key: str) -> BaseFinding | None:
    """The finding that a base model is not on this machine, from names alone; None if it is.

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
    """Look a base model up, and check its description; in a thread, as a helper process reads it.

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
        # Named as in the configuration, which is nearer to the eye than its directory.
        return BaseFinding(base, str(error).replace(str(base.directory.absolute() / base.name), base.name))
    except (OSError, ValueError):
        # A lookup that fails leaves the fact unknown; the run reports what it needs.
        pass
    return BaseFinding(base)


#: The option with the base model.
BASE = "model.base"
#: Greatest plausible number.
_GREATEST = 1e15
#: Options whose values are paths of data files.
DATA_PATHS = ("data.train", "data.eval")


@dataclass(frozen=True)
class Findings:
    """Findings on a configuration: problems, and warnings of likely mistakes; option to sentence, in order."""

    problems: Mapping[str, str]
    warnings: Mapping[str, str]


class ConfigModel:
    """A document and the checks of the form.

    Args:
        document: The document; its path, where it has one, is the file that ``save`` replaces.
        origin: The run that it was begun with; None for none.
        begun: The text that it was begun with, where that needs no saving.
    """

    def __init__(self, document: ConfigDocument, origin: Origin | None = None, *, begun: str = "") -> None:
        self.document = document
        self.origin = origin
        self._begun = begun
        self.options: tuple[Option, ...] = tuple(options())

    @property
    def base(self) -> Path:
        """The base directory of relative paths in it."""
        return self.document.path.parent if self.document.path is not None else working_directory()

    @property
    def saved_text(self) -> str:
        """The text that needs no saving: of its file, or of the run that it was begun with."""
        return self.document.saved_text if self.document.path is not None else self._begun

    @property
    def is_edited(self) -> bool:
        """Whether it differs from its file, or from what it was begun with."""
        return self.document.dumps() != self.saved_text

    def set_text(self, option: Option, text: str) -> None:
        """Set an option to the typed text; empty text means the default.

        A text that is no value of the option's type is kept as it is, and is a problem from then on.

        Raises:
            UserError: If the option's section is not one in this file.
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

    def changed_count(self, preset: Preset | None = None) -> int:
        """The number of options whose value differs from the preset in force, or from their default."""
        optional = [option for option in self.options if not option.required]
        return sum(self.effective(option.name) != self.baseline(option, preset) for option in optional)

    @property
    def run_name(self) -> str:
        """The name of a run of it: after its file, the run it was begun with, else after its data."""
        return run_name(self.document, self.origin)

    def findings(self, facts: Facts | None = None, base_problem: str = "") -> Findings:
        """Problems and warnings, as far as the known facts allow.

        Args:
            facts: The known facts.
            base_problem: What is wrong with the base model; empty where nothing is known to be.
        """
        problems = self.problems()
        if base_problem:
            problems.setdefault(BASE, base_problem)
        warnings: dict[str, str] = {}
        for remark in reversed(self.document.remarks(facts)):
            found = problems if remark.level == "error" else warnings
            # Under the option to change first, whichever the file writes.
            found[remark.options[0]] = f"{remark.sentence} {remark.hint}".strip()
        return Findings(self._in_order(problems), self._in_order(warnings))

    def _in_order(self, found: Mapping[str, str]) -> dict[str, str]:
        order = {option.name: position for position, option in enumerate(self.options)}
        return dict(sorted(found.items(), key=lambda item: order.get(item[0], -1)))

    def problems(self) -> dict[str, str]:
        """Problems, ``section.key`` (or ``section``) to one sentence; a missing data file is one."""
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
        """A path of the configuration, made absolute."""
        return entry_path(text, self.base)

    @property
    def named_base(self) -> NamedBase:
        """The base model, as the configuration names it."""
        base = self.effective(BASE)
        return NamedBase(base if isinstance(base, str) else "", self.base)

    @property
    def device(self) -> tuple[str, str | None]:
        """``hardware.device``, and the card that the configuration names; None for the first one."""
        device, gpu = self.effective("hardware.device"), self.document.get("hardware.gpu")
        return str(device), gpu if isinstance(gpu, str) and gpu else None

    def effective(self, name: str) -> Any:
        """The effective value: the file's, else the default."""
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

    def summary(self, rows: Mapping[Path, int]) -> str:
        """Model, method, data, rows, batch and steps on one line.

        Args:
            rows: Rows of the training files, as far as they have been counted.
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
        if all(path in rows for path in files):
            count = sum(rows[path] for path in files)
            kept_out = self.held_out(count)
            held_out = f" + {format_count(kept_out)} held out" if kept_out else ""
            used = count - kept_out
            parts += [f"{counted(used, 'row')}{held_out}", f"batch {format_value(batch)}", self._steps(used, batch)]
        else:
            parts.append(f"batch {format_value(batch)}")
        return one_line(" · ".join(part for part in parts if part))

    def held_out(self, rows: int) -> int:
        """The number of rows that ``data.eval_share`` holds out of so many."""
        share = self.effective("data.eval_share")
        return held_out_count(rows, share) if _is_number(share) and 0 < share < 1 else 0

    def _steps(self, rows: int, batch: Any) -> str:
        """The number of steps of a run, as the worker counts them; empty where an option for it is wrong."""
        epochs, steps = self.effective("train.epochs"), self.effective("train.max_steps")
        if steps is None:
            if not _is_number(batch) or batch < 1 or not _is_number(epochs) or epochs <= 0:
                return ""
            steps = math.ceil(epochs * math.ceil(rows / batch))
            # Rows that will be dropped are not trained on.
            return f"about {counted(steps, 'step')}"
        return counted(steps, "step") if _is_number(steps) and steps >= 1 else ""


def _is_number(value: Any) -> bool:
    # Compared as it is: a whole number may be larger than any float.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and -_GREATEST < value < _GREATEST


def is_there(path: Path) -> bool:
    """Whether a file or directory exists (a path may name an entry after ``#``), or a hub entry is downloaded."""
    if is_hub_entry(path):
        return is_fetched(path)
    return path.exists() or ("#" in path.name and Path(str(path).rpartition("#")[0]).exists())
