"""Main screen with the five panes, and the desktop, through which the controllers reach it.

Four, two or a single pane is visible, depending on the terminal's size.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any, ClassVar, Literal, TypeVar

from textual import events, on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.content import Content
from textual.css.query import NoMatches
from textual.geometry import NULL_OFFSET, NULL_SPACING, Region, Size, clamp
from textual.layout import ArrangeResult, Layout, WidgetPlacement
from textual.notifications import SeverityLevel
from textual.reactive import Reactive
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Static

from core.errors import UserError
from core.text import one_line
from tui.keys import KEYS, KeyTable
from tui.panes import PANES, TILED, Panes, PaneSpec, pane_spec
from tui.panes.base import Pane
from tui.shell import shell_of
from tui.state import AppState
from tui.widgets.key_bar import KeyBar
from tui.widgets.status_bar import StatusBar
from tui.widgets.strips import style_of

#: Minimum columns and rows for drawing anything.
SMALLEST = (60, 20)
#: Minimum columns and rows for two panes.
PAIRED_SIZE = (120, 30)
#: Minimum columns and rows for four panes.
TILED_SIZE = (160, 45)

Direction = Literal["beside", "over"]
"""Layout of two panes: side by side, or stacked."""

#: Panes that are shown together while no run is live.
_PARTNERS = {"data": "config", "config": "data", "train": "chat", "chat": "train"}
#: Order of two panes: the run keeps its place next to any other.
_ORDER = ("train", "data", "config", "chat", "runs")
#: Rows from which, and columns up to which, two panes are stacked.
_TALL = 44
_WIDE = 150
#: Minimum and maximum columns of the data and the configuration; the run's chart takes the rest.
_LEFT = (80, 110)
#: Rows that show the basic options with their memory plan, and an answer with its question.
_CONFIG_ROWS, _CHAT_ROWS = 28, 18


def room(width: int, height: int) -> Literal[1, 2, 4]:
    """The number of panes that a terminal has room for."""
    if width >= TILED_SIZE[0] and height >= TILED_SIZE[1]:
        return 4
    return 2 if width >= PAIRED_SIZE[0] and height >= PAIRED_SIZE[1] else 1


def companions(current: str, places: int, *, live: bool) -> tuple[str, ...]:
    """The visible panes when one is requested, in layout order; a live run is among them.

    Args:
        current: The requested pane.
        places: The number of panes that fit.
        live: Whether a run is live.
    """
    if places == 1:
        return (current,)
    if places == 4:
        if current != "runs":
            return ("data", "config", "train", "chat")
        return ("runs", "train", "chat") if live else ("runs",)
    partner = _PARTNERS.get(current)
    if live and current != "train":
        partner = "train"
    pair = {current, partner} if partner is not None else {current}
    return tuple(name for name in _ORDER if name in pair)


def direction(shown: Sequence[str], width: int, height: int) -> Direction:
    """The layout of two panes by the terminal's shape: side by side, unless it is too narrow and tall enough."""
    if "runs" in shown:
        # A table, whose columns need the width.
        return "over"
    return "over" if width < _WIDE and height >= _TALL else "beside"


def places(shown: Sequence[str], size: Size, way: Direction) -> dict[str, Region]:
    """The region of each visible pane.

    Args:
        shown: The panes, as from :func:`companions`.
        size: The size of the workspace.
        way: The layout of two panes.
    """
    width, height = size
    if len(shown) == 1:
        return {shown[0]: Region(0, 0, width, height)}
    if len(shown) == 2:
        first, second = shown
        if way == "beside":
            left = width // 2
            return {first: Region(0, 0, left, height), second: Region(left, 0, width - left, height)}
        top = (height + 1) // 2
        return {first: Region(0, 0, width, top), second: Region(0, top, width, height - top)}
    left = clamp(width * 46 // 100, *_LEFT)
    top = height - clamp(_CHAT_ROWS, height * 34 // 100, height * 42 // 100)
    found = {"train": Region(left, 0, width - left, top), "chat": Region(left, top, width - left, height - top)}
    if "runs" in shown:
        found["runs"] = Region(0, 0, left, height)
    else:
        top = height - clamp(_CONFIG_ROWS, height // 2, height * 60 // 100)
        found["data"] = Region(0, 0, left, top)
        found["config"] = Region(0, top, left, height - top)
    return found


class TooSmall(Widget):
    """Notice that covers the screen and names a sufficient size."""

    DEFAULT_CSS = style_of("TooSmall")

    def render(self) -> Content:
        """The present and the minimum size."""
        width, height = self.app.size
        return Content(
            f"{width}×{height} is too small.\nMake the terminal at least {SMALLEST[0]}×{SMALLEST[1]}.\n"
            "A live run goes on.\n"
            f"{shell_of(self).keys['app.quit'].display_last} leaves."
        )

    def on_resize(self) -> None:
        """Show the new size."""
        self.refresh()


class PaneSlot(Container):
    """Slot of a pane: an empty frame at first, the pane itself once it has been imported."""

    def __init__(self, spec: PaneSpec[Pane]) -> None:
        super().__init__(id=f"slot-{spec.id}")
        self.spec = spec
        self.pane: Pane | None = None

    def compose(self) -> ComposeResult:
        if self.spec.at_once:
            self.pane = self.spec.load()()
            yield self.pane
        else:
            frame = Static("", classes="pane-frame", markup=False)
            frame.border_title = f"{self.spec.number} {self.spec.title}"
            yield frame

    async def load(self) -> Pane:
        """Import the pane, and replace the frame with it."""
        if self.pane is None:
            self.pane = self.spec.load()()
            was_current = any(child.has_class("-current") for child in self.children)
            await self.query_children(".pane-frame").remove()
            await self.mount(self.pane)
            self.mark(is_current=was_current)
        return self.pane

    def mark(self, *, is_current: bool) -> None:
        """Draw the border of the focused pane, or of an unfocused one."""
        for child in self.children:
            if child.has_class("-current") is not is_current:
                # No style inside the pane depends on it, and restyling all of its widgets is slow.
                child.set_class(is_current, "-current", update=False)
                self.app.stylesheet.update_nodes([child])

    def focus_pane(self) -> None:
        """Focus the pane, or the first focusable widget in it."""
        pane = self.pane
        if pane is None:
            return
        candidates = [widget for widget in (pane, *pane.query("*").results(Widget)) if widget.focusable]
        # Not the rows behind the directory tree; but a list that is hidden while it is empty keeps the pane's keys.
        there = [widget for widget in candidates if self._displays(widget)] or candidates
        preferred = next((widget for widget in there if widget.has_class("-first-focus")), None)
        target = preferred or next(iter(there), None)
        if target is not None:
            # Unlike focus(), at once: the next key may be waiting.
            self.screen.set_focus(target)

    def _displays(self, widget: Widget) -> bool:
        return all(node.display for node in takewhile(lambda node: node is not self, widget.ancestors_with_self))


class PaneLayout(Layout):
    """Layout of the slots by the arrangement of the panes."""

    name = "panes"

    def __init__(self) -> None:
        self.shown: tuple[str, ...] = ()
        self.way: Direction = "beside"

    def arrange(self, parent: Widget, children: list[Widget], size: Size, greedy: bool = True) -> ArrangeResult:  # noqa: ARG002 - Textual calls it
        """Place the visible slots."""
        found = places(self.shown, size, self.way)
        return [
            WidgetPlacement(region, NULL_OFFSET, NULL_SPACING, slot)
            for slot in children
            if isinstance(slot, PaneSlot) and (region := found.get(slot.spec.id)) is not None
        ]


class Workspace(Container):
    """Part of the screen with the panes."""

    def __init__(self) -> None:
        super().__init__(id="workspace")
        self._panes = PaneLayout()

    @property
    def layout(self) -> Layout:
        """The layout of the panes."""
        return self._panes

    def place(self, shown: tuple[str, ...], way: Direction) -> None:
        """Place the visible panes; ``way`` is the layout of two."""
        if (shown, way) == (self._panes.shown, self._panes.way):
            return
        self._panes.shown, self._panes.way = shown, way
        for slot in self.query_children(PaneSlot):
            # Setting `display` would request a layout and a repaint for each slot. This does the rest of it, so that
            # the focus order and the layout are computed again.
            slot.styles.set_rule("display", "block" if slot.spec.id in shown else "none")
            slot._nodes.updated()
        self._clear_arrangement_cache()
        self.refresh(layout=True)


class MainScreen(Screen[None]):
    """Main screen: header, panes, and key bar.

    Args:
        pane: The pane that is focused at first.
        way: The layout of two panes; None to choose it by the terminal's shape.
        zoomed: Whether the pane fills a terminal that has room for more.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "next_pane(1)", show=False),
        Binding("shift+tab", "next_pane(-1)", show=False),
        *(
            Binding(key.keys, f"end_card('{key.id}')", key.description, show=False, id=key.id)
            for key in KEYS
            if key.scope == "train" and key.palette
        ),
    ]
    # The initial pane is focused once it is mounted, not the first focusable widget.
    AUTO_FOCUS = ""
    # Widgets repaint themselves when they get or lose the focus; the screen would repaint everything.
    focused: Reactive[Widget | None] = Reactive(None, repaint=False)

    def __init__(self, pane: str = "train", way: Direction | None = None, *, zoomed: bool = False) -> None:
        super().__init__()
        self.current = pane
        """The focused pane."""
        self.zoomed = zoomed
        """True if that pane fills a terminal that has room for more."""
        self._way = way
        self._live = False
        self._shown: tuple[str, ...] = ()
        self._room = 0
        self._arranged = False

    def compose(self) -> ComposeResult:
        yield StatusBar(id="status")
        with Workspace():
            for name in (*TILED, "runs"):
                yield PaneSlot(pane_spec(name))
        yield KeyBar(id="keys")
        yield TooSmall()

    def on_mount(self) -> None:
        """Lay out the panes, and call the app back after the first paint."""
        self._arrange()
        self.slot(self.current).focus_pane()
        self.call_after_refresh(self._painted)

    def _painted(self) -> None:
        # In the app's task, which mounts the panes.
        self.app.call_later(shell_of(self).first_painted)

    async def load_panes(self) -> None:
        """Import and mount the panes that are still frames, the visible ones first."""
        for slot in sorted(self.query(PaneSlot), key=lambda slot: not slot.display):
            await slot.load()
            if self.focused is None and slot.spec.id == self.current:
                slot.focus_pane()

    def slot(self, name: str) -> PaneSlot:
        """The slot of a pane."""
        return self.query_one(f"#slot-{name}", PaneSlot)

    @property
    def room(self) -> int:
        """The number of panes that fit: one, two or four."""
        return room(*self.size)

    @property
    def is_tiled(self) -> bool:
        """True if more than one pane is visible."""
        return len(self._shown) > 1

    def show_pane(self, name: str, *, zoom: bool = False) -> None:
        """Focus a pane; it fills the screen if ``zoom`` is set or only one fits."""
        self.current, self.zoomed = name, zoom
        self._arrange()
        self.slot(name).focus_pane()

    def press_number(self, name: str) -> None:
        """Handle a number key: focus the pane; on the second press zoom it, and on the third show the others again."""
        again = self.current == name
        if again and not self.zoomed and self.room > 1 and not self.is_tiled:
            # It fills the screen without a zoom, so there is nothing to enlarge.
            self.show_pane("train")
        else:
            self.show_pane(name, zoom=self.room > 1 and self.zoomed is not again)

    def action_next_pane(self, step: int) -> None:
        """Focus the next visible pane, or the one before; where a single one is visible, show the next one of all."""
        names = list(self._shown) if self.is_tiled else [spec.id for spec in PANES]
        self.show_pane(names[(names.index(self.current) + step) % len(names)], zoom=self.zoomed)

    def tile(self) -> None:
        """Show as many panes as fit."""
        self.show_pane(self.current if self.current in TILED else "train")

    @property
    def way(self) -> Direction | None:
        """The layout of the two visible panes; None unless there are two."""
        return self._direction if len(self._shown) == 2 else None

    def turn(self) -> Direction | None:
        """Switch two visible panes between stacked and side by side; returns the layout, None unless there are two."""
        if (way := self.way) is None:
            return None
        self._way = "over" if way == "beside" else "beside"
        self._arrange()
        return self._way

    def follow_run(self, *, live: bool) -> None:
        """Keep a live run visible if there is room for a second pane."""
        # The end of a run moves nothing: the user goes on looking at the same panes.
        is_new, self._live = live and not self._live, live
        if is_new and self._arranged and "train" not in self._shown:
            self._arrange()

    def on_resize(self) -> None:
        """Adapt the layout to the terminal's size."""
        self._arrange()

    @property
    def _direction(self) -> Direction:
        return self._way or direction(self._shown, *self.size)

    def _choose(self) -> tuple[str, ...]:
        """The panes to show; they change only if the current pane is not among them or the room has changed."""
        places = 1 if self.zoomed else self.room
        fits = places == self._room and self.current in self._shown
        self._room = places
        if fits and (not self._live or places == 1 or "train" in self._shown):
            return self._shown
        return companions(self.current, places, live=self._live)

    def _arrange(self) -> None:
        with suppress(NoMatches):  # A resize may come before the widgets are mounted.
            workspace = self.query_one(Workspace)
            before, self._shown = self._shown, self._choose()
            workspace.place(self._shown, self._direction)
            for slot in self.query(PaneSlot):
                name = slot.spec.id
                shown = name in self._shown
                if (name in before) != shown or not self._arranged:
                    # Its threads start after the paint, which they would delay.
                    self.call_after_refresh(shell_of(self).pane_shown, name, shown=shown)
                slot.mark(is_current=name == self.current)
            self.query_one(TooSmall).display = self.size.width < SMALLEST[0] or self.size.height < SMALLEST[1]
            self._arranged = True
            self._show_keys()

    def _show_keys(self) -> None:
        other = {"beside": "stacked", "over": "side by side", None: ""}[self.way]
        self.query_one(KeyBar).show(self.current, offers_tiles=self.zoomed and self.room > 1, turn=other)
        for slot in self.query(PaneSlot):
            if slot.pane is not None and slot.pane.is_mounted:
                slot.pane.focus_moved()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Enable the keys of a run's end card while it is visible; those of the focused pane come before them."""
        if action == "end_card":
            pane = self.slot("train").pane
            return pane is not None and "train" in self._shown and pane.offers(str(parameters[0]))
        return super().check_action(action, parameters)

    async def action_end_card(self, identity: str) -> None:
        """Run the action of a key of the end card."""
        shell = shell_of(self)
        await shell.run_key(shell.keys[identity])

    @on(events.DescendantFocus)
    def _focus_moved(self, event: events.DescendantFocus) -> None:
        slot = next((node for node in event.widget.ancestors_with_self if isinstance(node, PaneSlot)), None)
        if slot is not None and slot.spec.id != self.current:
            self.current = slot.spec.id
            self._arrange()
        else:
            self._show_keys()


ResultT = TypeVar("ResultT")
KindT = TypeVar("KindT")


class Desktop:
    """Panes, dialogs and notices for the controllers, with the app's state, keys and clock.

    Args:
        app: The app, for its screen stack, notices and workers.
        state: The app's state.
        keys: The key table with the user's changes.
        clock: The clock, in Unix seconds.
        write: Writes text to the terminal as is.
    """

    def __init__(
        self,
        app: App[Any],
        state: AppState,
        keys: KeyTable,
        clock: Callable[[], float],
        write: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.state, self.keys, self.clock = state, keys, clock
        self._app, self._write = app, write
        self.panes = Panes(self._find_pane)

    @property
    def main(self) -> MainScreen:
        """The main screen, even while a dialog covers it."""
        return next(screen for screen in self._app.screen_stack if isinstance(screen, MainScreen))

    def _find_pane(self, name: str) -> Pane | None:
        # The app may be starting or exiting.
        with suppress(NoMatches, StopIteration):
            return self.main.slot(name).pane
        return None

    def show_pane(self, name: str, *, zoom: bool = False) -> None:
        """Focus a pane; it fills the screen if ``zoom`` is set."""
        self.main.show_pane(name, zoom=zoom)

    def show_header(self) -> None:
        """Update the header."""
        # Messages may arrive before the header is mounted, and timers fire while the app exits.
        with suppress(NoMatches, StopIteration):
            main = self.main
            main.follow_run(live=self.state.live_run is not None)
            main.query_one(StatusBar).show(self.state, self.clock(), jobs=self.keys["app.jobs"].display)

    # Dialogs.

    @property
    def is_covered(self) -> bool:
        """True while a dialog or screen covers the panes."""
        return len(self._app.screen_stack) > 1

    @property
    def is_watched(self) -> bool:
        """True while the terminal has the focus, or does not report it."""
        return self._app.app_focus

    @property
    def top(self) -> Screen[object]:
        """The active screen."""
        return self._app.screen

    def find_screen(self, kind: type[KindT]) -> KindT | None:
        """The open screen of a class, anywhere in the stack; None if there is none."""
        return next((screen for screen in self._app.screen_stack if isinstance(screen, kind)), None)

    def open(self, screen: Screen[ResultT], answered: Callable[[ResultT | None], None] | None = None) -> None:
        """Push a screen; ``answered`` gets its result."""
        self._app.push_screen(screen, answered)

    def open_alone(
        self,
        screen: Screen[ResultT],
        answered: Callable[[ResultT | None], None] | None = None,
        *,
        clears: bool = False,
    ) -> None:
        """Push a screen unless another covers the panes; ``clears`` removes notices, which would cover its keys."""
        if self.is_covered:
            return
        if clears:
            self._app.clear_notifications()
        self.open(screen, answered)

    def uncover(self) -> None:
        """Pop all screens over the panes."""
        while self.is_covered:
            self._app.pop_screen()

    def drop_question(self, run: str) -> None:
        """Close an open dialog about a live run that has ended."""
        from tui.screens.choice import ChoiceDialog

        if isinstance(self.top, ChoiceDialog) and self.top.live_run == run:
            self.top.dismiss("")

    def fail(self, title: str, error: UserError) -> None:
        """Show an error dialog for a failed request of the user."""
        from tui.screens.dialogs import ErrorDialog

        self.open(ErrorDialog(title, error))

    # Notices.

    def tell(self, text: str, title: str = "", *, severity: SeverityLevel = "information", seconds: float = 4) -> None:
        """Show a notice for some seconds; its text is not parsed as markup."""
        self._app.notify(text, title=title, severity=severity, timeout=seconds, markup=False)

    def warn(self, title: str, text: str) -> None:
        """Show a warning as a notice."""
        self.tell(one_line(text, 400), one_line(title, 60), severity="warning", seconds=6)

    def call_for_attention(self, title: str, text: str) -> None:
        """Ring the bell and send a desktop notification, each only if enabled in ``notify.toml``."""
        from core.notify import load_notify_settings

        try:
            settings = load_notify_settings()
        except UserError as error:
            self.warn("notify.toml is not read", str(error))
            return
        if settings.bell:
            self._app.bell()
        if settings.desktop:
            # OSC 9; terminals without desktop notifications ignore it.
            self._write(f"\x1b]9;{one_line(f'{title}: {text}' if text else title, 200)}\x07")

    def clear_notices(self) -> None:
        """Remove all notices."""
        self._app.clear_notifications()

    # Scheduling.

    def call_later(self, callback: Callable[..., object], *args: object) -> None:
        """Call a function after the queued messages have been handled."""
        self._app.call_later(callback, *args)

    def run(self, work: Callable[[], Awaitable[None]], group: str) -> None:
        """Run a coroutine as a worker."""
        self._app.run_worker(work, group=group)

    def leave(self, line: str | None) -> None:
        """Exit the app.

        Args:
            line: The line printed afterwards.
        """
        self._app.exit(line)
