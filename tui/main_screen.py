"""The screen with the five panes: tiled where there is room, one at a time where there is not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container
from textual.css.query import NoMatches
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Static

from tui.messages import FirstPaint, PaneShown
from tui.panes import TILED, PaneSpec, pane_spec
from tui.panes.base import Pane
from tui.widgets.key_bar import KeyBar
from tui.widgets.status_bar import StatusBar
from tui.widgets.too_small import TooSmall

#: Columns and rows from which the panes stand side by side.
TILED_SIZE = (160, 45)
#: Columns and rows below which there is no use in drawing anything.
SMALLEST = (60, 20)


class PaneSlot(Container):
    """The place of one pane: an empty frame at first, the pane itself once it has been imported."""

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
        """Import the pane and put it in the frame's place."""
        if self.pane is None:
            self.pane = self.spec.load()()
            await self.query_children(".pane-frame").remove()
            await self.mount(self.pane)
        return self.pane

    def focus_pane(self) -> None:
        """Focus the pane, or the first focusable widget in it."""
        pane = self.pane
        if pane is None:
            return
        candidates: Iterable[Widget] = [pane, *pane.query("*").results(Widget)]
        preferred = next((widget for widget in candidates if widget.has_class("-first-focus")), None)
        target = preferred or next((widget for widget in candidates if widget.focusable), None)
        if target is not None:
            target.focus()


class MainScreen(Screen[None]):
    """The main screen: header, panes, and key bar."""

    BINDINGS: ClassVar[list[BindingType]] = []
    # Not the first widget that could have it: the pane to begin in is focused, once it is there.
    AUTO_FOCUS = ""

    def __init__(self, pane: str = "train", *, zoomed: bool = False) -> None:
        super().__init__()
        self.current = pane
        """The focused pane."""
        self.zoomed = zoomed
        """Whether the current pane fills a terminal that has room for four."""
        self._arranged = False

    def compose(self) -> ComposeResult:
        yield StatusBar(id="status")
        with Container(id="workspace"):
            for name in (*TILED, "runs"):
                yield PaneSlot(pane_spec(name))
        yield KeyBar(id="keys")
        yield TooSmall(SMALLEST)

    def on_mount(self) -> None:
        """Lay the panes out for the present size, and post a message once that has been painted."""
        self._arrange()
        self.slot(self.current).focus_pane()
        self.call_after_refresh(self._painted)

    def _painted(self) -> None:
        self.post_message(FirstPaint())

    async def load_panes(self) -> None:
        """Import and mount the panes that were only frames so far, the visible ones first."""
        for slot in sorted(self.query(PaneSlot), key=lambda slot: not slot.display):
            await slot.load()
            if self.focused is None and slot.spec.id == self.current:
                slot.focus_pane()

    def slot(self, name: str) -> PaneSlot:
        """The slot of a pane."""
        return self.query_one(f"#slot-{name}", PaneSlot)

    @property
    def can_tile(self) -> bool:
        """Whether the terminal is large enough for four panes."""
        return self.size.width >= TILED_SIZE[0] and self.size.height >= TILED_SIZE[1]

    @property
    def is_tiled(self) -> bool:
        """Whether four panes are tiled now."""
        return self.can_tile and not self.zoomed and self.current in TILED

    @property
    def is_too_small(self) -> bool:
        """Whether only the notice about the size is shown."""
        return self.size.width < SMALLEST[0] or self.size.height < SMALLEST[1]

    def show_pane(self, name: str, *, zoom: bool = False) -> None:
        """Focus a pane; it fills the screen where only one fits or ``zoom`` is set."""
        self.current, self.zoomed = name, zoom
        self._arrange()
        self.slot(name).focus_pane()

    def press_number(self, name: str) -> None:
        """Number key: zoom that pane; pressed again, tile the panes again."""
        again = self.zoomed and self.current == name
        self.show_pane(name, zoom=self.can_tile and not again)

    def tile(self) -> None:
        """Tile the panes again."""
        self.show_pane(self.current if self.current in TILED else "train")

    def on_resize(self) -> None:
        """Adapt the layout to the terminal's size."""
        self._arrange()

    def _arrange(self) -> None:
        with contextlib.suppress(NoMatches):  # A resize may come before the widgets are there.
            workspace = self.query_one("#workspace")
            tiled = self.is_tiled
            workspace.set_class(tiled, "-tiled")
            for slot in self.query(PaneSlot):
                name = slot.spec.id
                shown = name in TILED if tiled else name == self.current
                if slot.display != shown or not self._arranged:
                    slot.display = shown
                    self.post_message(PaneShown(name, shown))
                slot.set_class(name == self.current, "-current")
            self.query_one(TooSmall).display = self.is_too_small
            self._arranged = True
            self._show_keys()

    def _show_keys(self) -> None:
        self.query_one(KeyBar).show(self.current, offers_tiles=self.can_tile and not self.is_tiled)

    @on(events.DescendantFocus)
    def _focus_moved(self, event: events.DescendantFocus) -> None:
        slot = next((node for node in event.widget.ancestors_with_self if isinstance(node, PaneSlot)), None)
        if slot is not None and slot.spec.id != self.current:
            self.current = slot.spec.id
            self._arrange()
        else:
            self._show_keys()
