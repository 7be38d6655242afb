"""Boxes of screens: a scrolling text, a record, a report, and the difference between two configurations."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import ClassVar, Literal, TypeAlias

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.screen import ScreenResultType
from textual.widget import Widget

from core.config.compare import DiffLine
from core.errors import UserError
from core.text import one_line, sanitize
from tui.datasets.summary import counted
from tui.files import save_text
from tui.screens.overlay import INPUT_BINDINGS, Overlay, key_line
from tui.shell import shell_of
from tui.widgets.forms.inputs import SafeInput
from tui.widgets.lists.choice_list import ChoiceList, ListBox
from tui.widgets.strips import fitting, style_of
from tui.widgets.text_block import TextBlock

#: How far a key scrolls: by a line, by a page, or to an end.
Way: TypeAlias = Literal["down", "up", "page_down", "page_up", "home", "end"]


def scroll(box: VerticalScroll, way: Way) -> None:
    """Scroll a box at once, without animation."""
    getattr(box, f"scroll_{way}")(animate=False)


_KEYS: dict[str, Way] = {
    "j,down": "down",
    "k,up": "up",
    "pagedown,space": "page_down",
    "pageup": "page_up",
    "g,home": "home",
    "G,end": "end",
}


class OverlayBox(VerticalScroll, inherit_bindings=False):
    """Scrolling box of an overlay, with its title in the upper border and its keys in the lower one.

    Args:
        children: Its content.
        title: Its title, external text in it sanitized.
        width: Maximum number of columns, including border, padding and scrollbar.
        tight: Use less padding, for code and tables.
    """

    DEFAULT_CSS = style_of("OverlayBox")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(keys, f"scroll('{way}')", show=False) for keys, way in _KEYS.items()
    ]

    class KeysShown(Message):
        """The keys of a box have changed, below the screen that gets this."""

    def __init__(self, *children: Widget, title: str, width: int, tight: bool = False) -> None:
        super().__init__(*children, classes="-tight" if tight else None)
        self.styles.width = self._width = width
        # Border, padding, and the scrollbar.
        self._frame = 5 if tight else 7
        self.border_title = Content(title)

    @property
    def room(self) -> int:
        """Columns available for a line."""
        return min(self._width, self.app.size.width) - self._frame

    def show_keys(self, keys: str | Content) -> None:
        """Show the keys in the lower border."""
        self.border_subtitle = Content(keys) if isinstance(keys, str) else keys
        if self.is_attached and not self.screen.is_active:
            self.app.screen.post_message(self.KeysShown())

    def action_scroll(self, way: Way) -> None:
        """Scroll by a line, by a page, or to an end, without animation."""
        scroll(self, way)


#: Columns beyond which lines are hard to read.
_WIDEST = 124


class ReportScreen(Overlay[None]):
    """A report to read and close.

    Args:
        title: Its subject.
        render: Its lines for a number of columns; external text in them is sanitized here.
        seconds: Time between two renderings; None if the report does not change.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,enter", "dismiss(None)", show=False)]

    def __init__(
        self, title: str, render: Callable[[int], Sequence[str | Content]], seconds: float | None = None
    ) -> None:
        super().__init__()
        self._title, self._render_lines, self._seconds = one_line(title, 100), render, seconds
        self._text = TextBlock()

    def compose(self) -> ComposeResult:
        """The empty box; the lines are rendered once the width is known."""
        box = OverlayBox(self._text, title=self._title, width=_WIDEST, tight=True)
        box.show_keys("j k scroll  pgup pgdn page  g G ends  esc close")
        yield box

    def on_mount(self) -> None:
        """Keep a report that changes up to date."""
        if self._seconds is not None:
            self.set_interval(self._seconds, self.on_resize)

    def on_resize(self) -> None:
        """Wrap the lines for the width."""
        room = self.query_one(OverlayBox).room
        lines = [line if isinstance(line, Content) else Content(sanitize(line)) for line in self._render_lines(room)]
        # A resize can arrive before the text is mounted.
        self._text.show(Content("\n").join(lines))


_LOOKS = {"head": ("", "$primary bold"), "same": ("  ", "$muted"), "removed": ("- ", "$limit"), "added": ("+ ", "$ok")}
#: Columns of a line that are shown; a system prompt may be longer.
_LINE_LENGTH = 1_000


class DifferenceScreen(Overlay[None]):
    """Comparison of two configurations; it scrolls, and ``n`` jumps to the next difference.

    Args:
        before: The source of the lines with ``-``.
        after: The source of the lines with ``+``.
        lines: The comparison.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter,c", "dismiss(None)", show=False),
        Binding("n", "place(1)", show=False),
        Binding("N", "place(-1)", show=False),
    ]

    def __init__(self, before: str, after: str, lines: Sequence[DiffLine]) -> None:
        super().__init__()
        self._before, self._after, self._lines = one_line(before, 60), one_line(after, 60), tuple(lines)

    def compose(self) -> ComposeResult:
        """The titles of both versions, and the lines."""
        places = (_block(lines, index) for index, lines in enumerate(_places(self._lines)))
        box = OverlayBox(TextBlock(self._head()), *places, title="Compare", width=120, tight=True)
        box.show_keys("n next place  j k scroll  esc close")
        yield box

    def _head(self) -> Content:
        removed = sum(line.kind == "removed" for line in self._lines)
        added = sum(line.kind == "added" for line in self._lines)
        parts = [
            Content.assemble(("- ", "$limit bold"), self._before, (f"  {counted(removed, 'line')}", "$muted")),
            Content.assemble(("+ ", "$ok bold"), self._after, (f"  {counted(added, 'line')}", "$muted")),
        ]
        if not self._lines:
            parts = [*parts, Content(""), Content("They say the same.")]
        return Content("\n").join(parts)

    def action_place(self, step: int) -> None:
        """Go to the next difference, or to the one before."""
        box = self.query_one(OverlayBox)
        tops = [block.virtual_region.y for block in self.query(".-place")]
        here = round(box.scroll_y)
        following = [top for top in tops if (top > here if step > 0 else top < here)]
        if following:
            box.scroll_to(y=following[0] if step > 0 else following[-1], animate=False)


def _places(lines: Sequence[DiffLine]) -> list[list[DiffLine]]:
    """Lines split before each heading."""
    found: list[list[DiffLine]] = []
    for line in lines:
        if line.kind == "head" or not found:
            found.append([])
        found[-1].append(line)
    return found


def _block(lines: Sequence[DiffLine], index: int) -> TextBlock:
    shown = []
    for line in lines:
        sign, style = _LOOKS[line.kind]
        shown.append(Content.styled(f"{sign}{one_line(line.text.expandtabs(4), _LINE_LENGTH)}", style))
    return TextBlock(Content("\n").join([Content(""), *shown]), classes="-place", id=f"place-{index}")


#: Columns of a border around its text.
_FRAME = 6


def frame_keys(keys: Sequence[tuple[str, str]], helps: tuple[str, str], width: int) -> Content:
    """Keys that fit in a lower border, the most important first.

    Args:
        keys: Displayed keys with their functions; the last one leaves the screen, and is there at every width.
        helps: The key of the help, which leads to the keys that have no room.
        width: Columns of the box.
    """
    ends = [*keys[-1:], helps]
    room = width - _FRAME - sum(len(f"  {key} {text}") for key, text in ends)
    return Content("  ".join(f"{key} {text}" for key, text in [*fitting(keys[:-1], room), *ends]))


class InputForm(VerticalScroll, can_focus=False):
    """Labeled inputs with hints and errors, above an answer; typed text replaces the first value of each.

    Args:
        title: The title in the frame.
        rows: Label, input and hint by name.
        keys: The keys for the frame with their functions, as for :func:`frame_keys`.
        about: The text above the inputs.
    """

    DEFAULT_CSS = style_of("InputForm")

    def __init__(
        self,
        title: str,
        rows: Mapping[str, tuple[str, SafeInput, str]],
        keys: Sequence[tuple[str, str]],
        about: Content | None = None,
    ) -> None:
        super().__init__()
        self.border_title = Content(title)
        self._rows, self._keys, self._about = rows, keys, about
        self.lines = {name: line for name, (_, line, _) in rows.items()}
        for line in self.lines.values():
            line.select_all()

    def compose(self) -> ComposeResult:
        """The inputs and the answer."""
        yield TextBlock(self._about, id="about")
        for label, line, hint in self._rows.values():
            with Horizontal():
                yield TextBlock(Content(label), classes="label")
                yield line
                if hint:
                    yield TextBlock(Content.styled(hint, "$muted"), classes="hint")
            yield TextBlock(id=f"remark-{line.id}", classes="remark")
        yield TextBlock(id="answer")

    def on_resize(self) -> None:
        """Fit the keys to the new width."""
        helps = (shell_of(self).keys["app.help"].display, "help")
        self.border_subtitle = frame_keys(self._keys, helps, self.outer_size.width)

    @property
    def texts(self) -> dict[str, str]:
        """The typed texts, without surrounding blanks."""
        return {name: line.value.strip() for name, line in self.lines.items()}

    def answer(self, text: str, style: str = "$limit") -> None:
        """Show an answer below the inputs; an empty text clears it."""
        self.query_one("#answer", TextBlock).show(Content.styled(sanitize(text), style))


class FormScreen(Overlay[ScreenResultType]):
    """Screen of a form.

    Args:
        form: The form.
    """

    BINDINGS: ClassVar[list[BindingType]] = [*INPUT_BINDINGS]
    AUTO_FOCUS = "SafeInput"
    TAKES_TEXT = True

    def __init__(self, form: InputForm) -> None:
        super().__init__()
        self._form = form

    def compose(self) -> ComposeResult:
        """The form."""
        yield self._form


class ValuesForm(FormScreen[str]):
    """Form whose texts are taken over by a function; it stays open, with the typed text, where that refuses them.

    Args:
        form: The form.
        accept: Takes the texts over and returns a message.
        help_name: The name of its text for the help.
    """

    DEFAULT_CSS = style_of("ValuesForm")
    ENTER_TAKES = True

    def __init__(self, form: InputForm, accept: Callable[[dict[str, str]], Awaitable[str]], help_name: str) -> None:
        super().__init__(form)
        self._accept, self._help_name = accept, help_name

    @property
    def help_name(self) -> str:
        """The name of its text for the help."""
        return self._help_name

    def take(self) -> None:
        """Take the texts over and leave, or show the error."""
        self._take_over()

    @work(exclusive=True)
    async def _take_over(self) -> None:
        try:
            said = await self._accept(self._form.texts)
        except UserError as error:
            self._form.answer(f"✗ {error}")
        else:
            self.dismiss(said)


class ListScreen(Overlay[ScreenResultType]):
    """Screen of a list, whose keys act on the entry under the cursor.

    Args:
        title: The title in the frame.
        keys: Names of the keys in the key table, by line.
    """

    AUTO_FOCUS = "ChoiceList"

    def __init__(self, title: str, *keys: Sequence[str]) -> None:
        super().__init__()
        self._box, self._keys = ListBox(title, self._look), keys

    def compose(self) -> ComposeResult:
        """The heading, the list, the result of the last key, and the keys."""
        yield self._box

    def on_mount(self) -> None:
        """Show the keys, and read the list."""
        self.show_keys()
        self._look()

    def show_keys(self) -> None:
        """Show the keys whose action is available."""
        table = shell_of(self).keys
        lines = [[table[f"{self.SCOPE}.{name}"] for name in line] for line in self._keys]
        there = [[key for key in line if self.check_action(key.action.partition("(")[0], ())] for line in lines]
        shown = [key_line([(key.display, key.description) for key in line]) for line in there]
        self._box.show_keys(Content("\n").join(shown))

    def _look(self) -> object:
        """Read the list, in a thread."""
        raise NotImplementedError

    @property
    def _options(self) -> ChoiceList:
        return self._box.options

    def action_move(self, lines: int) -> None:
        """Move the cursor."""
        self._options.step(lines)


class RecordBox(Vertical):
    """The box of a full screen about a record.

    Args:
        title: The title in the frame.
    """

    DEFAULT_CSS = style_of("RecordBox")

    def __init__(self, title: str) -> None:
        super().__init__()
        self.border_title = Content(title)
        self._hints: Sequence[tuple[str, str]] = ()

    def show_hints(self, hints: Sequence[tuple[str, str]]) -> None:
        """Show the hints that fit in the lower border, the most important first.

        Args:
            hints: Displayed keys with their labels; the last one leaves the screen, and is there at every width.
        """
        self._hints = hints
        self.on_resize()

    def on_resize(self) -> None:
        """Fit the hints to the new width."""
        helps = (shell_of(self).keys["app.help"].display, "more")
        self.border_subtitle = frame_keys(self._hints, helps, self.outer_size.width)


def save_files(kinds: Mapping[str, str], suffix: str) -> str:
    """Save texts in new files, for use in a thread; returns a notice.

    Args:
        kinds: Text of each file by the beginning of its name.
        suffix: The end of their names.
    """
    try:
        paths = [one_line(str(save_text(kind, suffix, text)), 200) for kind, text in kinds.items()]
    except UserError as error:
        return f"It is not saved: {one_line(error.message, 200)}"
    return f"Saved: {', '.join(paths)}"
