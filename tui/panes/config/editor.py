"""The configuration in the course of its edits, with its file and its history; without any widget."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from core.config.document import ConfigDocument
from core.config.recent import remember_config
from core.errors import UserError
from core.hub_uri import is_hub_entry
from core.presets.library import Preset
from core.presets.switch import preset_in
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
    """Another configuration to go on with."""

    document: ConfigDocument
    label: str
    """What brought it, for who undoes it."""
    text: str = ""
    """What is said when it is shown."""
    suggested: Path | None = None
    """The file that is proposed for a copy."""

    @classmethod
    def load(cls, path: Path, label: str = "", text: str = "") -> Opened:
        """Read it from its file.

        Raises:
            UserError: If it is no configuration.
        """
        return cls(ConfigDocument.load(path), label or f"opening {path.name}", text)


class ConfigEditor:
    """A configuration in the course of its edits; a new one at first."""

    def __init__(self) -> None:
        self.unread_text = ""
        """What was written in the user's editor and is no configuration yet; empty where nothing is."""
        self.history = EditHistory(ConfigModel(ConfigDocument()))
        self._suggested: Path | None = None

    @property
    def model(self) -> ConfigModel:
        """The configuration and its checks."""
        return self.history.present.model

    @property
    def document(self) -> ConfigDocument:
        """The configuration."""
        return self.model.document

    @property
    def preset(self) -> Preset | None:
        """The preset that it names."""
        return preset_in(self.document)

    @property
    def editor_text(self) -> str:
        """The text that the user's editor begins with: what it left unread, the configuration, or an empty one."""
        return self.unread_text or self.document.dumps() or _BLANK

    @property
    def suggested_name(self) -> str:
        """The file that it could be saved to, as one would type it."""
        if self._suggested is not None:
            return path_shown(self._suggested)
        if self.document.path is not None:
            return path_shown(free_name(self.document.path))
        files = self.model.train_paths()
        return f"{files[0].stem if files else 'localtune'}.toml"

    def take(self, opened: Opened) -> None:
        """Go on with another configuration; what was not saved of the old one can be brought back."""
        document = opened.document
        self.record()
        is_first = self.document.path is None and not self.document.dumps()
        if is_first:
            self.history.begin(ConfigModel(document))
        else:
            self.history.record(ConfigModel(document), opened.label)
        self.unread_text, self._suggested = "", opened.suggested
        if document.path is not None:
            remember_config(document.path)

    def copy(self, hint: str) -> Opened:
        """A copy that has no file yet; ``hint`` is said with it."""
        path = self.document.path
        document = ConfigDocument(self.document.dumps())
        rebase(document, self.model.base, Path.cwd())
        name = path.name if path is not None else "what is here"
        suggested = free_name(path) if path is not None else None
        return Opened(document, f"a copy of {name}", f"✓ a copy of {name}; {hint}", suggested)

    def save(self, path: Path | None = None, *, overwrite: bool = False) -> list[str]:
        """Write the file, or another one and go on in that.

        Args:
            path: The other file.
            overwrite: Also where something else has written the file.

        Returns:
            The options whose paths are written as seen from the other file.

        Raises:
            UserError: If it cannot be written; the configuration is as it was.
        """
        is_copy = self._suggested is not None
        moved = rebase(self.document, self.model.base, path.parent, shorten=is_copy) if path is not None else []
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
        """Take down that something has been edited; the difference tells what where there is no label."""
        self.history.record(self.model, label)


def rebase(document: ConfigDocument, old: Path, new: Path, *, shorten: bool = False) -> list[str]:
    """Write relative paths so that they mean the same files from another directory.

    Args:
        document: The configuration.
        old: What they are relative to now.
        new: What they will be relative to.
        shorten: Make absolute paths relative too, where they lie below the new directory.

    Returns:
        The options that were changed.
    """
    before, after = old.absolute(), new.absolute()
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
    """``tickets-2.toml`` of ``tickets.toml``, or the first number that no file has."""
    stem, number = path.stem, 2
    head, _, tail = stem.rpartition("-")
    if head and tail.isdecimal() and len(tail) < 4:
        stem, number = head, int(tail) + 1
    while (found := path.with_name(f"{stem}-{number}{path.suffix}")).exists():
        number += 1
    return found


def path_shown(path: Path) -> str:
    """A path as one would type it: from the working directory, where it lies below it."""
    whole = path.absolute()
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(whole)
