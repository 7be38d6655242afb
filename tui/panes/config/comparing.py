"""Comparison of the configuration with its file, the last run, its preset or another configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.app import App

from core.config.compare import diff_texts, diff_values, holding_values
from core.config.document import ConfigDocument
from tui.panes.config.editor import ConfigEditor
from tui.panes.config.files import FileQuestions
from tui.screens.choice import Choice, ChoiceDialog

if TYPE_CHECKING:
    from core.runs.catalog.earlier import LikeRun


async def show_difference(
    app: App[object], editor: ConfigEditor, last: LikeRun | None, questions: FileQuestions
) -> None:
    """Choose another version, and show the difference.

    Args:
        app: The app that shows it.
        editor: The configuration.
        last: The last run of a similar configuration.
        questions: Asks for another configuration.

    Raises:
        UserError: If the other version cannot be read.
    """
    from tui.screens.difference import DifferenceScreen

    path, preset = editor.document.path, editor.preset
    choices = []
    if path is not None:
        choices.append(Choice("f", "file", "its file", f"{path.name} as it is on the disk"))
    if last is not None:
        choices.append(Choice("l", "run", "the last run", last.run.id))
    if preset is not None:
        choices.append(Choice("p", "preset", "the preset", preset.name))
    choices.append(Choice("o", "other", "another configuration"))
    text = "What is here is compared with"
    answer = await app.push_screen_wait(ChoiceDialog("Compare with", text, choices, is_harmless=True))
    document, mine = editor.document, holding_values(editor.document)
    if answer == "file" and path is not None:
        before, lines = f"{path.name} on the disk", diff_texts(ConfigDocument.load(path).dumps(), document.dumps())
    elif answer == "run" and last is not None:
        before, lines = f"run {last.run.id}", diff_values(dict(last.values), mine)
    elif answer == "preset" and preset is not None:
        # Options that a preset does not set are no difference.
        before, lines = f"preset {preset.name}", diff_values(mine | dict(preset.values), mine)
    elif answer == "other" and (other := await questions.choose("compare with")) is not None:
        before, lines = other.name, diff_values(holding_values(ConfigDocument.load(other)), mine)
    else:
        return
    edited = ", as edited here" if editor.model.is_edited else ""
    app.push_screen(DifferenceScreen(before, f"{path.name}{edited}" if path is not None else "not saved yet", lines))
