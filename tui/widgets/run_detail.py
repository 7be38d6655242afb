"""Texts beside the list of runs: a line for the queue, and the details of the run under the cursor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content

from core.runs.record.sentences import brief_id
from core.text import one_line, steady
from core.units import exact_number, format_bytes, format_duration, format_fixed, format_moment, format_number
from tui.glyphs import GlyphSet
from tui.state import STATE_GLYPHS
from tui.widgets.charts.plot_geometry import DotGrid, Scale, draw_line
from tui.widgets.text_block import flow

if TYPE_CHECKING:
    from core.queue.view import EntryView, QueueView
    from core.runs.catalog.result import OptionChange, RunDetail
    from core.runs.catalog.rows import RunFigures, RunRow
    from core.runs.record.series import Series


def queue_line(view: QueueView, key: str) -> Content:
    """A line for the queue: its next entries; empty for an empty queue.

    Args:
        view: The queue.
        key: The key that opens the queue.
    """
    waiting = [row for row in view.upcoming if row.entry.state == "waiting"]
    on = next((row for row in view.upcoming if row.entry.state in ("starting", "running")), None)
    held = sum(row.entry.state == "held" for row in view.upcoming)
    if not view.upcoming:
        return Content("")
    if waiting:
        coming = _expected(waiting[0], begins=view.runner is not None)
        parts = [f"next {coming}", f"{len(waiting)} {'waits' if len(waiting) == 1 else 'wait'}"]
    else:
        parts = [f"Last entry: {_expected(on)}" if on is not None else "no entry is waiting"]
    if held:
        parts.append(f"{held} held")
    if view.runner is None and waiting:
        parts.append("the runner is stopped, so nothing starts")
    elif view.ends is not None and len(waiting) > 1:
        parts.append(f"all done {_clock(view.ends)}")
    # The key comes first, so that a narrow terminal does not cut it.
    return Content.assemble((f"{key} ", "$primary bold"), "queue   ", " · ".join(parts))


def _expected(row: EntryView, *, begins: bool = True) -> str:
    """An entry with its begin, or the end if it is running: ``tickets at ~Sat 03:40``.

    Args:
        row: The entry.
        begins: False if nothing begins, as no runner is on.
    """
    name = one_line(row.entry.title, 40)
    if row.place is None:
        return f"{name}, done {_clock(row.ends)}" if row.ends is not None else name
    return f"{name} at {_clock(row.begins)}" if begins and row.begins is not None else name


def _clock(moment: float) -> str:
    return f"~{format_moment(moment, '%a %H:%M')}"


#: Width of a curve beside the text, and height of a curve in the column.
CURVE_WIDTH, CURVE_ROWS = 28, 5


def account_column(
    row: RunRow, detail: RunDetail, figures: RunFigures | None, width: int, height: int, glyphs: GlyphSet
) -> Content:
    """Details as a column of wrapped lines; lines without room are left out."""
    lines = [
        _head(row, width),
        *_wrapped(_progress(row, figures), width),
        *_wrapped(detail.reason, width, "$muted")[:3],
    ]
    if curve := curve_lines(detail.loss, width, CURVE_ROWS, glyphs):
        lines += [Content(""), *curve, Content.styled(_curve_words(detail.loss), "$muted")]
    lines.append(Content(""))
    lines += [_pair(name, value, width) for name, value in _facts(row, detail, figures)]
    if detail.before is not None:
        lines += [Content(""), Content.styled(one_line(f"≠ {detail.before.id}", width), "$muted")]
        changes = [_pair(_short(change), f"{change.before} → {change.after}", width) for change in detail.changes]
        if (more := len(changes) - max(height - len(lines), 1)) > 0:
            changes[-more - 1 :] = [Content.styled(f"and {more + 1} more", "$muted")]
        lines += changes or [Content.styled("the same options", "$muted")]
    return Content("\n").join(lines[:height])


def account_rows(
    row: RunRow, detail: RunDetail, figures: RunFigures | None, width: int, height: int, glyphs: GlyphSet
) -> Content:
    """Details in a few rows, with the curve at the right."""
    curve = curve_lines(detail.loss, CURVE_WIDTH, height - 1, glyphs)
    text_width = width - CURVE_WIDTH - 3 if curve else width
    # The list above shows the rest.
    facts = [f"{name} {value}" for name, value in _facts(row, detail, None) if name not in ("lr", "batch")]
    head, progress = _head(row, text_width), _progress(row, figures)
    is_short = head.cell_length + 2 + len(progress) <= text_width
    lines = [
        *([Content.assemble(head, "  ", progress)] if is_short else [head, *_wrapped(progress, text_width)]),
        *_wrapped(detail.reason, text_width, "$muted")[:2],
        *flow((Content(one_line(fact, max(text_width, 1))) for fact in facts), text_width)[:2],
    ]
    lines = [line for line in lines if line.plain.strip()]
    if detail.before is not None:
        changes = ", ".join(f"{_short(change)} {change.before} → {change.after}" for change in detail.changes)
        lines += _wrapped(f"≠ {detail.before.id}: {changes or 'the same options'}", text_width)
    if len(lines) > height > 0:
        lines[height - 1] = Content.assemble(lines[height - 1].truncate(max(text_width - 2, 0)).rstrip(), " …")
    lines = lines[:height] + [Content("")] * (height - len(lines))
    if not curve:
        return Content("\n").join(lines)
    beside = [*curve, Content.styled(_curve_words(detail.loss), "$muted")]
    return Content("\n").join(
        Content.assemble(line.truncate(text_width, ellipsis=True, pad=True), "   ", end)
        for line, end in zip(lines, beside, strict=True)
    )


def curve_lines(loss: Series, width: int, rows: int, glyphs: GlyphSet) -> list[Content]:
    """The loss as lines of glyphs; empty for fewer than two values."""
    bounds = loss.bounds()
    if len(loss) < 2 or bounds is None or width < 4 or rows < 1:
        return []
    grid = DotGrid(width, rows, glyphs)
    low, high = bounds
    draw_line(grid, loss.bucket(grid.columns), Scale(low, high if high > low else low + 1.0))
    return [Content.styled("".join(glyphs.line[bits] for bits in line), "$primary") for line in grid.bits]


def _curve_words(loss: Series) -> str:
    settled = loss.settled()
    return f"loss {format_number(loss.values[0])} → {format_number(settled[0] if settled else loss.last)}"


def _head(row: RunRow, width: int) -> Content:
    return Content.styled(one_line(row.run.id, width), "bold")


def _progress(row: RunRow, figures: RunFigures | None) -> str:
    """State, steps and working time on one line."""
    parts = [f"{STATE_GLYPHS.get(row.state, '?')} {row.word or row.state}{', refused' if row.refused else ''}"]
    if row.labels.archived:
        parts.append("archived")
    if row.total_steps:
        parts.append(f"step {row.step} of {row.total_steps}")
    if figures is not None and figures.working_seconds:
        parts.append(f"{format_duration(figures.working_seconds)} of work")
    return " · ".join(parts)


def _facts(row: RunRow, detail: RunDetail, figures: RunFigures | None) -> list[tuple[str, str]]:
    """Known facts by name."""

    def change(values: tuple[float, ...]) -> str:
        return " → ".join(format_number(value) for value in dict.fromkeys(values))

    best = f"{format_number(figures.best_loss)} at step {figures.best_step}" if figures and figures.best_step else ""
    facts = [
        ("note", steady(row.labels.note)),
        ("tags", " ".join(f"#{steady(tag)}" for tag in row.labels.tags)),
        ("further from", brief_id(row.parent)),
        ("eval loss", change(detail.evals)),
        ("best", best),
        ("exact", " → ".join(dict.fromkeys(format_fixed(value, 2) for value in detail.exact_matches))),
        ("model", row.model),
        ("data", detail.data),
        ("lr", exact_number(row.learning_rate) if row.learning_rate is not None else ""),
        ("batch", str(row.batch_size or "")),
        ("size", format_bytes(figures.size) if figures is not None else ""),
    ]
    return [(name, value) for name, value in facts if value]


def _short(change: OptionChange) -> str:
    """The name of an option, without its section if that is clear."""
    section, _, key = change.name.partition(".")
    return change.name if section in ("data", "eval") else key


def _pair(name: str, value: str, width: int) -> Content:
    label = f"{one_line(name, 16):<12} "
    return Content.assemble((label, "$muted"), one_line(value, max(width - len(label), 1)))


def _wrapped(text: str, width: int, style: str = "") -> list[Content]:
    lines = Content.styled(one_line(text), style).wrap(max(width, 1)) if text else []
    return [line.rstrip() for line in lines]
