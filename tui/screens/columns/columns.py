"""Screen of the column mapping, with a preview of the first rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Vertical
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from core.config.choices import ROLES, ColumnRole, Objective
from core.errors import UserError
from core.text import one_line
from tui.datasets.summary import counted
from tui.datasets.view import DatasetView
from tui.keys import KeyTable, bindings
from tui.screens.columns.column_plan import (
    FORMAT,
    KEY_ROLES,
    SPEAKER_ROLES,
    Choosable,
    ColumnChoice,
    ColumnPreview,
    ColumnSample,
    preview_columns,
    read_sample,
    visible_roles,
)
from tui.screens.overlay import Overlay
from tui.screens.pick import Pick, PickScreen
from tui.shell import shell_of
from tui.widgets.lists.choice_list import ChoiceList
from tui.widgets.lists.conversation import Conversation
from tui.widgets.strips import fit, style_of
from tui.widgets.text_block import TextBlock

_ROLE_WIDTH, _VALUE_WIDTH = 16, 22
_HINT = "Choose a column for user and one for assistant, or one for messages, or one for text."


class PartList(ChoiceList):
    """The format and, in groups, the parts with their columns."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._parts: list[Choosable | None] = []  # None for the title of a group

    @property
    def current(self) -> Choosable | None:
        """The part under the cursor, if any."""
        place = self.highlighted
        return self._parts[place] if place is not None and place < len(self._parts) else None

    def show(
        self, sample: ColumnSample, choice: ColumnChoice, preview: ColumnPreview | None, at: Choosable | None
    ) -> None:
        """Show a choice, with the cursor on a part.

        Args:
            sample: The first rows and columns of the file.
            choice: The chosen format and columns.
            preview: The preview of the first rows; None while they are being read.
            at: The part; None or an unknown part means the format.
        """
        parts: list[Choosable | None] = [FORMAT]
        options = [Option(_format_line(choice, preview, at == FORMAT))]
        for title, group in visible_roles(choice.columns):
            parts.append(None)
            options.append(Option(title, disabled=True))
            for role, about in group:
                parts.append(role)
                options.append(Option(_part_line(role, about, sample, choice, at == role)))
        place = parts.index(at) if at is not None and at in parts else 0
        if parts != self._parts:
            self._parts = parts
            self.clear_options()
            self.add_options(options)
        else:
            for index, option in enumerate(options):
                self.replace_option_prompt_at_index(index, option.prompt)
        if self.highlighted != place:
            self.highlighted = place


def _format_line(choice: ColumnChoice, preview: ColumnPreview | None, at_cursor: bool) -> Content:
    known = preview.detection if preview is not None else None
    if choice.named is not None and known is not None:
        about = f"{known.format}, by the columns"
    elif known is not None:
        about = f"{known.format}: {known.reason}" if choice.wanted == "auto" else known.reason
    else:
        about = "" if preview is None else "not recognized"
    return _line("format", f"{choice.wanted} ▾", about, at_cursor, choice.wanted != "auto")


def _part_line(role: ColumnRole, about: str, sample: ColumnSample, choice: ColumnChoice, at_cursor: bool) -> Content:
    column = choice.columns.get(role)
    if column is None:
        return _line(role, "–", about, at_cursor, False)
    example = sample.example(column)
    if role in (*KEY_ROLES, *SPEAKER_ROLES):
        example = next((c.example for c in choice.candidates(role, sample) if c.value == column), about)
    return _line(role, f"{one_line(column, 100)} ▾", example, at_cursor, choice.by_hand)


def _line(name: str, value: str, about: str, at_cursor: bool, is_chosen: bool) -> Content:
    style = "bold $foreground" if is_chosen else "$muted"
    return Content.assemble(
        ("▸ " if at_cursor else "  ", "$primary bold"),
        (fit(name, _ROLE_WIDTH), "bold" if at_cursor else ""),
        (fit(value, _VALUE_WIDTH), style),
        ("  " + about, "$muted"),
    )


def summary(preview: ColumnPreview, is_named: bool) -> Content:
    """The number of usable rows, or the reason why none can be read."""
    if preview.problem is not None:
        text = Content.styled(one_line(f"✗ {preview.problem.message}", 400), "$limit bold")
        hint = one_line(preview.problem.hint if is_named else _HINT, 200)
        return Content.assemble(text, ("\n  " + hint, "$muted")) if hint else text
    count = f"{preview.used} of the first {counted(preview.total, 'row')} can be used"
    mark, style = ("✓", "$ok") if preview.used == preview.total else ("!", "$near")
    text = Content.styled(f"{mark} {count}", f"{style} bold")
    if preview.warning:
        text = Content.assemble(text, (f" · {one_line(preview.warning, 300)}", "$near"))
    if preview.detection is not None and not is_named:
        reason = one_line(f"{preview.detection.format}: {preview.detection.reason}", 300)
        text = Content.assemble(text, (f"\n{reason}", "$muted"))
    return text


#: Minimum columns of the screen for the parts to the left of the rows instead of above them.
WIDE = 120


class ColumnsScreen(Overlay[None]):
    """The screen of the column mapping; saves to the configuration in the app.

    Args:
        view: The dataset.
        wanted: ``data.format`` of the configuration.
        columns: ``data.columns``; None if it is not set.
        objective: ``train.objective``.
    """

    DEFAULT_CSS = style_of("ColumnsScreen")
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("columns")]
    SCOPE = "columns"
    AUTO_FOCUS = "#columns-list"

    def __init__(
        self,
        view: DatasetView,
        wanted: str = "auto",
        columns: Mapping[str, str] | None = None,
        objective: Objective = "sft",
    ) -> None:
        super().__init__()
        self.view, self._given, self._objective = view, columns or {}, objective
        known = {role: self._given[role] for role in ROLES if isinstance(self._given.get(role), str)}
        self.choice = ColumnChoice(wanted, known, columns is not None)
        """The current choice."""
        self.sample: ColumnSample | None = None
        """The columns of the file, once its first rows have been read."""
        self.preview: ColumnPreview | None = None
        """The preview of the rows; None while it is being read."""
        self._is_saving = False

    def compose(self) -> ComposeResult:
        with Vertical(id="columns-box"):
            with Container(id="columns-body"):
                yield PartList(id="columns-list")
                with Vertical(id="columns-preview"):
                    yield TextBlock(id="columns-problem")
                    yield Conversation(id="columns-rows")
            yield TextBlock(id="columns-note")

    def on_mount(self) -> None:
        """Read the first rows."""
        self._refresh_title()
        hints = self.keys.hints(
            f"columns.{name}" for name in ("choose", "next", "none", "clear", "save", "help", "back")
        )
        self.query_one("#columns-box").border_subtitle = Content(hints)
        self._read()

    def on_resize(self, event: events.Resize) -> None:
        """Put the parts to the left of the rows if there is room."""
        self.set_class(event.size.width >= WIDE, "-wide")

    # Parts of the screen.

    @property
    def keys(self) -> KeyTable:
        """The key table with the user's changes."""
        return shell_of(self).keys

    @property
    def parts(self) -> PartList:
        """The list of the format and the parts."""
        return self.query_one("#columns-list", PartList)

    @property
    def conversation(self) -> Conversation:
        """The preview as a conversation."""
        return self.query_one("#columns-rows", Conversation)

    def say(self, text: str) -> None:
        """Show a message at the bottom; an empty text clears it."""
        style = "$limit" if text.startswith("✗") else "$foreground"
        self.query_one("#columns-note", TextBlock).show(Content.styled(one_line(text, 400), style))

    # Reading. Workers get a description because Textual's default is the repr of their arguments: whole rows.

    @work(thread=True, exclusive=True, group="columns-read", description="columns-read")
    def _read(self) -> None:
        try:
            self.post_call(self._sample_read, read_sample(self.view))
        except UserError as error:
            self.post_call(self.say, f"✗ {error}")

    def _sample_read(self, sample: ColumnSample) -> None:
        self.sample = sample
        if sample.left_out:
            columns = counted(sample.left_out, "column")
            self.say(f"! {columns} cannot be chosen: too many, or with a name that no text file can hold.")
        if strangers := [key for key in self._given if key not in ROLES]:
            self.say(f"! data.columns has no part {one_line(strangers[0], 40)}; what you save is without it.")
        choice = self.choice
        choice.recognize(sample)
        self.show_again(FORMAT if not choice.by_hand else next(iter(choice.columns), FORMAT))

    def show_again(self, at: Choosable | None = None) -> None:
        """Update the list and read the preview again."""
        self.preview = None
        self._show_form(at or self.parts.current)
        self._refresh_title()
        if self.sample is not None:
            self._preview(self.sample, self.choice.wanted, self.choice.named)

    @work(thread=True, exclusive=True, group="columns-preview", description="columns-preview")
    def _preview(self, sample: ColumnSample, wanted: str, columns: Mapping[ColumnRole, str] | None) -> None:
        self.post_call(self._previewed, wanted, columns, preview_columns(sample, wanted, columns, self._objective))

    def _previewed(self, wanted: str, columns: Mapping[ColumnRole, str] | None, preview: ColumnPreview) -> None:
        if (wanted, columns) != (self.choice.wanted, self.choice.named):
            return
        self.preview = preview
        self.conversation.show(preview.turns)
        self.query_one("#columns-problem", TextBlock).show(summary(preview, columns is not None))
        self._show_form(self.parts.current)
        if self._is_saving:
            self.action_save()

    # Display.

    def _refresh_title(self) -> None:
        choice, box = self.choice, self.query_one("#columns-box")
        guess = self.sample.guess if self.sample is not None else {}
        if choice.named is not None:
            how = "a guess" if choice.wanted == "auto" and choice.named == guess else "by hand"
        else:
            how = "as recognized" if choice.is_plain else "by its format"
        box.border_title = Content(f"Columns · {one_line(self.view.path.name, 60)} · {how}")
        self.query_one("#columns-preview").border_title = Content(" the first rows ")

    def _show_form(self, at: Choosable | None) -> None:
        if self.sample is not None:
            self.parts.show(self.sample, self.choice, self.preview, at)

    @on(OptionList.OptionHighlighted)
    def _moved(self, message: OptionList.OptionHighlighted) -> None:
        message.stop()
        self._show_form(self.parts.current)

    # Moving.

    def action_move(self, rows: int) -> None:
        """Move the cursor, or scroll the rows if they have the focus."""
        if self.conversation.has_focus:
            self.conversation.move(rows)
        else:
            self.parts.move(rows)

    def action_move_page(self, direction: int) -> None:
        """Move the cursor by a page, or scroll."""
        if self.conversation.has_focus:
            self.conversation.move_page(direction)
        else:
            self.parts.move(direction * max(1, self.parts.size.height - 2))

    def action_move_end(self, direction: int) -> None:
        """Go to the first or last part or line."""
        self.action_move(direction * 10**6)

    # Choice.

    def action_choose(self) -> None:
        """Choose from a searchable list."""
        part, choice = self.parts.current, self.choice
        if self.sample is None or part is None:
            return
        picks = [Pick(candidate.value, candidate.example) for candidate in choice.candidates(part, self.sample)]
        if part == FORMAT:
            screen = PickScreen("Format", picks, choice.wanted)
        else:
            present = choice.columns.get(part)
            screen = PickScreen(f"Column for {part}", picks, present, none="leave it out", is_free=True)
        self.app.push_screen(screen, lambda value: self._take(part, value))

    def take(self) -> None:
        """Choose from a searchable list."""
        self.action_choose()

    def _take(self, part: Choosable, value: str | None) -> None:
        """Set the column of a part, or clear it with an empty text; None changes nothing."""
        if value is None or self.sample is None:
            return
        self.say("")
        self._is_saving = False
        if self.choice.take(part, value, self.sample):
            self.show_again()

    def action_step(self, step: int) -> None:
        """Set the part under the cursor to the next column; none follows the last."""
        part = self.parts.current
        if part is None or self.sample is None:
            return
        values = [candidate.value for candidate in self.choice.candidates(part, self.sample)]
        if part != FORMAT:
            values.insert(0, "")
        if values:
            present = self.choice.value(part)
            here = values.index(present) if present in values else 0
            self._take(part, values[(here + step) % len(values)])

    def action_leave_out(self) -> None:
        """Clear the column under the cursor, or detect the format."""
        if (part := self.parts.current) is not None:
            self._take(part, "")

    def action_clear(self) -> None:
        """Clear the columns and detect the format."""
        if self.sample is None:
            return
        self.choice.clear(self.sample)
        self._is_saving = False
        self.say(f"No columns are named now; {self.keys['columns.save'].display} takes them out of the configuration.")
        self.show_again()

    # Saving.

    def action_save(self) -> None:
        """Save format and columns to the configuration, if rows can be read with them."""
        if self.sample is None:
            return
        # Only a previewed choice is saved.
        self._is_saving = self.preview is None
        if self.preview is None:
            return
        if self.preview.problem is not None and not self.choice.is_plain:
            self.say(f"✗ Not saved. {self.preview.problem}")
        else:
            self._save()

    def _save(self) -> None:
        choice = self.choice
        named, format_ = choice.named, None if choice.wanted == "auto" else choice.wanted
        values: dict[str, Any] = {"data.columns": named, "data.format": format_}
        if named is None:
            notice = "No columns are named; rows are read by their format."
        else:
            notice = f"Columns by hand: {', '.join(f'{role} is {one_line(name, 40)}' for role, name in named.items())}."
        # First, so that the dialog of a failure is on the panes.
        self.dismiss(None)
        shell_of(self).configuration.choose_options(values, notice, self.view.path)
