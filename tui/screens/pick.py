"""Searchable list to pick an entry from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any, ClassVar

from rich.cells import cell_len
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import Screen, ScreenResultType
from textual.widgets import OptionList

from core.text import one_line
from core.units import format_count
from tui.screens.overlay import Overlay
from tui.shell import shell_of
from tui.widgets.forms.inputs import SafeInput
from tui.widgets.lists.choice_list import PointedList
from tui.widgets.strips import fit, style_of

#: Maximum number of listed entries; more are found by typing.
LISTED = 200
_NAME_WIDTH = 28
#: Columns of the box with its border, in a terminal that has them.
_WIDTH = 84


@dataclass(frozen=True)
class Pick:
    """An entry; its texts are sanitized before they are shown."""

    value: str
    about: str = ""
    name: str = ""
    """The name in the list; by default the value."""
    hint: str | None = None
    """A few characters at the right end of the line, such as a key; None for a list without them."""


@dataclass(frozen=True)
class Discard:
    """Entries that can be discarded by pressing the key twice."""

    values: frozenset[str]
    """Their values."""
    discard: Callable[[str], object]
    """Discards the entry with a value."""


class FindScreen(Overlay[ScreenResultType]):
    """Screen to find an entry of a list by typing; ``enter`` takes the entry under the cursor, whatever has the focus.

    Args:
        placeholder: The text of the empty input.
    """

    DEFAULT_CSS = style_of("FindScreen")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "back", show=False),
        Binding("down,ctrl+n", "move(1)", show=False),
        Binding("up", "move(-1)", show=False),
        Binding("pagedown", "move(8)", show=False),
        Binding("pageup", "move(-8)", show=False),
    ]
    AUTO_FOCUS = "SafeInput"
    TAKES_TEXT = ENTER_TAKES = True

    def __init__(self, placeholder: str) -> None:
        super().__init__()
        self.line, self.options = SafeInput(placeholder=placeholder), PointedList()

    def action_move(self, rows: int) -> None:
        """Move the cursor; the focus stays in the input."""
        self.options.move(rows)


class PickScreen(FindScreen[str | None]):
    """Screen to pick an entry; returns its value, an empty text for no choice, or nothing for ``esc``.

    Args:
        title: The subject of the choice.
        picks: The entries.
        present: The current choice.
        none: The meaning of no choice; empty if a choice is required.
        is_free: Accept the typed text as well.
        discard: Entries that can be discarded; None for none.
        find: Finds the entries for a typed text; by default, by a part of the name.
    """

    DEFAULT_CSS = style_of("PickScreen")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "move(1)", show=False),
        Binding("delete,ctrl+d", "discard", show=False, priority=True),
    ]

    def __init__(
        self,
        title: str,
        picks: Sequence[Pick],
        present: str | None = None,
        *,
        none: str = "",
        is_free: bool = False,
        discard: Discard | None = None,
        find: Callable[[str], Sequence[Pick]] | None = None,
    ) -> None:
        super().__init__("a part of the name")
        self._title, self._picks, self._present = one_line(title, 60), tuple(picks), present
        self._none, self._is_free = none, is_free
        self._discard = discard
        self._doomed: str | None = None
        self._find = find or self._with_name
        # A list of keys keeps its position while it gets shorter.
        self.set_class(any(pick.hint for pick in self._picks), "-keys")
        self._names = [one_line(pick.name or pick.value).lower() for pick in self._picks]
        self._shown: list[str] = []
        self._listed_for = ""

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = Content(self._title)
            discard = "  del discard" if self._discard is not None else ""
            more = f"  {shell_of(self).keys['app.help'].display} help"
            box.border_subtitle = Content(f"type to find  ↑ ↓ move  enter choose{discard}  esc back{more}")
            yield self.line
            yield self.options

    def on_mount(self) -> None:
        """Start at the current choice."""
        self._list("")
        if self._present in self._shown:
            self.options.highlighted = self._shown.index(self._present)

    @property
    def _room(self) -> int:
        """Columns of a line after the pointer."""
        return min(_WIDTH, self.app.size.width * 96 // 100) - 8

    def on_resize(self) -> None:
        """Realign the hints at the right end."""
        if any(pick.hint for pick in self._picks):
            chosen = self._chosen
            self._list(self.line.value)
            if chosen in self._shown:
                self.options.highlighted = self._shown.index(chosen)

    def _with_name(self, typed: str) -> list[Pick]:
        term = typed.strip().lower()
        return [pick for pick, name in zip(self._picks, self._names, strict=True) if term in name]

    def _list(self, typed: str) -> None:
        self._listed_for = typed
        term = typed.strip().lower()
        found = self._find(typed)
        entries = list(found[:LISTED])
        if self._none and not term:
            entries.insert(0, Pick("", self._none, "–"))
        if self._is_free and term and all(pick.value != typed.strip() for pick in found):
            entries.append(Pick(typed.strip(), "as typed"))
        self._shown = [pick.value for pick in entries]
        self._doomed = None
        prompts = [_prompt(pick, pick.value == self._present, self._room) for pick in entries]
        if (rest := len(found) - LISTED) > 0:
            prompts.append(Content.styled(f"  … {format_count(rest)} more; type a part of the name", "$muted"))
        if not entries:
            prompts.append(Content.styled("  none has this in its name", "$muted"))
        self.options.fill(prompts, range(len(entries), len(prompts)))
        self.options.highlighted = 0 if entries else None

    @on(OptionList.OptionHighlighted)
    def _highlighted(self, message: OptionList.OptionHighlighted) -> None:
        message.stop()
        self._doomed = None

    @on(SafeInput.Changed)
    def _typed(self, message: SafeInput.Changed) -> None:
        message.stop()
        self._list(message.value)

    def take(self) -> None:
        """Choose the entry under the cursor; text whose entries are not listed yet is looked up first."""
        if self.line.value != self._listed_for:
            self._list(self.line.value)
        if (place := self.options.highlighted) is not None and place < len(self._shown):
            self.dismiss(self._shown[place])

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Allow discarding only for discardable entries; elsewhere its keys edit the text."""
        if action == "discard":
            return self._discard is not None and self._chosen in self._discard.values
        return super().check_action(action, parameters)

    @property
    def _chosen(self) -> str:
        place = self.options.highlighted
        return self._shown[place] if place is not None and place < len(self._shown) else ""

    def action_discard(self) -> None:
        """Discard the entry under the cursor on the second press."""
        chosen, place = self._chosen, self.options.highlighted
        if self._discard is None or place is None:
            return
        if self._doomed != chosen:
            self._doomed = chosen
            question = Content.assemble(("▸ ", "$primary bold"), ("del again discards it for good", "$near"))
            self.options.replace_option_prompt_at_index(place, question)
            return
        self._discard.discard(chosen)
        kept = [(pick, name) for pick, name in zip(self._picks, self._names, strict=True) if pick.value != chosen]
        self._picks, self._names = tuple(pick for pick, _ in kept), [name for _, name in kept]
        self._list(self._listed_for)
        if self._shown:
            self.options.highlighted = min(place, len(self._shown) - 1)


def find_entry(screen: Screen[Any]) -> None:
    """Find an entry of a list by a part of its text, and move the cursor to it.

    Args:
        screen: The screen over the panes with the list.
    """
    if isinstance(screen, Overlay) and (entries := screen.entries()):
        found = PickScreen("Find", [Pick(str(place), name=text, hint="") for place, text in entries])
        screen.app.push_screen(found, lambda place: screen.point_at(int(place)) if place is not None else None)


def _prompt(pick: Pick, is_present: bool, room: int) -> Content:
    name = one_line(pick.name or pick.value, 200)
    if pick.hint is not None:
        width = max(room - cell_len(pick.hint) - 1, 1)
        name = shorten(name, width, placeholder=" …", break_on_hyphens=False)
        return Content.assemble(fit(name, width), " ", (pick.hint, "$foreground bold"))
    return Content.assemble(
        ("● " if is_present else "  ", "$primary bold"),
        (fit(name, _NAME_WIDTH), ""),
        ("  " + one_line(pick.about, 200), "$muted"),
    )
