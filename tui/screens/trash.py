"""Screen of the trash: deleted runs with their sizes, to restore or to delete for good."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import work
from textual.binding import BindingType
from textual.content import Content
from textual.widgets.option_list import Option

from core.directories import free_bytes
from core.errors import UserError
from core.runs.catalog.removal import TrashedRun, list_trash, remove_trashed, restore_run, sweep_trash
from core.text import one_line
from core.units import format_bytes, format_moment
from tui.keys import bindings
from tui.screens.box import ListScreen
from tui.screens.choice import Choice, ChoiceDialog
from tui.shell import shell_of
from tui.widgets.strips import fit

#: Columns of a line without the run: its size, and when it was deleted.
_SIZE, _TIME = 9, 26
_FOR_GOOD = "for good"


@dataclass(frozen=True)
class TrashRow:
    """A run in the trash, with its bytes on the disk."""

    item: TrashedRun
    size: int


class TrashScreen(ListScreen[bool]):
    """Screen of the trash; returns True if a run was restored."""

    DEFAULT_CSS = "TrashScreen ListBox { width: 100; }"
    SCOPE = "trash"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("trash")]

    def __init__(self) -> None:
        super().__init__("Trash", ("restore", "remove", "empty", "back"))
        self._rows: Sequence[TrashRow] = ()
        self._has_restored = False

    def on_resize(self) -> None:
        """Fit the lines to the new width."""
        self._show_rows()

    @work(thread=True, group="trash-look", exclusive=True)
    def _look(self) -> None:
        rows = [TrashRow(item, item.size) for item in list_trash()]
        self.post_call(self._show, rows, free_bytes())

    def _show(self, rows: Sequence[TrashRow], free_size: int | None) -> None:
        self._rows = rows
        free = f" · free on this disk: {format_bytes(free_size)}" if free_size is not None else ""
        delete = shell_of(self).keys["runs.delete"].display
        empty = f"The trash is empty: {delete} in the list of runs moves one here"
        said = f"{_amount(self._rows)}{free}" if self._rows else f"{empty}{free}"
        self._box.show_about(Content.styled(said, "$muted"))
        self._show_rows()

    def _show_rows(self) -> None:
        options = self._options
        here, width = options.highlighted or 0, max(options.size.width, 40)
        options.clear_options()
        options.add_options([Option(_line(row, width)) for row in self._rows])
        if self._rows:
            options.highlighted = min(here, len(self._rows) - 1)

    @property
    def _row(self) -> TrashRow | None:
        """The run under the cursor."""
        place = self._options.highlighted
        return self._rows[place] if place is not None and place < len(self._rows) else None

    # Keys.

    def action_back(self) -> None:
        """Leave the screen."""
        self.dismiss(self._has_restored)

    def take(self) -> None:
        """Move the run under the cursor back among the runs."""
        self.action_restore()

    def action_restore(self) -> None:
        """Move the run under the cursor back among the runs."""
        if (row := self._row) is None:
            return

        async def restore() -> str:
            if row not in self._rows:
                return ""  # the key came twice
            # Set before the move: the user may leave meanwhile.
            self._has_restored = True
            run = await asyncio.to_thread(restore_run, row.item)
            self._rows = [other for other in self._rows if other is not row]
            self._show_rows()
            return f"Restored {run.id}."

        self._box.carry_out(restore)

    def action_remove(self) -> None:
        """Delete the run under the cursor for good, after a question."""
        if (row := self._row) is not None:
            self._delete([row], is_whole=False)

    def action_empty(self) -> None:
        """Delete all runs for good, after a question."""
        if self._rows:
            self._delete(self._rows, is_whole=True)

    def _delete(self, rows: Sequence[TrashRow], *, is_whole: bool) -> None:
        async def delete() -> str:
            if await self.app.push_screen_wait(_question(rows)) != _FOR_GOOD:
                return ""
            return await asyncio.to_thread(_remove, rows, is_whole=is_whole)

        self._box.carry_out(delete)


def _remove(rows: Sequence[TrashRow], *, is_whole: bool) -> str:
    """Delete runs for good, and report the freed space.

    Raises:
        UserError: If a run cannot be deleted completely; the others are deleted first.
    """
    freed, failure = 0, None
    for row in rows:
        try:
            remove_trashed(row.item)
            freed += row.size
        except UserError as error:
            failure = failure or error
    if is_whole:
        sweep_trash()
    if failure is not None:
        raise failure
    return f"{format_bytes(freed)} freed."


def _question(rows: Sequence[TrashRow]) -> ChoiceDialog:
    what = one_line(rows[0].item.id, 60) if len(rows) == 1 else "all of them"
    pronoun = "It" if len(rows) == 1 else "They"
    text = Content.assemble((_amount(rows), "bold"), f". {pronoun} cannot be restored then.")
    choices = [Choice("n", "", "keep"), Choice("y", _FOR_GOOD, f"delete {what} for good")]
    return ChoiceDialog("Delete for good", text, *choices, alarm=True)


def _amount(rows: Sequence[TrashRow]) -> str:
    count = f"{len(rows)} run{'' if len(rows) == 1 else 's'}"
    return f"{count}, {format_bytes(sum(row.size for row in rows))}"


def _line(row: TrashRow, width: int) -> Content:
    """The line of a run: id, size, and time of deletion."""
    when = f"deleted {format_moment(row.item.deleted, '%Y-%m-%d %H:%M')}" if row.item.deleted else ""
    return Content.assemble(
        fit(one_line(row.item.id, 300), max(width - _SIZE - _TIME - 3, 12)),
        f" {format_bytes(row.size):>{_SIZE}}",
        (f"  {when}", "$muted"),
    )
