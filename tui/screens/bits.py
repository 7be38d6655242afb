"""The screen of the measurement of four bits: what it takes, its progress, and the sentence with the layers below."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from textual import events, on, work
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message

from core.config.schema import Config
from core.errors import UserError
from core.quantization.job import measure
from core.quantization.result import HEAD, QuantizationCost, facts, layer_lines, sentence
from core.text import one_line
from tui.screens.overlay import Overlay
from tui.screens.progress import Progressed, progress_bar
from tui.shell import shell_of
from tui.widgets.charts.meter import bar
from tui.widgets.text_block import TextBlock

_ABOUT = (
    "Loads the base one layer at a time, in 16 bit and in 4 bits, and compares what both say of a few of your rows: "
    "held-out ones, where there are any. It takes less memory than the run, about a minute on a card and longer on a "
    "processor, and says which layers are worth 16 bit. Nothing of the configuration is changed."
)
#: Columns of the box, and of its borders and padding.
_WIDTH, _FRAME = 96, 7
#: Most cells of the longest bar.
_BAR = 30


class _LeftError(Exception):
    """The screen has been left."""


@dataclass(frozen=True)
class Activity:
    """What goes on, how much of it is done, and of how much."""

    name: str = ""
    done: int | None = None
    total: int | None = None


@dataclass
class Ended(Message):
    """The measurement has ended: with a result, or with the reason for which there is none."""

    cost: QuantizationCost | None = None
    reason: str = ""


class BitsScreen(Overlay[tuple[str, ...] | None]):
    """The measurement of four bits; returns the patterns of the layers to keep in 16 bit, where they are taken.

    Args:
        config: The configuration, paths absolute.
    """

    DEFAULT_CSS = """
    BitsScreen { align: center middle; background: $background 60%; }
    BitsScreen > VerticalScroll {
        width: 96; max-width: 98%; height: auto; max-height: 94%; padding: 1 2;
        border: round $border-focus; border-title-style: bold; border-subtitle-color: $muted;
        background: $surface; scrollbar-size-vertical: 1;
    }
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._config = config
        self._activity: Activity | None = None
        self._ended: Ended | None = None
        self._has_left = False

    @property
    def known_keys(self) -> Container[str]:
        """The keys that do something here."""
        return {"enter", "escape", "q", "j", "k", "down", "up", "pageup", "pagedown"}

    def compose(self) -> ComposeResult:
        """A text, which scrolls; the keys are in the border, where they are always seen."""
        with VerticalScroll() as box:
            box.border_title = Content("What 4 bits cost")
            yield TextBlock()

    def on_mount(self) -> None:
        """Say what it takes, before anything is done."""
        self._show()

    def on_resize(self) -> None:
        """Wrap for the width."""
        self._show()

    def on_unmount(self) -> None:
        """Have the thread end the process of a measurement that is on."""
        self._has_left = True

    def on_key(self, event: events.Key) -> None:
        """Begin, take the layers, leave, or scroll."""
        box = self.query_one(VerticalScroll)
        scroll = {
            "j": box.scroll_down,
            "down": box.scroll_down,
            "k": box.scroll_up,
            "up": box.scroll_up,
            "pagedown": box.scroll_page_down,
            "pageup": box.scroll_page_up,
        }
        if event.key in scroll:
            scroll[event.key](animate=False)
        elif event.key == "enter" and self._activity is None:
            self._activity = Activity("starting")
            self._show()
            self._run()
        elif event.key == "enter" and self._patterns:
            self.dismiss(self._patterns)
        elif event.key == "escape" or (event.key in ("q", "enter") and self._ended is not None):
            self.dismiss()
        else:
            return
        event.stop()

    @property
    def _patterns(self) -> tuple[str, ...]:
        """The layers that are worth 16 bit, with those that the configuration keeps already."""
        cost = self._ended.cost if self._ended is not None else None
        return () if cost is None or cost.kept is None else (*cost.keep_16bit, *cost.kept.patterns)

    @work(thread=True, group="bits")
    def _run(self) -> None:
        def told(name: str, done: int | None, total: int | None) -> None:
            if self._has_left:
                raise _LeftError
            self.post_from_thread(Progressed(Activity(name, done, total)))

        try:
            self.post_from_thread(Ended(measure(self._config, told)))
        except _LeftError:
            return
        except UserError as error:
            self.post_from_thread(Ended(reason=str(error)))

    @on(Progressed)
    def _progressed(self, message: Progressed[Activity]) -> None:
        self._activity = message.progress
        self._show()

    @on(Ended)
    def _has_ended(self, message: Ended) -> None:
        self._ended = message
        self._show()

    def _show(self) -> None:
        self.query_one(TextBlock).show(self._text())
        if self._ended is not None:
            keys = "enter keep them in 16 bit  j k scroll  esc close" if self._patterns else "j k scroll  esc close"
        else:
            keys = "enter begin  esc leave" if self._activity is None else "esc cancel"
        self.query_one(VerticalScroll).border_subtitle = Content(keys)

    def _text(self) -> Content:
        if self._activity is None:
            return Content(_ABOUT)
        if self._ended is None:
            return self._progress(self._activity)
        cost = self._ended.cost
        if cost is None:
            return Content.assemble(("It was not measured. ", "bold"), one_line(self._ended.reason, 600))
        lines = [Content.styled(sentence(cost), "bold"), Content("")]
        lines += [Content(line) for line in facts(cost)]
        lines += [Content(""), Content.styled(HEAD, "$muted")]
        room = min(_WIDTH, self.app.size.width * 98 // 100) - _FRAME - len(HEAD) - 2
        for layer in layer_lines(cost):
            full, _ = bar(layer.share, max(min(room, _BAR), 0), shell_of(self).glyphs)
            style = "bold" if layer.is_kept else ""
            lines.append(Content.assemble((layer.text, style), (f"  {full}", "$primary")))
        return Content("\n").join(lines)

    def _progress(self, activity: Activity) -> Content:
        lines = [Content(f"{activity.name} …")]
        if activity.done is not None and activity.total:
            share = activity.done / activity.total
            lines = [
                Content(f"{activity.name}: {activity.done} of {activity.total}"),
                progress_bar(share, shell_of(self).glyphs),
            ]
        return Content("\n").join(lines)
