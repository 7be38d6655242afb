"""The editor of a configuration, with its file and its history; without any widget."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from core.config.document import ConfigDocument
from core.config.recent import remember_config
from core.errors import UserError
from core.hub_uri import is_hub_entry
from core.paths import working_directory
from core.presets.library import Preset
from core.presets.switch import preset_in
from core.runs.catalog.earlier import Origin
from tui.data_paths import entry_path
from tui.panes.config.history import EditHistory
from tui.panes.config.model import DATA_PATHS, ConfigModel, is_there

_BLANK = """\
# Options are explained in the form; what is left out has its default.
[data]
train = ""
"""


@dataclass(frozen=True)
class Opened:
    """Another configuration to be opened."""

    document: ConfigDocument
    label: str
    """A label for undo: the action that brought it."""
    text: str = ""
    """The message shown with it."""
    suggested: Path | None = None
    """The file that is suggested for a copy."""
    origin: Origin | None = None
    """The run that it was begun with; None for none."""
    is_begun: bool = False
    """Whether it is as that run has it, so that there is nothing to save yet."""
    draft: str = ""
    """The id of the draft that it is from; empty for none."""
    unread: str = ""
    """Text of the user's editor that is no configuration yet; empty for none."""

    @classmethod
    def load(cls, path: Path, label: str = "", text: str = "") -> Opened:
        """Read it from its file.

        Raises:
            UserError: If it is no configuration.
        """
        return cls(ConfigDocument.load(path), label or f"opening {path.name}", text)


class ConfigEditor:
    """A configuration during its edits; a new one at first."""

    def __init__(self) -> None:
        self.unread_text = ""
        """Text of the user's editor that is no configuration yet; empty where there is none."""
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
        """The preset that the configuration names."""
        return preset_in(self.document)

    @property
    def editor_text(self) -> str:
        """The initial text of the user's editor: its unread text, the configuration, or an empty one."""
        return self.unread_text or self.document.dumps() or _BLANK

    @property
    def former_name(self) -> str:
        """The name of the configuration that was there before this one: its file, else its runs'; empty for none."""
        model = self.history.former
        if model is None:
            return ""
        path = model.document.path
        return path.name if path is not None else model.run_name or "what was here"

    @property
    def suggested_name(self) -> str:
        """A suggested file name to save to, as typed."""
        if self._suggested is not None:
            return path_shown(self._suggested)
        if self.document.path is not None:
            return path_shown(free_name(self.document.path))
        files = self.model.train_paths()
        return f"{files[0].stem if files else 'localtune'}.toml"

    def take(self, opened: Opened) -> None:
        """Open another configuration; unsaved edits of the old one can be brought back by undo."""
        document = opened.document
        self.record()
        is_first = self.document.path is None and not self.document.dumps()
        model = ConfigModel(document, opened.origin, begun=document.dumps() if opened.is_begun else "")
        if is_first:
            self.history.begin(model)
        else:
            self.history.record(model, opened.label)
        self.unread_text, self._suggested = opened.unread, opened.suggested
        if document.path is not None:
            remember_config(document.path)

    def copy(self, hint: str) -> Opened:
        """A copy that has no file yet; ``hint`` is shown with it."""
        path = self.document.path
        document = ConfigDocument(self.document.dumps())
        rebase(document, self.model.base, working_directory())
        name = path.name if path is not None else "what is here"
        suggested = free_name(path) if path is not None else None
        label = f"a copy of {name}"
        return Opened(document, label, f"✓ {label}; {hint}", suggested, origin=self.model.origin)

    def save(self, path: Path | None = None, *, overwrite: bool = False) -> list[str]:
        """Write the file, or write another one and go on in that.

        Args:
            path: The other file, if any.
            overwrite: Whether to overwrite another program's changes of the file.

        Returns:
            The options whose paths were rewritten relative to the other file.

        Raises:
            UserError: If it cannot be written; the configuration is unchanged then.
        """
        # Absolute paths of a configuration without a file are mostly the app's own: with one they can move together.
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
        """Record an edit in the history; without a label, the difference describes it."""
        self.history.record(self.model, label)


def rebase(document: ConfigDocument, old: Path, new: Path, *, shorten: bool = False) -> list[str]:
    """Rewrite relative paths so that they mean the same files from another directory.

    Args:
        document: The configuration.
        old: The directory that they are relative to now.
        new: The directory that they will be relative to.
        shorten: Make absolute paths relative too, where they are below the new directory.

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
        # A model may be a name that no file has.
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
    """An unused file name: ``tickets-2.toml`` for ``tickets.toml``, or the next free number."""
    stem, number = path.stem, 2
    head, _, tail = stem.rpartition("-")
    if head and tail.isdecimal() and len(tail) < 4:
        stem, number = head, int(tail) + 1
    while (found := path.with_name(f"{stem}-{number}{path.suffix}")).exists():
        number += 1
    return found


def path_shown(path: Path) -> str:
    """A path for display: from the working directory, if it is below it."""
    whole = working_directory() / path
    return str(whole.relative_to(working_directory())) if whole.is_relative_to(working_directory()) else str(whole)
