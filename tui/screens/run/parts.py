"""The parts of the screen of a run, each as text for a number of columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size
from textual.content import Content

from core.config.compare import differences
from core.config.explain import shown
from core.config.schema import find_option, options
from core.runs.catalog.compare import RunRecord
from core.runs.catalog.trained import KeptCheckpoint
from core.runs.record.state import Rank, rank_words, sign_words, silent_words
from core.text import one_line, sanitize, steady
from core.units import (
    format_bytes,
    format_count,
    format_duration,
    format_fixed,
    format_moment,
    format_number,
    format_rate,
)
from tui.state import STATE_GLYPHS

#: Newest lines of the events and of the worker's log that are shown.
MOST_LINES = 1000
_LOOKS = {"warning": "$near", "error": "$limit"}
_SIGNS = {"warning": "! ", "error": "✗ "}

#: A table: titles, each with whether its column is right-aligned, and rows of cells.
_Titles = Sequence[tuple[str, bool]]


def summary(record: RunRecord, width: int) -> Content:
    """What the run is, and what it came to."""
    row, figures, history = record.row, record.figures, record.history
    state = record.run.state()
    tags = " ".join(f"#{tag}" for tag in row.labels.tags)
    head = f"{STATE_GLYPHS.get(state.state, '?')} {state.state}{', refused' if state.refused else ''}"
    best = f"{format_number(figures.best_loss)} at step {figures.best_step}" if figures.best_step is not None else ""
    facts = [
        ("name", steady(row.labels.name)),
        ("state", f"{head}, step {row.step} of {row.total_steps}" if row.total_steps else head),
        ("reason", history.end_reason(state)),
        ("refused", state.refused),
        ("started", format_moment(row.started, "%Y-%m-%d %H:%M") if row.started else ""),
        ("model", row.model),
        ("data", ", ".join(row.data)),
        ("rows", _rows(record)),
        ("training loss", format_number(row.loss) if row.loss is not None else ""),
        ("best eval loss", best),
        ("exact match", format_fixed(figures.exact_match, 2) if figures.exact_match is not None else ""),
        ("tokens", format_count(figures.tokens) if figures.tokens else ""),
        ("speed", format_rate(figures.tokens_per_second) if figures.tokens_per_second is not None else ""),
        ("time of work", format_duration(figures.working_seconds) if figures.working_seconds else ""),
        ("energy", f"{format_fixed(figures.energy_wh, 1)} Wh" if figures.energy_wh is not None else ""),
        ("size", format_bytes(figures.size)),
        ("tags", steady(tags)),
        ("note", steady(row.labels.note)),
        ("directory", str(record.run.path)),
    ]
    lines: list[Content] = []
    for name, value in facts:
        if value:
            wrapped = Content(one_line(value, 2000)).wrap(max(width - 16, 10))
            lines.append(Content.assemble((f"{name:<14}  ", "$muted"), wrapped[0]))
            lines += [Content.assemble(" " * 16, line) for line in wrapped[1:4]]
    return Content("\n").join(lines)


def _rows(record: RunRecord) -> str:
    data = record.history.data
    if data is None:
        return ""
    held_out = f", {format_count(data.held_out_rows)} held out" if data.held_out_rows else ""
    return f"{format_count(data.used)} of {format_count(data.rows)} used{held_out}"


def configuration(values: Mapping[str, Any], settings: Mapping[str, Any], width: int) -> Content:
    """What was set while the run was on, what differs from the defaults, and then all values.

    Args:
        values: The configuration, ``section.key`` to value.
        settings: Options that were set while it was on, likewise.
        width: Columns.
    """
    if not values:
        return Content.styled("Its configuration, run.toml, cannot be read.", "$muted")
    changed = differences(values, {})
    lines = []
    if settings:
        lines.append(Content.styled("what was set while it was on", "bold"))
        for name, value in settings.items():
            lines.append(_option_line(name, value, f"at the start {one_line(_value(_begun(values, name)), 40)}", width))
        lines.append(Content(""))
    lines.append(Content.styled("what differs from the defaults", "bold"))
    for name, default in changed.items():
        was = f"default {one_line(_value(default), 40)}" if default is not None else ""
        lines.append(_option_line(name, values.get(name), was, width))
    section = ""
    for option in options():
        if option.section != section:
            section = option.section
            lines += [Content(""), Content.styled(f"[{section}]", "$primary bold")]
        value = values.get(option.name)
        said = _value(option.default if value is None else value)
        sign = "• " if option.name in changed else "  "
        text = Content(one_line(said, max(width - 32, 20)))
        lines.append(Content.assemble((f"{sign}{option.key:<28}  ", "$muted"), text))
    unknown = [name for name in values if find_option(name) is None]
    if unknown:
        lines += [Content(""), Content.styled("of another version", "bold")]
        lines += [Content(one_line(f"  {name} = {_value(values[name])}", max(width, 20))) for name in unknown]
    return Content("\n").join(lines)


def _option_line(name: str, value: Any, was: str, width: int) -> Content:
    text = Content(one_line(_value(value), max(width - 32, 20)))
    line = Content.assemble((f"• {one_line(name, 28):<28}  ", "$muted"), text, (f"  {was}" if was else "", "$muted"))
    return line.truncate(max(width, 20), ellipsis=True)


def _begun(values: Mapping[str, Any], name: str) -> Any:
    """The value of an option at the start of the run."""
    option = find_option(name)
    return values.get(name, option.default if option is not None else None)


def _value(value: Any) -> str:
    return "–" if value is None else shown(value)


def evaluations(record: RunRecord, width: int) -> Content:
    """Each evaluation, the best one marked."""
    found = record.history.evals
    if not found:
        return Content.styled("It was not evaluated.", "$muted")
    titles = [("step", True), ("eval loss", True), ("perplexity", True), ("exact", True), ("JSON", True)]
    titles += [("probe", True), ("took", True), ("at", False), ("", False)]
    best = record.figures.best_step
    rows = [
        [
            str(event.step),
            format_number(event.loss),
            format_number(event.perplexity),
            format_fixed(event.exact_match, 2),
            format_fixed(event.valid_json, 2),
            format_number(event.probe_loss),
            format_duration(event.seconds),
            _moment(event.t),
            "best" if event.step == best else "",
        ]
        for event in reversed(found)
    ]
    return _table(titles, rows, width)


def checkpoints(found: Sequence[KeptCheckpoint], width: int) -> Content:
    """Each checkpoint that is there: its step, size, loss, and why it is kept."""
    if not found:
        return Content.styled("It has no checkpoint.", "$muted")
    titles = [("step", True), ("size", True), ("eval loss", True), ("written", False), ("kept as", False)]
    rows = [
        [
            str(item.step),
            format_bytes(item.bytes),
            format_number(item.eval_loss),
            _moment(item.time),
            ", ".join(item.reasons) or "one of the last",
        ]
        for item in found
    ]
    total = sum(item.bytes for item in found)
    foot = Content.styled(f"{len(found)} checkpoint{'s' if len(found) > 1 else ''}, {format_bytes(total)}", "$muted")
    return Content("\n").join([_table(titles, rows, width), Content(""), foot])


def processes(record: RunRecord, found: Sequence[Rank], width: int, now: float) -> Content:
    """Each process: its machine, device and process id, and while the run is on its last sign of life.

    Args:
        record: The run.
        found: Its processes as last recorded.
        width: Columns.
        now: Unix seconds.
    """
    found = found or record.history.ranks
    if len(found) < 2:
        return Content.styled("It has one process.", "$muted")
    is_over = record.run.state().is_over
    titles = [("process", True), ("machine", False), ("device", False), ("pid", True), ("last sign of life", False)]
    rows = [
        [
            str(rank.rank),
            rank.host or "–",
            rank.device or "–",
            "–" if rank.pid is None else str(rank.pid),
            "" if is_over else sign_words(rank, now),
            "" if is_over or not rank.is_waiting else "waiting",
        ]
        for rank in found
    ]
    lines = [_table([*titles, ("", False)], rows, width), Content(""), Content.styled(rank_words(found), "$muted")]
    if not is_over and (silent := silent_words(found, now)):
        lines.append(Content.styled(f"! {silent}", "$near"))
    return Content("\n").join(lines)


def events(record: RunRecord, width: int) -> Content:
    """What happened, the newest first, under the days."""
    log = list(record.history.log)
    if not log:
        return Content.styled("Its record is empty.", "$muted")
    lines: list[Content] = []
    day = ""
    for line in reversed(log[-MOST_LINES:]):
        today = format_moment(line.time, "%Y-%m-%d")
        if today != day:
            day = today
            lines.append(Content.styled(day, "bold"))
        sign, look = _SIGNS.get(line.level, "  "), _LOOKS.get(line.level, "")
        text = sign + steady(one_line(line.text, max(width - 11, 10)))
        lines.append(Content.assemble((f"{line.clock} ", "$muted"), (text, look)))
    older = record.history.log_count - min(len(log), MOST_LINES)
    if older > 0:
        lines.append(Content.styled(f"and {format_count(older)} older lines", "$muted"))
    return Content("\n").join(lines)


def worker_log(text: str, width: int) -> Content:
    """The end of the worker's output."""
    lines = [line for line in sanitize(text).split("\n") if line.strip()][-MOST_LINES:]
    if not lines:
        return Content.styled("The worker and its libraries have written nothing.", "$muted")
    return Content("\n").join(Content(steady(one_line(line, max(width, 10)))) for line in lines)


def _moment(moment: float) -> str:
    return "–" if math.isnan(moment) else format_moment(moment, "%Y-%m-%d %H:%M")


def _table(titles: _Titles, rows: Sequence[Sequence[str]], width: int) -> Content:
    """A table whose columns are as wide as they need; columns without a value in any row are left out."""
    kept = [place for place in range(len(titles)) if any(row[place] not in ("", "–") for row in rows)]
    sizes = {place: max(cell_len(titles[place][0]), *(cell_len(row[place]) for row in rows)) for place in kept}

    def line(cells: Sequence[str]) -> str:
        shown = []
        for place in kept:
            gap = " " * (sizes[place] - cell_len(cells[place]))
            shown.append(gap + cells[place] if titles[place][1] else cells[place] + gap)
        text = "  ".join(shown)
        return text if cell_len(text) <= width else set_cell_size(text, max(width, 1))

    head = Content.styled(line([title for title, _ in titles]), "$muted")
    return Content("\n").join([head, *(Content(line(row)) for row in rows)])
