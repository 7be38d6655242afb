"""End of a run in lines: the improvement, the kept files, and keys for the next actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from textual.content import Content

from core.runs.outlook.energy import energy_words
from core.text import one_line
from core.units import format_bytes, format_duration
from tui.glyphs import GlyphSet
from tui.keys import KeyTable
from tui.state import STATE_COLORS, STATE_GLYPHS
from tui.widgets.charts.bars import sparkline
from tui.widgets.text_block import flow

if TYPE_CHECKING:
    from core.evaluation.flips import Flips
    from core.runs.catalog.result import Measure, RunResult

#: Cells of the name column and of a figure.
_NAME, _FIGURE = 20, 9
#: Maximum cells of a sparkline, and the minimum number of evaluations for it.
_COURSE, _FEWEST = 16, 3

Hint = tuple[str, str]


def end_lines(
    result: RunResult,
    hints: Sequence[Hint],
    width: int,
    glyphs: GlyphSet,
    *,
    works: Callable[[str], bool] = lambda _: True,
    take: str = "",
    flips: Flips | None = None,
    roomy: bool = False,
) -> Content:
    """Summary of an ended run.

    Args:
        result: The result.
        hints: Keys as displayed, with their actions.
        width: Cells of a line.
        glyphs: The glyphs of sparklines.
        works: True if a displayed key works from where the focus is; the others are dim.
        take: The key that takes a better step as the result.
        flips: The held-out answers that flipped with the training; None if unknown.
        roomy: Separate the parts by blank lines, and head the columns in any case.
    """
    looks = ((key, text, ("$primary bold", "") if works(key) else ("$muted", "$muted")) for key, text in hints)
    keys = (Content.assemble((key, bright), (f" {text}", plain)) for key, text, (bright, plain) in looks)
    figures = [*_table(result, width, glyphs, roomy=roomy), *_flipped(flips), *_better(result, take)]
    parts = [_head(result, width), figures, _kept(result, width), flow(keys, width)]
    between = Content("\n\n" if roomy else "\n")
    return between.join(Content("\n").join(part) for part in parts if part)


def end_hints(
    result: RunResult, keys: KeyTable, *, has_answers: bool, has_flips: bool = False, name: str = ""
) -> list[Hint]:
    """Keys for the next actions; ``name`` is the run's."""
    shown = []
    if result.state != "finished" and result.saved_step is not None:
        shown.append(("train.continue", "continue from there"))
    if result.path is not None or (result.refused and result.saved_step is not None):
        shown.append(("app.ask", "ask it"))
    if has_answers:
        shown.append(("train.answers", "answers"))
    if has_flips:
        shown.append(("train.flips", "what flipped"))
    if result.state == "finished" and result.path is not None:
        shown.append(("train.continue", "train it further"))
    shown.append(("app.start", f"start {name} again" if name else "start it again"))
    shown.append(("train.settings", "again with changes"))
    if result.path is not None:
        shown += [("train.copy", "copy its path"), ("train.export", "export"), ("train.elsewhere", "use it elsewhere")]
    return [(keys[identity].display, text) for identity, text in shown]


def _head(result: RunResult, width: int) -> list[Content]:
    """State, steps, time, energy and size, and below the reason of an early end."""
    style = f"${STATE_COLORS[result.state]} bold" if result.state in STATE_COLORS else "bold"
    if result.refused:
        style = "$warning bold"
    event, took = _event(result), format_duration(result.seconds)
    is_whole = result.step and result.step == result.total_steps
    facts = [f"{result.step} {'step' if result.step == 1 else 'steps'} in {took}" if is_whole else f"{took} of work"]
    facts += energy_words(result.energy_wh, result.tariff)
    of_total = f" of {result.total_steps}" if result.step and result.total_steps and not is_whole else ""
    glyph = STATE_GLYPHS.get(result.state, "?")
    head = Content.assemble((f"{glyph} {event}{of_total}", style), *(f" · {text}" for text in facts if result.step))
    if result.path is not None and result.bytes is not None:
        size = f" · {'model' if result.is_model else 'adapter'} {format_bytes(result.bytes).replace('.0 ', ' ')}"
        head += size if head.cell_length + len(size) <= width else ""
    reason = one_line(result.reason, 400)
    hint = one_line(result.hint, 300) if result.state == "failed" or result.refused else ""
    refused = f"The result is refused by eval.gate: {one_line(result.refused, 400)}" if result.refused else ""
    # Unless the first line says it: "stopped on request after step 40".
    told = [text.rstrip(".") + "." for text in ("" if reason == event else reason, refused, hint) if text]
    return [head, *(_indented(" ".join(told), width) if told else [])]


def _indented(text: str, width: int, by: int = 2) -> list[Content]:
    return [Content(" " * by) + line for line in Content(text).wrap(max(width - by, 10))]


def _event(result: RunResult) -> str:
    """The end in words: ``finished``, ``stopped on request after step 15``, ``failed after step 64``."""
    reason = one_line(result.reason, 80)
    if reason.startswith(f"{result.state} ") and reason.endswith(f"after step {result.step}"):
        return reason
    is_whole = result.state == "finished" and result.step == result.total_steps
    if result.refused:
        return "finished, refused" if is_whole else f"finished after step {result.step}, refused"
    return result.state if is_whole or not result.step else f"{result.state} after step {result.step}"


def _table(result: RunResult, width: int, glyphs: GlyphSet, *, roomy: bool) -> list[Content]:
    # For an unfinished run without a first figure there is nothing to compare.
    if not any(result.state == "finished" or measure.before is not None for measure in result.measures):
        return []
    room = width - _NAME - 2 * _FIGURE - 6
    head = f"{'':{_NAME}}{result.before:>{_FIGURE}}    {result.after:>{_FIGURE}}"
    rows = (_row(measure, room, glyphs, width) for measure in result.measures)
    # The arrows say "before" and "after" where the curve needs the line.
    is_needed = roomy or (result.before, result.after) != ("before", "after")
    return [*([Content.styled(head, "$muted")] if is_needed else []), *(line for row in rows for line in row)]


def _row(measure: Measure, room: int, glyphs: GlyphSet, width: int) -> list[Content]:
    before, after = measure.words(measure.before), measure.words(measure.after)
    row = Content.assemble(
        f"  {measure.name:<{_NAME - 2}}{before:>{_FIGURE}}",
        ("  → " if measure.before is not None else "    ", "$muted"),
        (f"{after:>{_FIGURE}}", "bold"),
    )
    if len(measure.course) >= _FEWEST and room >= len(measure.course[:_COURSE]):
        bars = sparkline(measure.course, _COURSE, glyphs)
        row = Content.assemble(row, "   ", (bars, "$chart-smooth"))
        room -= len(bars) + 3
    if measure.note and room >= len(measure.note):
        row = Content.assemble(row, "   ", (measure.note, "$muted"))
    elif measure.is_explained:
        return [row, *(line.stylize("$muted") for line in _indented(measure.note, width, 4))]
    return [row]


def _flipped(flips: Flips | None) -> list[Content]:
    """Held-out answers that went wrong, and right, with the training."""
    if flips is None or not flips.compared:
        return []
    broken = (f"{len(flips.broken)} right → wrong", "$error" if flips.broken else "")
    text = f", {len(flips.mended)} wrong → right, of {flips.compared}"
    return [Content.assemble(f"  {'answers flipped':<{_NAME - 2}}", broken, text)]


def _better(result: RunResult, key: str) -> list[Content]:
    """The better step, and the key that takes it or gives it back."""
    if (better := result.better) is None:
        return []
    what = f"step {better.own} again" if better.is_taken else "it"
    return [Content.assemble((f"  {better.told}: ", "$near"), (key, "$primary bold"), (f" takes {what}", "$near"))]


def _kept(result: RunResult, width: int) -> list[Content]:
    """The kept checkpoint of an unfinished run."""
    if result.state == "finished" and not result.refused:
        return []
    if result.saved_step is None:
        text = "Nothing is kept: there was no checkpoint yet." if result.step else "No step was done."
    else:
        lost = result.lost_steps
        after = f"; the {lost} steps after it are lost" if lost > 1 else "; the step after it is lost" if lost else ""
        text = f"The checkpoint of step {result.saved_step} is kept{after}."
    return _indented(text, width)
