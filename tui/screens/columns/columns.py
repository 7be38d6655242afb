"""Columns named by hand: chosen for each part, and put into the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from textual import on
from textual.widgets import OptionList

from core.config.choices import ROLES, ColumnRole
from core.text import one_line
from tui.datasets.view import DatasetView
from tui.messages import OptionsChosen
from tui.screens.columns.column_plan import Candidate, candidates, format_candidates
from tui.screens.columns.columns_view import FORMAT, ColumnForm, ColumnsView
from tui.screens.help import HelpScreen
from tui.screens.pick import Pick, PickScreen
from tui.widgets.forms.ask_bar import AskBar

HELP = (
    "Say which column plays which part, where the format is not recognized or is recognized wrongly. What is dim was "
    "recognized and is not written into the configuration; with the first change all of it is by hand. A format can be "
    "chosen without naming columns. The rows are shown as they are then read. Nothing is changed before you save."
)


class ColumnsScreen(ColumnsView):
    """Shows and chooses; posts :class:`~tui.messages.OptionsChosen` to the app."""

    def __init__(self, view: DatasetView, form: ColumnForm) -> None:
        super().__init__(view, form)
        self._is_saving = False

    def rows_seen(self) -> None:
        """Save now, if that was asked for before the rows had been read."""
        if self._is_saving:
            self.action_save()

    def _candidates(self, part: str) -> Sequence[Candidate]:
        if self.sample is None or not part:
            return ()
        if part == FORMAT:
            return format_candidates(self.sample)
        return candidates(cast(ColumnRole, part), self.columns, self.sample)

    def action_choose(self) -> None:
        """Choose from a list, found by typing."""
        part = self.current
        if self.sample is None or not part:
            return
        picks = [Pick(candidate.value, candidate.example) for candidate in self._candidates(part)]
        if part == FORMAT:
            self.app.push_screen(PickScreen("Format", picks, self.wanted), lambda value: self._take(part, value))
            return
        present = self.columns.get(cast(ColumnRole, part))
        screen = PickScreen(f"Column for {part}", picks, present, none="leave it out", is_free=True)
        self.app.push_screen(screen, lambda value: self._take(part, value))

    @on(OptionList.OptionSelected)
    def _selected(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        self.action_choose()

    def _take(self, part: str, value: str | None) -> None:
        """Give a part another column, or none for an empty text; nothing changes for None."""
        if value is None or self.sample is None:
            return
        self.say("")
        self._is_saving = False
        if part == FORMAT:
            self.wanted = value or "auto"
            self.recognize()
        else:
            role = cast(ColumnRole, part)
            if value == self.columns.get(role, ""):
                return
            changed = {**self.columns, role: value}
            self.columns = {known: changed[known] for known in ROLES if changed.get(known)}
            self.by_hand = True
        self.show_again()

    def action_step(self, step: int) -> None:
        """The next column for the part under the cursor, none after the last."""
        part = self.current
        values = [candidate.value for candidate in self._candidates(part)]
        if part != FORMAT:
            values.insert(0, "")
        present = self.wanted if part == FORMAT else self.columns.get(cast(ColumnRole, part), "")
        if values:
            here = values.index(present) if present in values else 0
            self._take(part, values[(here + step) % len(values)])

    def action_leave_out(self) -> None:
        """No column for the part under the cursor; the format is detected."""
        if self.current:
            self._take(self.current, "")

    def action_clear(self) -> None:
        """Name no columns, and let the format be detected."""
        if self.sample is None:
            return
        self.by_hand, self.wanted = False, "auto"
        self._is_saving = False
        self.recognize()
        self.say(f"No columns are named now; {self.keys['columns.save'].display} takes them out of the configuration.")
        self.show_again()

    # Saving.

    def action_save(self) -> None:
        """Put format and columns into the configuration, if rows can be read so."""
        if self.sample is None:
            return
        # What is saved has been seen: the rows are read first.
        self._is_saving = self.preview is None
        if self.preview is None:
            return
        is_plain = self.named is None and self.wanted == "auto"
        if self.preview.problem is not None and not is_plain:
            self.say(f"✗ Not saved. {self.preview.problem}")
        elif self.form.train and not is_plain:
            shown = one_line(self.form.train, 60)
            question = f"The configuration trains on {shown}, not on this file."
            self.query_one(AskBar).ask_key("train", question, {"t": "train on this file", "k": "keep that"})
        else:
            self._save({})

    @on(AskBar.Chosen)
    def _answered(self, message: AskBar.Chosen) -> None:
        message.stop()
        self._save({"data.train": self.view.path.absolute()} if message.key == "t" else {})

    @on(AskBar.Cancelled)
    def _cancelled(self, message: AskBar.Cancelled) -> None:
        message.stop()

    def _save(self, more: Mapping[str, Path]) -> None:
        named = self.named
        values: dict[str, Any] = {"data.columns": named, "data.format": None if self.wanted == "auto" else self.wanted}
        if named is None:
            notice = "No columns are named; rows are read by their format."
        else:
            notice = f"Columns by hand: {', '.join(f'{role} is {one_line(name, 40)}' for role, name in named.items())}."
        self.app.post_message(OptionsChosen({**values, **more}, notice))
        self.dismiss(None)

    def action_help(self) -> None:
        """Explain the keys."""
        self.app.push_screen(HelpScreen("Columns", HELP, self.keys, "columns"))

    def action_back(self) -> None:
        """Go back; nothing is changed."""
        self.dismiss(None)
