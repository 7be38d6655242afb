"""Keeping an answer: the dialog, and the row appended to the file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from core.chat.answer_rows import append_row, remember_file, remembered_file
from core.errors import UserError
from core.paths import shown_path, user_path, working_directory

if TYPE_CHECKING:
    from textual.widget import Widget

    from tui.screens.keep_answer import KeptAnswer


def offer_to_keep(
    pane: Widget, messages: Sequence[dict[str, str]], answer: str, say: Callable[[str, str], None]
) -> None:
    """Ask for the answer as it is to be learned and for the file, and append the row.

    Args:
        pane: Has the app, and the worker that appends.
        messages: The conversation that was answered.
        answer: The answer as the model wrote it.
        say: Takes what came of it, and a style.
    """
    from tui.screens.keep_answer import KeepAnswer

    async def append(kept: KeptAnswer) -> None:
        path = working_directory() / user_path(kept.file)
        row = [*messages, {"role": "assistant", "content": kept.text}]
        try:
            # In a thread: it waits for the disk, and for another app that appends to the file.
            await asyncio.to_thread(append_row, path, row)
        except UserError as error:
            say(f"✗ {error.message} {error.hint}", "$limit")
            return
        remember_file(path)
        say(f"✓ appended to {shown_path(path)}", "")

    def chosen(kept: KeptAnswer | None) -> None:
        if kept is not None:
            pane.run_worker(append(kept), group="chat-keep")

    file = remembered_file()
    shown = shown_path(file) if file is not None else ""
    pane.app.push_screen(KeepAnswer(messages[-1]["content"], answer, shown), chosen)
