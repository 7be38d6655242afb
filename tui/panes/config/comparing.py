"""The configuration compared with its file, the last run, its preset or another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.config.compare import DiffLine, diff_texts, diff_values, holding_values
from core.config.document import ConfigDocument
from core.presets.library import Preset
from tui.panes.config.files import FileQuestions
from tui.panes.config.model import ConfigModel
from tui.screens.choice import Choice, ChoiceDialog

if TYPE_CHECKING:
    from core.runs.latest import LikeRun
    from tui.screens.difference import DifferenceScreen


def compare_dialog(model: ConfigModel, last: LikeRun | None, preset: Preset | None) -> ChoiceDialog:
    """Asks what to compare with: ``file``, ``run``, ``preset`` or ``other``."""
    path = model.document.path
    choices = []
    if path is not None:
        choices.append(Choice("f", "file", "its file", f"{path.name} as it is on the disk"))
    if last is not None:
        choices.append(Choice("l", "run", "the last run", last.run.id))
    if preset is not None:
        choices.append(Choice("p", "preset", "the preset", preset.name))
    choices.append(Choice("o", "other", "another configuration"))
    return ChoiceDialog("Compare with", "What is here is compared with", choices, is_harmless=True)


async def compare(
    answer: str, model: ConfigModel, last: LikeRun | None, preset: Preset | None, files: FileQuestions
) -> DifferenceScreen | None:
    """Compare with what :func:`compare_dialog` offers; None where the user gives up.

    Raises:
        UserError: If the other configuration cannot be read.
    """
    document, path = model.document, model.document.path
    if answer == "file" and path is not None:
        saved = ConfigDocument.load(path).dumps()
        return _shown(f"{path.name} on the disk", diff_texts(saved, document.dumps()), model)
    if answer == "run" and last is not None:
        return _shown(f"run {last.run.id}", diff_values(dict(last.values), holding_values(document)), model)
    if answer == "preset" and preset is not None:
        # What a preset says nothing about is no difference.
        mine = holding_values(document)
        return _shown(f"preset {preset.name}", diff_values(mine | dict(preset.values), mine), model)
    if answer == "other" and (other := await files.choose("compare with")) is not None:
        theirs = holding_values(ConfigDocument.load(other))
        return _shown(other.name, diff_values(theirs, holding_values(document)), model)
    return None


def _shown(before: str, lines: list[DiffLine], model: ConfigModel) -> DifferenceScreen:
    from tui.screens.difference import DifferenceScreen

    path = model.document.path
    after = path.name if path is not None else "not saved yet"
    edited = ", as edited here" if model.is_edited and path is not None else ""
    return DifferenceScreen(before, f"{after}{edited}", lines)
