"""Bar of the memory plan: the parts of a run's memory against the free memory of the card."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from textual.content import Content
from textual.widget import Widget

from core.text import one_line
from core.units import format_bytes
from tui.widgets.strips import fit
from tui.widgets.text_block import relayout

if TYPE_CHECKING:
    from core.config.document import ConfigDocument


@dataclass(frozen=True)
class PlanView:
    """A memory plan for display.

    Args:
        parts: Name and bytes of each part.
        total: Total bytes, without memory that the system can reclaim.
        limit: Free bytes; None if unknown.
        fits: True if it fits; None if unknown.
        advice: Changes that would make it fit, or notes; the best first.
        time: Estimated time and energy with their basis; empty if unknown.
        rows: The rows of the estimate; empty for none.
        bits: The measured cost of 4 bits; empty if unknown.
        is_rough: The plan is a rough bound, because the model has not been measured yet.
        is_guess: It is for rows of ``train.max_length``, because their lengths are not known.
    """

    parts: Sequence[tuple[str, int]]
    total: int
    limit: int | None = None
    fits: bool | None = None
    advice: Sequence[str] = ()
    time: str = ""
    rows: str = ""
    bits: str = ""
    is_rough: bool = False
    is_guess: bool = False


#: Planner of a configuration, called in a thread with the document and a flag that allows measuring the model, which
#: takes seconds. Returns None if there is no plan.
Planner = Callable[["ConfigDocument", bool], PlanView | None]

#: Alternating fills of the parts, so that neighbors differ without color.
_FILLS = "█▓▒░"
_COLORS = ("$primary", "$accent", "$chart-eval", "$secondary", "$chart-raw", "$chart-event")
_ADVICE_LINES = 2
_BITS_LINES = 2
#: Lines below the bar without a plan.
_WORD_LINES = 3
#: Columns for the sum of the unnamed parts, with the key that names them.
_REST_WIDTH = 14
#: Short names of parts.
_NAMES = {"linear_weights": "weights"}


class PlanBar(Widget):
    """Bar with legend and verdict; hidden without a plan."""

    DEFAULT_CSS = "PlanBar { height: auto; display: none; border-top: solid $border; }"

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.plan: PlanView | None = None
        self.more = ""
        """The key that shows the whole plan."""

    def show(self, plan: PlanView | None) -> None:
        """Show a plan, or hide the bar."""
        if plan != self.plan:
            self.plan = plan
            self.display = plan is not None
            relayout(self)

    def render(self) -> Content:
        """Bar, parts, verdict and advice, one per line."""
        return draw_plan(self.plan, self.size.width, self.more) if self.plan is not None else Content("")


def whole_plan(plan: PlanView, width: int) -> list[Content | str]:
    """All of a plan, nothing cut: a line for each part, the verdict, and everything said about it."""
    parts = _ordered(plan)
    names = max((cell_len(name) for name, _ in parts), default=0)
    amounts = [format_bytes(size) for _, size in parts]
    room = max(map(len, amounts), default=0)
    lines: list[Content | str] = []
    for number, ((name, size), amount) in enumerate(zip(parts, amounts, strict=True)):
        color = _COLORS[number % len(_COLORS)]
        bar = _FILLS[number % len(_FILLS)] * round((width - names - room - 4) * size / max(plan.total, 1))
        lines.append(
            Content.assemble(f"{one_line(name)}{' ' * (names - cell_len(name))}  {amount:>{room}}  ", (bar, color))
        )
    lines += ["", _verdict(plan, width)] if parts else []
    for text in (plan.time, plan.bits, *(f"→ {text}" for text in plan.advice)):
        lines += textwrap.wrap(one_line(text, len(text)), max(width, 1))
    return lines


def draw_plan(plan: PlanView, width: int, more: str = "") -> Content:
    """Lines of a plan, at most ``width`` columns wide.

    Args:
        plan: The plan.
        width: Columns.
        more: The key that shows the whole plan.
    """
    if not plan.parts:
        return _draw_words(plan, width)
    verdict, time = _verdict(plan, width), one_line(plan.time)
    lines = [_bar(plan, width), _legend(plan, width, more)]
    if verdict.cell_length + cell_len(time) + 3 <= width:
        lines.append(Content.assemble(verdict, (f" · {time}", "$muted")) if time else verdict)
    else:
        lines += [verdict, Content.styled(fit(time, width).rstrip(), "$muted")]
    lines += [Content(line) for line in textwrap.wrap(one_line(plan.bits), max(width, 1))[:_BITS_LINES]]
    lines += [
        Content.styled(fit(f"→ {one_line(text)}", width).rstrip(), "$muted") for text in plan.advice[:_ADVICE_LINES]
    ]
    return Content("\n").join(lines)


def _draw_words(plan: PlanView, width: int) -> Content:
    """A note below an empty bar, padded to the usual number of lines so that nothing jumps."""
    words = textwrap.wrap(one_line(" ".join(plan.advice)), max(width, 1))[:_WORD_LINES]
    words += [" "] * (_WORD_LINES - len(words))
    return Content("\n").join([_bar(plan, width), *(Content.styled(line, "$muted") for line in words)])


def _ordered(plan: PlanView) -> list[tuple[str, int]]:
    """Parts by size, the largest first."""
    parts = [(_NAMES.get(name, name.replace("_", " ")), size) for name, size in plan.parts]
    return sorted(parts, key=lambda part: -part[1])


def _bar(plan: PlanView, width: int) -> Content:
    """Parts to scale; the full width is the free memory, or the plan if that is larger."""
    scale = max(plan.total, plan.limit or 0, 1)
    room = max(width - 2, 1)
    parts: list[tuple[str, str]] = [("▕", "$muted")]
    done = 0
    taken = 0
    limit_at = round(room * plan.limit / scale) if plan.limit is not None and plan.limit < plan.total else None
    cells: list[tuple[str, str]] = []
    for number, (_, size) in enumerate(_ordered(plan)):
        done += size
        end = min(round(room * done / scale), room)
        cells += [(_FILLS[number % len(_FILLS)], _COLORS[number % len(_COLORS)])] * max(end - taken, 0)
        taken = max(end, taken)
    cells += [("·", "$meter-track")] * (room - len(cells))
    if limit_at is not None and limit_at < room:
        # Everything after this cell does not fit.
        cells[limit_at] = ("┃", "$limit bold")
    parts += cells
    return Content.assemble(*parts, ("▏", "$muted"))


def _legend(plan: PlanView, width: int, more: str) -> Content:
    """Names and sizes of the largest parts that fit, each with a fill of its own, then the sum of the rest, with
    their names where they fit, else with the key that shows them."""
    pieces: list[tuple[str, str]] = []
    used, parts = 0, _ordered(plan)
    for number, (name, size) in enumerate(parts):
        text = f"{one_line(name, 20)} {format_bytes(size)}"
        extra = cell_len(text) + 4
        # Leave room for the sum of the rest. A fill that is used twice names nothing.
        if number == len(_FILLS) or used + extra + (_REST_WIDTH if number < len(parts) - 1 else 0) > width:
            rest = f"+ {format_bytes(sum(size for _, size in parts[number:]))}"
            named = ", ".join(f"{one_line(name, 20)} {format_bytes(size)}" for name, size in parts[number:])
            whole = f"{rest}: {named}"
            short = f"{rest} ({more})" if more else rest
            shown = whole if cell_len(whole) <= width - used else fit(short, max(width - used, 0)).rstrip()
            pieces.append((shown, "$muted"))
            break
        fill = _FILLS[number % len(_FILLS)]
        pieces += [(fill, _COLORS[number % len(_COLORS)]), (f" {text}  ", "$muted")]
        used += extra
    return Content.assemble(*pieces)


def fit_words(fits: bool | None, *, is_rough: bool) -> tuple[str, str]:
    """The words on whether a plan fits, and their style; a rough bound above the limit proves nothing."""
    if fits is None or (is_rough and not fits):
        return "", ""
    return ("✓ fits", "$ok") if fits else ("✗ does not fit", "$limit bold")


def about_words(*, is_rough: bool, is_guess: bool) -> str:
    """The mark before the bytes of a plan that is no more than a bound, or a guess for rows of unknown lengths."""
    return "roughly " if is_rough else "~" if is_guess else ""


def _verdict(plan: PlanView, width: int) -> Content:
    free = f" of {format_bytes(plan.limit)} free" if plan.limit is not None else ""
    word, style = fit_words(plan.fits, is_rough=plan.is_rough)
    about = about_words(is_rough=plan.is_rough, is_guess=plan.is_guess)
    amount = fit(f"{about}{format_bytes(plan.total)}{free}", width - 16).rstrip()
    rows = f", {plan.rows}" if plan.rows else ""
    rows = rows if cell_len(amount + rows) + 2 + cell_len(word) <= width else ""
    return Content.assemble((amount, "bold"), (rows, "$muted"), "  ", (word, style))
