"""The terminal's image: its output gives the same screen as painting everything, in fewer bytes."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pyte
from rich.color import ColorSystem
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate, InlineUpdate, LayoutUpdate
from textual.geometry import Region
from textual.strip import Strip

from tests.cases import cases
from tui.terminal_image import TerminalImage

WIDTH, HEIGHT = 40, 12
STYLES = [
    Style.parse(text)
    for text in (
        *("white on black", "bold white on black", "red on black", "white on blue", "underline green on black"),
        *("reverse white on black", "none"),
    )
]
WORDS = ["loss", "0.412", "│", "─────", "漢字", "◆ ⣀⣠", " ", "    ", "·", "ü", "e\u0301", "한"]


def _line(choose: random.Random) -> Strip:
    segments = [Segment(choose.choice(WORDS), choose.choice(STYLES)) for _ in range(choose.randint(1, 12))]
    return Strip(segments).adjust_cell_length(WIDTH, STYLES[0])


def _layout(lines: Sequence[Strip]) -> LayoutUpdate:
    return LayoutUpdate([[line] for line in lines], Region(0, 0, WIDTH, HEIGHT))


def _spans(lines: Sequence[Strip], spans: list[tuple[int, int, int]], cuts: list[int]) -> ChopsUpdate:
    """An update of spans of a screen whose widgets meet at some columns."""
    chops = [dict(zip(cuts[:-1], line.divide(cuts[1:]), strict=True)) for line in lines]
    return ChopsUpdate(chops, spans, [cuts[1:]] * len(lines))


class _Screen:
    """A terminal, and beside it one on which everything is painted each time."""

    def __init__(self) -> None:
        self.image = TerminalImage()
        self.screen = pyte.Screen(WIDTH, HEIGHT)
        self.stream = pyte.Stream(self.screen)

    def write(self, update: LayoutUpdate | ChopsUpdate) -> str:
        output = self.image.bring(update, ColorSystem.EIGHT_BIT, (WIDTH, HEIGHT))
        assert output is not None
        self.stream.feed(output)
        return output

    def shows(self, lines: Sequence[Strip]) -> bool:
        """True if it looks like a terminal on which the lines have just been painted."""
        other = pyte.Screen(WIDTH, HEIGHT)
        pyte.Stream(other).feed(TerminalImage().bring(_layout(lines), ColorSystem.EIGHT_BIT, (WIDTH, HEIGHT)) or "")
        plain = pyte.Screen(WIDTH, HEIGHT)
        for y, line in enumerate(lines):
            codes = "".join(
                Strip.render_style(style or Style(), text, ColorSystem.EIGHT_BIT) for text, style, _ in line._segments
            )
            pyte.Stream(plain).feed(f"\x1b[{y + 1};1H{codes}")
        return _looks(self.screen) == _looks(other) == _looks(plain)


def _looks(screen: pyte.Screen) -> list[object]:
    """The visible cells of a terminal; only the background of spaces."""
    found: list[object] = []
    for y in range(HEIGHT):
        for x in range(WIDTH):
            cell = screen.buffer[y][x]
            blank = cell.data == " " and not (cell.underscore or cell.reverse)
            found.append((" ", cell.bg) if blank else cell)
    return found


@cases("seed", range(12))
def test_any_sequence_of_updates_ends_in_the_same_screen(seed: int) -> None:
    choose = random.Random(seed)
    terminal = _Screen()
    lines = [_line(choose) for _ in range(HEIGHT)]
    terminal.write(_layout(lines))
    for _ in range(15):
        kind = choose.choice(("lines", "scroll", "layout", "spans"))
        if kind == "scroll":
            by, top, bottom = choose.choice((1, 2, 3)), choose.randint(0, 3), choose.randint(8, HEIGHT)
            part = lines[top:bottom]
            fresh = [_line(choose) for _ in range(by)]
            lines[top:bottom] = part[by:] + fresh if choose.random() < 0.5 else fresh + part[:-by]
            terminal.write(_layout(lines))
        elif kind == "spans":
            rows = sorted(choose.sample(range(HEIGHT), 3))
            for y in rows:
                # Widgets end where they end, in the middle of a wide character too.
                ends = [13, 27, WIDTH]
                lines[y] = Strip.join([*lines[y].divide(ends)[:1], *_line(choose).divide(ends)[1:]])
            terminal.write(_spans(lines, [(y, 13, WIDTH) for y in rows], [0, 13, 27, WIDTH]))
        else:
            for y in choose.sample(range(HEIGHT), 3 if kind == "lines" else HEIGHT):
                lines[y] = _line(choose)
            terminal.write(_layout(lines))
        assert terminal.shows(lines)


def test_what_is_there_already_costs_nothing() -> None:
    terminal = _Screen()
    lines = [_line(random.Random(y)) for y in range(HEIGHT)]
    assert terminal.write(_layout(lines))
    assert terminal.write(_layout(lines)) == ""
    terminal.image.forget()
    assert len(terminal.write(_layout(lines))) > WIDTH * HEIGHT


def test_a_list_that_scrolls_is_scrolled_by_the_terminal() -> None:
    terminal = _Screen()
    choose = random.Random(1)
    rows = ["".join(choose.choices("abcdefgh ", k=WIDTH)) for _ in range(60)]
    lines = [Strip([Segment(row, STYLES[0])]) for row in rows]
    for first, code in ((20, ""), (21, "\x1bD"), (23, "\x1bD"), (22, "\x1bM"), (40, "")):
        shown = [lines[0], *lines[first : first + HEIGHT - 2], lines[1]]
        output = terminal.write(_layout(shown))
        assert terminal.shows(shown)
        if code:
            assert code in output
            assert len(output) < 4 * WIDTH


def test_after_a_character_whose_width_is_disputed_the_column_is_set() -> None:
    terminal = _Screen()
    lines = [Strip([Segment("a\U0001f9edb", STYLES[0])]).adjust_cell_length(WIDTH, STYLES[0])] * HEIGHT
    assert "\U0001f9ed\x1b[4Gb" in terminal.write(_layout(lines))


def test_an_update_within_the_lines_of_a_shell_is_left_alone() -> None:
    assert TerminalImage().bring(InlineUpdate([Strip.blank(3)]), ColorSystem.EIGHT_BIT, (WIDTH, HEIGHT)) is None
