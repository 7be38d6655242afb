"""Screen of the presets: their purpose, their changes, and the user's own values that stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.content import Content
from textual.widgets import OptionList

from core.config.document import ConfigDocument
from core.config.schema import find_option
from core.errors import UserError
from core.models.find import STARTER_NAME
from core.presets.choose import Choice
from core.presets.library import Preset, presets
from core.presets.provenance import FOR_ROWS
from core.presets.switch import Change, Switch, chosen_in, plan_switch, preset_in
from core.text import one_line
from tui.datasets.summary import counted
from tui.screens.overlay import Overlay
from tui.widgets.forms.option_field import format_value
from tui.widgets.lists.choice_list import PointedList
from tui.widgets.strips import fit, style_of
from tui.widgets.text_block import HangingBlock

if TYPE_CHECKING:
    from core.presets.begin import Beginning


def tell_switch(switch: Switch) -> str:
    """The changes made by a preset, in half a sentence."""
    felt, kept = len(switch.felt), len(switch.kept)
    changed = f"{counted(felt, 'option')} changed" if felt else "nothing has another value"
    stays = f", {kept} kept as you wrote {'it' if kept == 1 else 'them'}" if kept else ""
    return f"preset {switch.preset.name}: {changed}{stays}"


def suitable(document: ConfigDocument) -> Beginning:
    """The preset that suits model, card and data, and what suits the rows; slow, because it asks the driver and reads
    model and rows.

    Raises:
        UserError: If the model is too large for the card.
    """
    from core.hardware.card import find_card
    from core.presets.begin import Beginning, held_out_of, suitable_preset

    gpu = document.get("hardware.gpu")
    card = find_card(gpu=gpu if isinstance(gpu, str) else None) if document.get("hardware.device") != "cpu" else None
    base = document.get("model.base")
    directory = document.path.parent if document.path is not None else None
    rows = None
    # Without readable data, model and card decide.
    with suppress(UserError):
        rows = document.validate()
    name = base if isinstance(base, str) else STARTER_NAME
    try:
        choice = suitable_preset(name, card, rows, directory=directory)
    except (UserError, OSError):
        # The rows may be at fault; a model that is too large raises again.
        return Beginning(suitable_preset(name, card, None, directory=directory))
    # As it was before the choice, whose values would count as the user's.
    former = ConfigDocument(document.dumps(), document.path)
    for option in _chosen_for_rows(document):
        former.set(option, None)
    return Beginning(choice, held_out_of(former.validate(), choice) if rows is not None else None)


def _chosen_for_rows(document: ConfigDocument) -> dict[str, Any]:
    """The values in force that were chosen for the rows of a configuration."""
    chosen = chosen_in(document)
    values = chosen.values if chosen is not None else {}
    return {name: value for name, value in values.items() if name in FOR_ROWS and document.get(name) == value}


#: Minimum columns for the changes to the right of the list instead of below it.
BESIDE_WIDTH = 120
_NAME_WIDTH = 26
_COUNT_WIDTH = 12
_OPTION_WIDTH = 29
_VALUE_WIDTH = 14
_AUTO = "auto"


class PresetScreen(Overlay[Switch | None]):
    """Screen of the presets; returns the chosen switch, or nothing for ``esc``.

    Args:
        document: The configuration, which is only read.
        choose: Finds what suits it, in a thread; raises :class:`UserError` if no preset does.
    """

    DEFAULT_CSS = style_of("PresetScreen")
    HELP = "presets"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss(None)", show=False),
        Binding("A", "toggle_own", show=False),
        Binding("tab", "app.focus_next", show=False),
    ]
    AUTO_FOCUS = "ChoiceList"
    ENTER_TAKES = True

    def __init__(self, document: ConfigDocument, choose: Callable[[], Beginning]) -> None:
        super().__init__()
        self._document, self._choose = document, choose
        self._present = preset_in(document)
        self._auto: Choice | None = None
        self._notes: Mapping[str, str] = {}
        self._reason = "looking at model, card and data …"
        self._keeps_own = True
        # A heading has no name.
        self._names: list[str] = []

    def compose(self) -> ComposeResult:
        """The list, and the changes of the preset under the cursor."""
        with Container() as box:
            box.border_title = "Presets"
            yield PointedList()
            with VerticalScroll():
                yield HangingBlock(Content(" "))

    def on_mount(self) -> None:
        """Start at the preset in force, or at ``auto``, which says why, if the app chose it."""
        self._names = [_AUTO]
        group = None
        for preset in presets().values():
            if preset.memory_gb != group:
                group = preset.memory_gb
                self._names.append("")
            self._names.append(preset.name)
        headings = [place for place, name in enumerate(self._names) if not name]
        self._list.fill([Content(" ")] * len(self._names), headings)
        present, chosen = self._present, chosen_in(self._document)
        is_own = present is not None and (chosen is None or chosen.preset != present.name)
        start = self._names.index(present.name) if present is not None and is_own else 0
        self._list.highlighted = start
        self._fill()
        self._find_auto()

    @property
    def _list(self) -> PointedList:
        return self.query_one(PointedList)

    @property
    def _scroll(self) -> VerticalScroll:
        return self.query_one(VerticalScroll)

    def on_resize(self, event: events.Resize) -> None:
        """Put the changes to the right of the list, or below it."""
        self.set_class(event.size.width >= BESIDE_WIDTH, "-beside")
        self.call_after_refresh(self._fill)

    @work(thread=True, exclusive=True, group="preset-auto")
    def _find_auto(self) -> None:
        try:
            found = self._choose()
        except UserError as error:
            self.post_call(self._auto_chosen, None, str(error))
        else:
            self.post_call(self._auto_chosen, found, found.choice.why)

    def _auto_chosen(self, found: Beginning | None, reason: str) -> None:
        self._auto, self._reason = found.choice if found is not None else None, reason
        self._notes = found.held_out.notes if found is not None and found.held_out is not None else {}
        self._fill()

    # Display.

    def switch_of(self, name: str) -> Switch | None:
        """The changes of a preset; None while ``auto`` is unknown."""
        if name != _AUTO:
            return plan_switch(self._document, presets()[name], keep_own=self._keeps_own)
        if self._auto is None:
            return None
        return plan_switch(
            self._document, self._auto.preset, max_length=self._auto.max_length, keep_own=self._keeps_own
        )

    def _fill(self) -> None:
        """Update all lines of the list, and the changes."""
        width = max(self._list.size.width, 20)
        for place, name in enumerate(self._names):
            self._list.draw(place, self._line(place, name, width))
        own = "A replace mine" if self._keeps_own else "A keep mine"
        self.query_one(Container).border_subtitle = Content(f"enter apply  {own}  tab read  / find  esc back")
        self._show_changes()

    def _line(self, place: int, name: str, width: int) -> Content:
        if not name:
            preset = presets()[self._names[place + 1]]
            return Content(f"{preset.memory_gb} GB card" if preset.memory_gb else "CPU")
        switch = self.switch_of(name)
        is_present = self._present is not None and self._present.name == name
        about = self._reason if name == _AUTO else presets()[name].about
        rest = width - 4 - _NAME_WIDTH - _COUNT_WIDTH
        return Content.assemble(
            ("● " if is_present else "  ", "$primary bold"),
            (fit(name, _NAME_WIDTH), ""),
            (fit(_counted(switch), _COUNT_WIDTH), "$accent" if switch is not None and switch.felt else "$muted"),
            (fit(one_line(about), rest), "$muted"),
        )

    def _show_changes(self) -> None:
        name = self._chosen
        if not name:
            return
        switch = self.switch_of(name)
        title = name if switch is None or name != _AUTO else f"auto: {switch.preset.name}"
        text = describe_switch(switch, title, self._reason if name == _AUTO else "")
        given, notes = _chosen_for_rows(self._document), self._notes
        if name == _AUTO and switch is not None and given:
            # Sentences have no room in a column.
            lines = [
                Content.assemble("=  ", (f"{option} {_text(option, value)}", "bold"), f"  {notes.get(option, '')}")
                for option, value in given.items()
            ]
            text = Content("\n").join([text, Content(""), Content.styled("For the rows", "$primary bold"), *lines])
        self.query_one(HangingBlock).show(text)
        self._scroll.scroll_home(animate=False)

    @property
    def _chosen(self) -> str:
        place = self._list.highlighted
        return self._names[place] if place is not None and place < len(self._names) else ""

    @on(OptionList.OptionHighlighted)
    def _highlighted(self, message: OptionList.OptionHighlighted) -> None:
        message.stop()
        self._show_changes()

    # Actions.

    def take(self) -> None:
        """Choose the preset under the cursor."""
        if (switch := self.switch_of(self._chosen) if self._chosen else None) is not None:
            self.dismiss(switch)

    def action_toggle_own(self) -> None:
        """Switch between keeping and replacing the user's own values."""
        self._keeps_own = not self._keeps_own
        self._fill()


def _counted(switch: Switch | None) -> str:
    if switch is None:
        return ""
    return counted(len(switch.felt), "change") if switch.felt else "as it is"


def describe_switch(switch: Switch | None, title: str, reason: str) -> Content:
    """Changes of a preset: each option with its value before and after, then the options that stay.

    Args:
        switch: The changes; None if they are not known.
        title: The name of the preset.
        reason: The reason for the choice of ``auto``; empty otherwise.
    """
    lines = [Content.styled(title, "bold")]
    if reason:
        lines.append(Content(one_line(reason)))
    if switch is None:
        return Content("\n").join(lines)
    if not reason:
        lines.append(Content(one_line(switch.preset.about)))
    lines.append(Content(""))
    if not switch.felt:
        lines.append(Content("No value changes."))
    lines += [_change_line(change, switch.preset) for change in switch.felt]
    silent = len(switch.changes) - len(switch.felt)
    if silent:
        what = "1 default is" if silent == 1 else f"{silent} defaults are"
        lines.append(Content.styled(f"  {what} written down; nothing changes by that.", "$muted"))
    if switch.kept:
        lines += [Content(""), Content.styled("Kept as you wrote it", "$primary bold")]
        lines += [
            Content.assemble(
                f"= {fit(change.option, _OPTION_WIDTH)} ",
                (fit(_text(change.option, change.before), _VALUE_WIDTH), "bold"),
                (f" preset {_text(change.option, change.after)}", "$muted"),
            )
            for change in switch.kept
        ]
    return Content("\n").join(lines)


def _change_line(change: Change, preset: Preset) -> Content:
    note = preset.notes.get(change.option, "") if change.after == preset.values.get(change.option) else ""
    return Content.assemble(
        ("~ ", "$accent bold"),
        f"{fit(change.option, _OPTION_WIDTH)} ",
        (f"{_text(change.option, change.before)} → ", "$muted"),
        (_text(change.option, change.after), "bold"),
        (f"  {one_line(note)}" if note else "", "$muted"),
    )


def _text(name: str, value: object) -> str:
    option = find_option(name)
    if value is None and option is not None:
        value = option.default
    return one_line(format_value(value), 40) or "–"
