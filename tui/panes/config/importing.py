"""Import of other tools' configurations into the config pane, with its report."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from core.text import one_line
from tui.screens.report import ReportScreen

if TYPE_CHECKING:
    from core.importers.convert import Imported

#: Suffixes of configurations of Axolotl, LLaMA-Factory and Unsloth.
SUFFIXES = (".yml", ".yaml")


def read_import(path: Path) -> Imported:
    """Import a configuration; call it in a thread, as its imports are slow.

    Raises:
        UserError: If it belongs to no known tool.
    """
    from core.importers.convert import import_config

    return import_config(path)


def report_screen(path: Path, imported: Imported) -> ReportScreen:
    """The screen with the report: options imported, and options that were not."""
    from core.importers.convert import render

    def lines(width: int) -> list[str]:
        found = render(imported, width)
        for unknown in imported.unknown:
            guess = f" Did you mean {unknown.guess}?" if unknown.guess else ""
            sentence = f"Line {unknown.line}: {imported.title} has no key {unknown.key}.{guess}"
            found += ["", *textwrap.wrap(one_line(sentence, 300), width)]
        return found

    return ReportScreen(f"Imported from {path.name}", lines)
