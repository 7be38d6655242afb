"""Configurations of other tools in the config pane: which file, and the report on what became of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from core.config.document import ConfigDocument
from tui.panes.config.editor import Opened
from tui.screens.choice import Choice, ChoiceDialog

if TYPE_CHECKING:
    from core.importers.convert import Imported

#: Endings of configurations of Axolotl, LLaMA-Factory and Unsloth.
SUFFIXES = (".yml", ".yaml")
#: Columns of the report, inside of its dialog.
_WIDTH = 64


def carry_over(path: Path) -> Imported:
    """Read it; it may take a while, so call it from a thread.

    Raises:
        UserError: If it is no configuration of a tool that is known.
    """
    from core.importers.convert import import_config

    return import_config(path)


def opened_import(path: Path, imported: Imported) -> Opened:
    """A new configuration that is not saved yet."""
    return Opened(ConfigDocument(imported.toml), f"importing {path.name}")


def report_dialog(path: Path, imported: Imported) -> ChoiceDialog:
    """Shows what was taken over, and what was not."""
    from core.importers.report import render

    text = "\n".join(render(imported, _WIDTH))
    for unknown in imported.unknown:
        guess = f" Did you mean {unknown.guess}?" if unknown.guess else ""
        text += f"\n\nLine {unknown.line}: {imported.title} has no key {unknown.key}.{guess}"
    return ChoiceDialog(f"Imported from {path.name}", text, [Choice("enter", "", "close")])
