"""Import of other tools' configurations into the config pane, with its report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tui.screens.choice import Choice, ChoiceDialog

if TYPE_CHECKING:
    from core.importers.convert import Imported

#: Suffixes of configurations of Axolotl, LLaMA-Factory and Unsloth.
SUFFIXES = (".yml", ".yaml")
#: Columns of the report, inside of its dialog.
_WIDTH = 64


def read_import(path: Path) -> Imported:
    """Import a configuration; call it in a thread, as its imports are slow.

    Raises:
        UserError: If it belongs to no known tool.
    """
    from core.importers.convert import import_config

    return import_config(path)


def report_dialog(path: Path, imported: Imported) -> ChoiceDialog:
    """The dialog with the report: options imported, and options that were not."""
    from core.importers.report import render

    text = "\n".join(render(imported, _WIDTH))
    for unknown in imported.unknown:
        guess = f" Did you mean {unknown.guess}?" if unknown.guess else ""
        text += f"\n\nLine {unknown.line}: {imported.title} has no key {unknown.key}.{guess}"
    return ChoiceDialog(f"Imported from {path.name}", text, [Choice("enter", "", "close")])
