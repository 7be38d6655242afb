"""Editor of a configuration, without widgets: its file, its undo history, and drafts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from core.config.compare import holding_values
from core.config.document import ConfigDocument
from core.config.files import remember_config
from core.config.schema import options
from core.drafts import Draft, list_drafts
from core.errors import UserError
from core.hub_uri import is_hub_entry
from core.paths import shown_path, working_directory
from core.presets.library import Preset
from core.presets.switch import preset_in
from core.runs.catalog.earlier import Origin, begin_from, run_name, train_further
from core.runs.record.sentences import brief_id
from core.runs.record.store import Run
from core.text import one_line
from tui.files import entry_path
from tui.panes.config.model import DATA_PATHS, ConfigModel, is_there
from tui.widgets.forms.option_field import format_value

#: Maximum number of edits kept.
LIMIT = 500
_VALUE_LENGTH = 40


@dataclass(frozen=True)
class Moment:
    """Snapshot of a configuration and its text."""

    model: ConfigModel
    text: str


@dataclass(frozen=True)
class Step:
    """Edit: the snapshots before and after it, and a label; without a label, the difference describes it."""

    before: Moment
    after: Moment
    label: str

    @property
    def changed(self) -> list[str]:
        """The options that the edit changed, ``section.key``."""
        old, new = _values(self.before), _values(self.after)
        return [option.name for option in options() if old.get(option.name) != new.get(option.name)]

    def tell_undone(self) -> str:
        """The message after undoing the edit."""
        return self._tell(self.after, self.before, "Undone")

    def tell_redone(self) -> str:
        """The message after redoing the edit."""
        return self._tell(self.before, self.after, "Done again")

    def _tell(self, left: Moment, present: Moment, verb: str) -> str:
        if self.label:
            return f"{verb}: {self.label}."
        names = self.changed
        if len(names) != 1:
            return f"{verb}: {len(names)} options." if names else f"{verb}: the text; no option has another value."
        (name,) = names
        return f"{verb}: {name} is {_written(present, name)} again (was {_written(left, name)})."


class EditHistory:
    """Undo history; :meth:`record` is called after each edit.

    Args:
        model: The initial configuration.
    """

    def __init__(self, model: ConfigModel) -> None:
        self.present = Moment(model, model.document.dumps())
        self._done: list[Step] = []
        self._undone: list[Step] = []

    def record(self, model: ConfigModel, label: str = "") -> bool:
        """Record an edit, if anything has changed.

        Args:
            model: The present configuration; another object than before if another one was opened.
            label: The edit in a few words.
        """
        now = Moment(model, model.document.dumps())
        if now == self.present:
            return False
        self._done.append(Step(self.present, now, one_line(label, 120)))
        del self._done[:-LIMIT]
        self._undone.clear()
        self.present = now
        return True

    def undo(self) -> Step | None:
        """Undo the last edit; None if there is none."""
        if not self._done:
            return None
        step = self._done.pop()
        self._undone.append(step)
        self._bring_back(step.before)
        return step

    @property
    def former(self) -> ConfigModel | None:
        """The previous configuration; None if there is none."""
        models = (step.before.model for step in reversed(self._done))
        return next((model for model in models if model is not self.present.model), None)

    def leave(self) -> Step | None:
        """Go back to the previous configuration, undoing all edits since; None if there is none."""
        if (former := self.former) is None:
            return None
        while self.present.model is not former:
            step = self._done.pop()
            self._undone.append(step)
            self.present = step.before
        self.revert()
        return step

    def redo(self) -> Step | None:
        """Redo the last undone edit; None if there is none."""
        if not self._undone:
            return None
        step = self._undone.pop()
        self._done.append(step)
        self._bring_back(step.after)
        return step

    def revert(self) -> None:
        """Reset the configuration to the text after the last recorded edit."""
        self._bring_back(self.present)

    def _bring_back(self, moment: Moment) -> None:
        moment.model.document.rewrite(moment.text)
        self.present = moment


def _values(moment: Moment) -> dict[str, object]:
    return holding_values(ConfigDocument(moment.text, moment.model.document.path))


def _written(moment: Moment, name: str) -> str:
    value = ConfigDocument(moment.text).get(name)
    if value is None:
        default = next(option.default for option in options() if option.name == name)
        return f"{format_value(default)} by default" if default is not None else "not set"
    return one_line(format_value(value), _VALUE_LENGTH)


_BLANK = """\
# Options are explained in the form; what is left out has its default.
[data]
train = ""
"""


@dataclass(frozen=True)
class Opened:
    """Configuration to open, with its source."""

    document: ConfigDocument
    label: str
    """The label for undo: the action that opened it."""
    text: str = ""
    """The message to show."""
    suggested: Path | None = None
    """The suggested file of a copy."""
    origin: Origin | None = None
    """The run that it was copied from; None for none."""
    is_begun: bool = False
    """True if it equals that run's configuration, so that there is nothing to save yet."""
    draft: str = ""
    """The id of its draft; empty for none."""
    unread: str = ""
    """Text of the user's editor that is not valid yet; empty for none."""

    @classmethod
    def load(cls, path: Path, label: str = "", text: str = "") -> Opened:
        """Read a configuration from its file.

        Raises:
            UserError: If the file is not a configuration.
        """
        return cls(ConfigDocument.load(path), label or f"opening {path.name}", text)


class ConfigEditor:
    """Editor of a configuration, which is new at first."""

    def __init__(self) -> None:
        self.unread_text = ""
        """Text of the user's editor that is not valid yet; empty if there is none."""
        self.history = EditHistory(ConfigModel(ConfigDocument()))
        self._suggested: Path | None = None

    @property
    def model(self) -> ConfigModel:
        """The configuration and its checks."""
        return self.history.present.model

    @property
    def document(self) -> ConfigDocument:
        """The document of the configuration."""
        return self.model.document

    @property
    def preset(self) -> Preset | None:
        """The active preset, named in the configuration."""
        return preset_in(self.document)

    @property
    def editor_text(self) -> str:
        """The text for the user's editor: its last invalid text, the configuration, or an empty configuration."""
        return self.unread_text or self.document.dumps() or _BLANK

    @property
    def former_name(self) -> str:
        """The name of the previous configuration: of its file, else of its runs; empty if there is none."""
        model = self.history.former
        if model is None:
            return ""
        path = model.document.path
        return path.name if path is not None else model.run_name or "what was here"

    @property
    def suggested_name(self) -> str:
        """The suggested path for saving."""
        if self._suggested is not None:
            return path_shown(self._suggested)
        if self.document.path is not None:
            return path_shown(free_name(self.document.path))
        files = self.model.train_paths()
        return f"{files[0].stem if files else 'localtune'}.toml"

    def take(self, opened: Opened) -> None:
        """Open another configuration; undo brings back the old one with its unsaved edits."""
        document = opened.document
        self.record()
        is_first = self.document.path is None and not self.document.dumps()
        model = ConfigModel(document, opened.origin, begun=document.dumps() if opened.is_begun else "")
        if is_first:
            self.history = EditHistory(model)
        else:
            self.history.record(model, opened.label)
        self.unread_text, self._suggested = opened.unread, opened.suggested
        if document.path is not None:
            remember_config(document.path)

    def drop(self) -> None:
        """Go back to the previous configuration; to an empty one if there is none."""
        if self.history.leave() is None:
            self.history = EditHistory(ConfigModel(ConfigDocument()))

    def copy(self, hint: str) -> Opened:
        """A copy without a file; its message ends with ``hint``."""
        path = self.document.path
        document = ConfigDocument(self.document.dumps())
        rebase(document, self.model.base, working_directory())
        name = path.name if path is not None else "what is here"
        suggested = free_name(path) if path is not None else None
        label = f"a copy of {name}"
        return Opened(document, label, f"✓ {label}; {hint}", suggested, origin=self.model.origin)

    def save(self, path: Path | None = None, *, overwrite: bool = False) -> list[str]:
        """Write the file, or write another file and continue with that.

        Args:
            path: The other file, if any.
            overwrite: Whether to overwrite another program's changes of the file.

        Returns:
            The options whose paths were rewritten relative to the other file.

        Raises:
            UserError: If it cannot be written; the configuration is unchanged then.
        """
        # The app writes absolute paths into a configuration without a file; relative ones can move with the file.
        is_first = self._suggested is not None or self.document.path is None
        moved = rebase(self.document, self.model.base, path.parent, shorten=is_first) if path is not None else []
        try:
            self.document.save(path, overwrite=overwrite)
        except UserError:
            self.history.revert()
            raise
        self._suggested = None
        if self.document.path is not None:
            remember_config(self.document.path)
        self.record("paths, as seen from the new file")
        return moved

    def record(self, label: str = "") -> None:
        """Record an edit in the undo history."""
        self.history.record(self.model, label)


def rebase(document: ConfigDocument, old: Path, new: Path, *, shorten: bool = False) -> list[str]:
    """Rewrite relative paths for another base directory, so that they refer to the same files.

    Args:
        document: The configuration.
        old: The present base directory.
        new: The new base directory.
        shorten: Whether to make absolute paths below the new directory relative too.

    Returns:
        The options that were changed.
    """
    here = working_directory()
    before, after = here / old, here / new
    changed: list[str] = []
    if not shorten and os.path.normpath(before) == os.path.normpath(after):
        return changed

    def moved(text: str) -> str:
        whole = entry_path(text, before)
        is_fixed = os.path.isabs(os.path.expanduser(text)) and not (shorten and whole.is_relative_to(after))
        # A model may be named by an id instead of a path.
        if is_fixed or is_hub_entry(text) or not is_there(whole):
            return text
        return str(whole.relative_to(after)) if whole.is_relative_to(after) else os.path.normpath(whole)

    for name in ("model.base", *DATA_PATHS, "template.file"):
        value = document.get(name)
        texts = value if isinstance(value, list) else [value]
        written = [moved(text) if isinstance(text, str) and text else text for text in texts]
        if written != texts:
            document.set(name, written if isinstance(value, list) else written[0])
            changed.append(name)
    return changed


def free_name(path: Path) -> Path:
    """An unused file name: ``tickets-2.toml`` for ``tickets.toml``, or with the next free number."""
    stem, number = path.stem, 2
    head, _, tail = stem.rpartition("-")
    if head and tail.isdecimal() and len(tail) < 4:
        stem, number = head, int(tail) + 1
    while (found := path.with_name(f"{stem}-{number}{path.suffix}")).exists():
        number += 1
    return found


def path_shown(path: Path) -> str:
    """A path for display: relative to the working directory if it is below that."""
    whole = working_directory() / path
    return str(whole.relative_to(working_directory())) if whole.is_relative_to(working_directory()) else str(whole)


def kept_drafts() -> list[Draft]:
    """Released drafts of configurations without a file, the newest first."""
    return [draft for draft in list_drafts("config") if draft.is_of_new_config and draft.is_left]


def describe(draft: Draft) -> tuple[str, str]:
    """The name of a draft, by its data, and its time and place."""
    try:
        document = ConfigDocument(_text(draft))
        name, model = run_name(document), document.get("model.base")
    except UserError:
        name, model = "", None
    parts = [f"not saved, {draft.when}", shown_path(Path(draft.subject))]
    parts += [Path(model).name] if isinstance(model, str) else []
    return one_line(name or "no data", 60), one_line("  ".join(parts), 200)


def open_draft(draft: Draft) -> Opened:
    """The configuration of a draft, with its paths rewritten for the working directory.

    Raises:
        UserError: If it is not a configuration.
    """
    document = ConfigDocument(_text(draft))
    rebase(document, Path(draft.subject), working_directory())
    run, values, unread = (draft.data.get(name) for name in ("run", "values", "unread"))
    # Even a deleted run is the origin of the values.
    found = Run(Path(run)) if isinstance(run, str) and run else None
    origin = Origin.of(found) if found is not None else None
    if found is not None and isinstance(values, dict):
        origin = Origin(found, values)
    return Opened(
        document,
        f"opening the unsaved edits of {draft.when}",
        f"✓ as it was at {draft.when}, not saved yet",
        origin=origin,
        draft=draft.id,
        unread=unread if isinstance(unread, str) else "",
    )


def open_run(run: Run) -> Opened:
    """The configuration of a run as a new one.

    Raises:
        UserError: If ``run.toml`` is missing or is not a configuration.
    """
    document, name = begin_from(run), brief_id(run.id)
    label = f"opening the configuration of {name}"
    return Opened(document, label, f"✓ the configuration of {name}, as a new one", origin=Origin.of(run), is_begun=True)


def open_further(run: Run, *, on_corrections: bool = False) -> Opened:
    """A configuration that trains a finished run further.

    Args:
        run: The run.
        on_corrections: On the corrections of its chat, among some of its rows.

    Raises:
        UserError: If the run has no result, its configuration cannot be read, or no correction waits.
    """
    from core.chat.corrections import train_on_corrections

    document, name = (train_on_corrections if on_corrections else train_further)(run), brief_id(run.id)
    what = f"{name} on its corrections" if on_corrections else f"{name} further"
    greeting = f"✓ trains {what}, as a new run at half its learning rate"
    # Its values are the run's, not the user's: the new base and rate too.
    return Opened(document, f"training {name} further", greeting, origin=Origin(run, holding_values(document)))


def _text(draft: Draft) -> str:
    text = draft.data.get("text")
    if not isinstance(text, str):
        raise UserError("The draft has no configuration in it.", "Discard it.")
    return text
