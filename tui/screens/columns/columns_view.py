"""A column for each part to look at, with the first rows as they are then read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from core.data.formats.mapping import ROLES, ColumnRole
from core.data.formats.shapes import Objective
from core.errors import UserError
from core.text import one_line
from tui.datasets.summary import counted
from tui.datasets.view import DatasetView
from tui.keys import KeyTable, bindings, yields_to_text
from tui.screens.columns.column_plan import (
    KEY_ROLES,
    SPEAKER_ROLES,
    ColumnPreview,
    ColumnSample,
    candidates,
    preview_columns,
    read_sample,
    visible_roles,
)
from tui.screens.overlay import Overlay
from tui.shell import shell_of
from tui.widgets.forms.ask_bar import AskBar, takes_text
from tui.widgets.lists.choice_list import ChoiceList
from tui.widgets.lists.conversation import Conversation
from tui.widgets.strips import fit
from tui.widgets.text_block import TextBlock

#: Columns from which the parts stand beside the rows instead of above them.
WIDE = 120
_ROLE_WIDTH, _VALUE_WIDTH = 16, 22
FORMAT = "format"
_HINT = "Choose a column for user and one for assistant, or one for messages, or one for text."


@dataclass(frozen=True)
class ColumnForm:
    """What the screen begins with, from the configuration.

    Args:
        wanted: ``data.format``.
        columns: ``data.columns``; None where it is not set.
        train: What the configuration trains on instead, where it does not name the file that is shown.
        objective: ``train.objective``.
    """

    wanted: str = "auto"
    columns: Mapping[str, str] | None = None
    train: str = ""
    objective: Objective = "sft"


@dataclass
class SampleRead(Message):
    """The first rows have been read, or cannot be."""

    sample: ColumnSample | None
    error: UserError | None = None


@dataclass
class ColumnsPreviewed(Message):
    """The first rows have been read with columns."""

    wanted: str
    columns: Mapping[ColumnRole, str] | None
    preview: ColumnPreview


class ColumnsView(Overlay[None]):
    """Shows the parts and the rows; what is done with the part under the cursor is up to the screen.

    Args:
        view: The dataset.
        form: What the configuration says.
    """

    DEFAULT_CSS = """
    ColumnsView {
        background: $background;
        & > #columns-box {
            height: 100%; width: 100%; padding: 0 1; background: $background;
            border: round $border-focus; border-title-style: bold; border-subtitle-color: $muted;
        }
        & #columns-note { height: auto; max-height: 3; }
        & #columns-body { height: 1fr; layout: vertical; }
        & #columns-list { width: 100%; height: 1fr; max-height: 100%; }
        & #columns-preview {
            width: 100%; height: 1fr; border-top: solid $border; border-title-color: $muted;
            &:focus-within { border-top: solid $border-focus; border-title-color: $foreground; }
        }
        & #columns-problem { height: auto; max-height: 4; }
        &.-wide #columns-body { layout: horizontal; }
        &.-wide #columns-list { width: 88; height: 100%; }
        &.-wide #columns-preview { width: 1fr; height: 100%; border-left: solid $border; padding-left: 1; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("columns")]
    AUTO_FOCUS = "#columns-list"

    def __init__(self, view: DatasetView, form: ColumnForm) -> None:
        super().__init__()
        self.view, self.form = view, form
        self.sample: ColumnSample | None = None
        """What the file offers, once it has been read."""
        self.wanted = form.wanted
        """The format that is chosen."""
        given = form.columns or {}
        self.columns: dict[ColumnRole, str] = {role: given[role] for role in ROLES if isinstance(given.get(role), str)}
        """The columns by part, named by hand or recognized."""
        self.by_hand = form.columns is not None
        """Whether the columns are named by hand."""
        self.preview: ColumnPreview | None = None
        """The first rows as they are read so; None while that is found out."""
        self._rows: list[str] = []

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Where something is being written, the keys that begin it are text."""
        if yields_to_text(action, self.keys) and takes_text(self.focused):
            return False
        return super().check_action(action, parameters)

    def compose(self) -> ComposeResult:
        with Vertical(id="columns-box"):
            with Container(id="columns-body"):
                yield ChoiceList(id="columns-list")
                with Vertical(id="columns-preview"):
                    yield TextBlock(id="columns-problem")
                    yield Conversation(id="columns-rows")
            yield TextBlock(id="columns-note")
            yield AskBar(id="columns-ask")

    def on_mount(self) -> None:
        """Read the first rows."""
        self._refresh_title()
        hints = self.keys.hints(
            f"columns.{name}" for name in ("choose", "next", "none", "clear", "save", "help", "back")
        )
        self.query_one("#columns-box").border_subtitle = Content(hints)
        self._read()

    def on_resize(self, event: events.Resize) -> None:
        """Put the parts beside the rows where there is room for it."""
        self.set_class(event.size.width >= WIDE, "-wide")

    # Parts.

    @property
    def keys(self) -> KeyTable:
        """The keys as the user has them."""
        return shell_of(self).keys

    @property
    def options(self) -> ChoiceList:
        """The format and the parts."""
        return self.query_one("#columns-list", ChoiceList)

    @property
    def conversation(self) -> Conversation:
        """The rows as they are read."""
        return self.query_one("#columns-rows", Conversation)

    @property
    def current(self) -> str:
        """The part under the cursor, or ``format``; empty while there is none."""
        place = self.options.highlighted
        return self._rows[place] if place is not None and place < len(self._rows) else ""

    @property
    def named(self) -> dict[ColumnRole, str] | None:
        """The columns as the configuration is to have them; None where it names none."""
        return dict(self.columns) if self.by_hand and self.columns else None

    def say(self, text: str) -> None:
        """Say something below, until the next key; empty says nothing."""
        style = "$limit" if text.startswith("✗") else "$foreground"
        self.query_one("#columns-note", TextBlock).show(Content.styled(one_line(text, 400), style))

    # Reading. Workers are described, or Textual would do it with the repr of what they get, which is whole rows.

    @work(thread=True, exclusive=True, group="columns-read", description="columns-read")
    def _read(self) -> None:
        try:
            self.post_message(SampleRead(read_sample(self.view)))
        except UserError as error:
            self.post_message(SampleRead(None, error))

    @on(SampleRead)
    def _sample_read(self, message: SampleRead) -> None:
        self.sample = message.sample
        if message.sample is None:
            self.say(f"✗ {message.error}")
            return
        if message.sample.left_out:
            columns = counted(message.sample.left_out, "column")
            self.say(f"! {columns} cannot be chosen: too many, or with a name that no text file can hold.")
        if strangers := [key for key in self.form.columns or {} if key not in ROLES]:
            self.say(f"! data.columns has no part {one_line(strangers[0], 40)}; what you save is without it.")
        self.recognize()
        self.show_again(FORMAT if not self.by_hand else next(iter(self.columns), FORMAT))

    def recognize(self) -> None:
        """Without columns by hand: those that the format reads."""
        if not self.by_hand and self.sample is not None:
            self.columns = self.sample.parts(self.wanted)

    def show_again(self, at: str = "") -> None:
        """Show the form anew, and read the rows again."""
        self.preview = None
        self._show_form(at or self.current)
        self._refresh_title()
        if self.sample is not None:
            self._preview(self.sample, self.wanted, self.named)

    @work(thread=True, exclusive=True, group="columns-preview", description="columns-preview")
    def _preview(self, sample: ColumnSample, wanted: str, columns: Mapping[ColumnRole, str] | None) -> None:
        self.post_message(
            ColumnsPreviewed(wanted, columns, preview_columns(sample, wanted, columns, self.form.objective))
        )

    @on(ColumnsPreviewed)
    def _previewed(self, message: ColumnsPreviewed) -> None:
        if (message.wanted, message.columns) != (self.wanted, self.named):
            return
        self.preview = message.preview
        self.conversation.show(message.preview.turns)
        self.query_one("#columns-problem", TextBlock).show(_summary(message.preview, self.named is not None))
        self._show_form(self.current)
        self.rows_seen()

    def rows_seen(self) -> None:
        """Called when the rows have been read with what is chosen."""

    # What is shown.

    def _refresh_title(self) -> None:
        box = self.query_one("#columns-box")
        how = "by hand" if self.named is not None else "as recognized" if self.wanted == "auto" else "by its format"
        box.border_title = Content(f"Columns · {one_line(self.view.path.name, 60)} · {how}")
        self.query_one("#columns-preview").border_title = Content(" the first rows ")

    def _show_form(self, at: str) -> None:
        sample = self.sample
        if sample is None:
            return
        rows: list[str] = [FORMAT]
        options = [Option(self._format_line(at == FORMAT))]
        for title, parts in visible_roles(self.columns):
            rows.append("")
            options.append(Option(title, disabled=True))
            for role, about in parts:
                rows.append(role)
                options.append(Option(self._part_line(role, about, sample, at == role)))
        place = rows.index(at) if at in rows else 0
        if rows != self._rows:
            self._rows = rows
            self.options.clear_options()
            self.options.add_options(options)
        else:
            for index, option in enumerate(options):
                self.options.replace_option_prompt_at_index(index, option.prompt)
        if self.options.highlighted != place:
            self.options.highlighted = place

    def _format_line(self, at_cursor: bool) -> Content:
        known = self.preview.detection if self.preview is not None else None
        if self.named is not None and known is not None:
            about = f"{known.format}, by the columns"
        elif known is not None:
            about = f"{known.format}: {known.reason}" if self.wanted == "auto" else known.reason
        else:
            about = "" if self.preview is None else "not recognized"
        return self._line("format", f"{self.wanted} ▾", about, at_cursor, self.wanted != "auto")

    def _part_line(self, role: ColumnRole, about: str, sample: ColumnSample, at_cursor: bool) -> Content:
        column = self.columns.get(role)
        if column is None:
            return self._line(role, "–", about, at_cursor, False)
        example = sample.example(column)
        if role in (*KEY_ROLES, *SPEAKER_ROLES):
            example = next((c.example for c in candidates(role, self.columns, sample) if c.value == column), about)
        return self._line(role, f"{one_line(column, 100)} ▾", example, at_cursor, self.by_hand)

    @staticmethod
    def _line(name: str, value: str, about: str, at_cursor: bool, is_chosen: bool) -> Content:
        style = "bold $foreground" if is_chosen else "$muted"
        return Content.assemble(
            ("▸ " if at_cursor else "  ", "$primary bold"),
            (fit(name, _ROLE_WIDTH), "bold" if at_cursor else ""),
            (fit(value, _VALUE_WIDTH), style),
            ("  " + about, "$muted"),
        )

    @on(OptionList.OptionHighlighted)
    def _moved(self, message: OptionList.OptionHighlighted) -> None:
        message.stop()
        self._show_form(self.current)

    # Moving.

    def action_move(self, rows: int) -> None:
        """Move the cursor, or scroll the rows where they have the keys."""
        if self.conversation.has_focus:
            self.conversation.move(rows)
            return
        places = [place for place, row in enumerate(self._rows) if row]
        if places:
            here = places.index(self.options.highlighted) if self.options.highlighted in places else 0
            self.options.highlighted = places[max(0, min(here + rows, len(places) - 1))]

    def action_move_page(self, direction: int) -> None:
        """A page up or down."""
        if self.conversation.has_focus:
            self.conversation.move_page(direction)
        else:
            self.action_move(direction * max(1, self.options.size.height - 2))

    def action_move_end(self, direction: int) -> None:
        """To the first or the last part or line."""
        self.action_move(direction * 10**6)


def _summary(preview: ColumnPreview, is_named: bool) -> Content:
    """How many of the rows can be used so, or why none can be read."""
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
