"""Keeping an answer: the dialog, and the row appended to the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from core.chat.answer_rows import append_row, remember_file, remembered_file
from core.errors import UserError
from core.paths import shown_path, user_path, working_directory

if TYPE_CHECKING:
    from textual.app import App

    from tui.screens.keep_answer import KeptAnswer


def offer_to_keep(
    app: App[Any], messages: Sequence[dict[str, str]], answer: str, say: Callable[[str, str], None]
) -> None:
    """Ask for the answer as it is to be learned and for the file, and append the row.

    Args:
        app: The app.
        messages: The conversation that was answered.
        answer: The answer as the model wrote it.
        say: Takes what came of it, and a style.
    """
    from tui.screens.keep_answer import KeepAnswer

    def chosen(kept: KeptAnswer | None) -> None:
        if kept is None:
            return
        path = working_directory() / user_path(kept.file)
        try:
            append_row(path, [*messages, {"role": "assistant", "content": kept.text}])
        except UserError as error:
            say(f"✗ {error.message} {error.hint}", "$limit")
            return
        remember_file(path)
        say(f"✓ appended to {shown_path(path)}", "")

    file = remembered_file()
    app.push_screen(KeepAnswer(messages[-1]["content"], answer, shown_path(file) if file is not None else ""), chosen)
