"""Lines of text about a run: numbers, progress, phases and state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from textual.content import Content

from core.governor import words
from core.runs.outlook.energy import energy_words
from core.runs.outlook.time_left import eta_parts, eta_words
from core.runs.record.sentences import doing, pending_words, phase_count, phase_name, progress_words, step_progress
from core.runs.record.series import Series
from core.runs.record.state import Rank, silent_words
from core.runs.record.timings import EVALUATING, PARTS
from core.text import one_line
from core.units import format_duration, format_fixed, format_number, format_power, format_rate
from tui.glyphs import GlyphSet
from tui.keys import KeyTable
from tui.state import PENDING_GLYPH, STATE_COLORS, STATE_GLYPHS, RunView
from tui.widgets.charts.bars import bar

#: Minimum columns of the progress bar.
SHORTEST_BAR = 6
#: Columns of a time left, so that nothing moves as it shrinks; and the unit of a bar's length, so that it seldom
#: changes with the texts beside it.
ETA_WIDTH, _BAR_STEP = 8, 8
#: Columns of the time left with its name and blanks.
_ETA_ROOM = len("   ETA ") + ETA_WIDTH
#: Columns of its parts, which come and go: `` (steps 12m 34s, evaluations 12m 34s)``.
_PARTS_WIDTH = 37
#: Columns of the name of an evaluation's part, ``answers``, and a blank; and the fewest rows to have room for.
_PART_WIDTH, _FEWEST_ROWS = 8, 10
#: Phases of a run, to name the coming ones.
EXPECTED_PHASES = ("importing", "preparing_data", "loading_model", "rehearsing", "training")
#: Phases that a parked run repeats when it continues.
_LAST_PHASES = ("training", "saving")


def state_style(state: str) -> str:
    """The color of a state, for ``Content``."""
    return f"${STATE_COLORS[state]}" if state in STATE_COLORS else ""


def trend(series: Series) -> str:
    """The direction of a curve, its last fifth against the fifth before: ``↓``, ``↑``, ``→``; empty if it is too
    short.
    """
    if len(series) < 3:
        return ""
    back = max(len(series) // 5, 1)
    recent = series.mean(series.steps[-back])
    before = series.mean(series.steps[max(-2 * back, -len(series))], series.steps[-back] - 1)
    if recent is None or before is None:
        return ""
    if abs(recent - before) < 0.002 * max(abs(before), 1e-9):
        return "→"
    return "↓" if recent < before else "↑"


def numbers(view: RunView, width: int) -> Content:
    """Figures that fit: ``loss 0.412 ↓   eval 0.455 @30   grad 0.61   lr 8.1e-4   318 tok/s   1.9 Wh``."""
    gap = "   " if width >= 90 else "  "
    kept: list[Content] = []
    used = 0
    for item in figures(view, width):
        used += item.cell_length + (len(gap) if kept else 0)
        if used > width:
            break
        kept.append(item)
    return Content(gap).join(kept)


def figures(view: RunView, width: int = 200) -> list[Content]:
    """All figures; the rarer ones are left out below 110 columns."""
    history, step = view.history, view.history.last_step
    if step is None:
        return []
    broken = not math.isfinite(step.loss)
    fields = [
        Content.assemble(
            ("loss ", "$muted"),
            (format_number(step.loss).rjust(7), "$limit bold" if broken else "bold"),
            f" {trend(history.loss)}".ljust(2),
        )
    ]
    if history.evals:
        last = history.evals[-1]
        text = f"{format_number(last.loss).rjust(7)} @{last.step}".ljust(9 + len(str(view.state.total_steps)))
        fields.append(Content.assemble(("eval ", "$muted"), text))
        if last.probe_loss is not None and width >= 104:
            fields.append(Content.assemble(("probe ", "$muted"), format_number(last.probe_loss).rjust(6)))
        if last.exact_match is not None and width >= 96:
            fields.append(Content.assemble(("exact ", "$muted"), format_fixed(last.exact_match, 2)))
        if last.valid_json is not None and width >= 110:
            fields.append(Content.assemble(("JSON ", "$muted"), format_fixed(last.valid_json, 2)))
    if step.reward_margin is not None:
        fields.append(Content.assemble(("margin ", "$muted"), format_number(step.reward_margin).rjust(6)))
    if step.reward_accuracy is not None:
        fields.append(Content.assemble(("acc ", "$muted"), format_fixed(step.reward_accuracy, 2)))
    fields.append(Content.assemble(("grad ", "$muted"), format_number(step.grad_norm).rjust(7)))
    fields.append(Content.assemble(("lr ", "$muted"), format_power(step.lr).rjust(7)))
    fields.append(Content(format_rate(history.tokens_per_second).rjust(11)))
    return [*fields, *map(Content, energy_words(view.reading().energy_wh, view.tariff))]


def ranks(found: Sequence[Rank], width: int, now: float) -> Content:
    """Processes of a run by machine, ``4 processes  head 0 cuda:0, 1 cuda:1 · tower 2 cuda:0, 3 cuda:1``, or the silent
    processes; empty for a single process.

    Args:
        found: The processes.
        width: Columns.
        now: Unix seconds.
    """
    if len(found) < 2:
        return Content("")
    head = Content.styled(f"{len(found)} processes  ", "$muted")
    if silent := silent_words(found, now):
        text = Content.styled(silent, "$near")
    else:
        text = _by_machine(found, lambda rank: f"{rank.rank} {rank.device}".rstrip())
        if head.cell_length + text.cell_length > width:
            # The machine matters more than the card.
            text = _by_machine(found, lambda rank: str(rank.rank))
    return (head + text).truncate(max(width, 10), ellipsis=True)


def _by_machine(found: Sequence[Rank], name: Callable[[Rank], str]) -> Content:
    """Processes by machine: ``head 0, 1 · tower 2, 3``."""
    hosts: dict[str, list[str]] = {}
    for rank in found:
        hosts.setdefault(rank.host, []).append(name(rank))
    return Content(" · ").join(
        Content.assemble((f"{host} ", "bold"), ", ".join(named)) for host, named in hosts.items()
    )


def state_head(view: RunView, now: float, *, is_short: bool = False) -> Content:
    """The state, ``● training``, or the pending requests, ``◌ pausing after this step (≤ 20 s)``; ``is_short`` leaves
    out the step."""
    words = pending_words(view.pending, view.state, view.history.timings, now, is_short=is_short)
    if words:
        return Content.styled(f"{PENDING_GLYPH} {words}", "$near")
    name = view.state.state
    return Content.styled(f"{STATE_GLYPHS.get(name, '?')} {view.activity}", state_style(name))


def progress(view: RunView, width: int, glyphs: GlyphSet, now: float, *, answer_awaited: bool = False) -> Content:
    """Progress: ``● training 34/120 ▕████▁▁▁▁▏  28%  ETA 1m 12s``, or the phase before the steps.

    Args:
        view: The run.
        width: Columns.
        glyphs: The glyphs of the bar.
        now: Unix seconds.
        answer_awaited: A question from the chat holds up the training.
    """
    state, history = view.state, view.history
    total = state.total_steps
    step = max(history.step, state.step)
    head = state_head(view, now)
    count = f" {step:{len(str(total))}}/{total}" if total else f" step {step}" if step else ""
    if view.pending:
        count = f" {count}"
    elif view.activity == EVALUATING:
        count = f" at step{count}"  # its own counter follows the bar
    share = (step + _share_of_step(view)) / total if total else 0.0
    head = head + Content(count)
    tail = f" {min(share, 1.0):4.0%}" if total else ""
    # The last texts are left out first, so that the bar keeps its columns; the part of an evaluation matters more.
    used = head.cell_length + (SHORTEST_BAR + 4 if total else 0)
    for number, text in enumerate(_tail(view, now, width - used - len(tail), answer_awaited=answer_awaited)):
        is_part = not number and view.activity == EVALUATING and not view.pending
        if (head.cell_length if is_part else used) + len(tail) + len(text) <= width:
            tail += text
    room = width - head.cell_length - len(tail) - 4
    if not total or room < 6:
        return head + Content(tail)
    room = room // _BAR_STEP * _BAR_STEP if room > _BAR_STEP else room
    full, empty = bar(min(share, 1.0), min(room, 60), glyphs)
    return Content.assemble(head, "  ", (full, "$meter-fill"), (empty, "$meter-track"), " ", tail)


def _share_of_step(view: RunView) -> float:
    progress = view.state.progress
    is_in_step = progress is not None and progress.what == "micro_batches" and progress.total > 1
    return progress.done / progress.total if progress is not None and is_in_step and view.is_live else 0.0


def evaluation_rows(view: RunView) -> int:
    """The most rows that a part of the evaluation counts, as far as known."""
    history, progress = view.history, view.state.progress
    known = (
        history.data.held_out_rows if history.data is not None else None,
        history.phase.total if history.phase is not None else None,
        progress.total if progress is not None else None,
    )
    return max(_FEWEST_ROWS, *(rows or 0 for rows in known))


def evaluation_part(view: RunView, *, is_short: bool = False) -> str:
    """The part of the evaluation and its count in the room of the longest, so that no part moves what follows:
    ``loss    18/80``, ``answers  0/80``.

    Args:
        view: The run.
        is_short: Leave out the part's name.
    """
    phase = view.history.phase
    counted = phase_count(phase.name, view.state.progress, phase.done, phase.total) if phase is not None else ""
    name, _, count = counted.rpartition(" ")
    if "/" not in count:
        name, count = counted, ""
    elif not name:
        # A part before the first step is named by its phase alone.
        name = phase.detail if phase is not None and phase.detail in PARTS else PARTS[0]
    # The number of rows keeps its column; so does the name.
    count = count.rjust(2 * len(str(evaluation_rows(view))) + 1)
    return count if is_short else f"{name:{_PART_WIDTH}}{count}"


def _tail(view: RunView, now: float, room: int, *, answer_awaited: bool) -> list[str]:
    """Texts after the bar, the most important first, for a number of columns."""
    state, history, phase = view.state, view.history, view.history.phase
    step = max(history.step, state.step)
    if view.is_live and not state.parked and phase is not None and phase.name not in ("training", "importing"):
        eta = _eta_texts(view, now)
        if view.activity == EVALUATING and not view.pending:
            # In the room of 10m 02s, so that the bar keeps its columns.
            part, elapsed = f"   {evaluation_part(view)}", f" {format_duration(history.phase_elapsed(now)):7}"
            # The time left matters more than the time so far.
            has_room = len(f"{part}{elapsed}   ETA ") + ETA_WIDTH <= room
            return [part + elapsed if has_room else part, *eta]
        counted = phase_count(phase.name, state.progress, phase.done, phase.total)
        words = f"{phase_name(phase.name)} {counted}".rstrip()
        if state.state == "paused":
            # The clock of a paused run stands still.
            return [f"   {words}"]
        done, _, rows = counted.rpartition("/")
        blanks = " " * max(len(rows) - len(done.rpartition(" ")[2]), 0)
        return [f"   {blanks}{words} {format_duration(history.phase_elapsed(now)):7}", *eta]
    if state.state == "training" and answer_awaited:
        # In the columns of the time left, so that the bar keeps its own.
        whole = _ETA_ROOM + _PARTS_WIDTH
        return [f"{'   training waits for an answer':{whole}}" if room >= whole else f"{'   answering':{_ETA_ROOM}}"]
    if state.state == "training":
        within = progress_words(step_progress(state, history.timings, now))
        return ([f"   {within}"] if within else []) + _eta_texts(view, now)
    if step and history.step_seconds:
        return [f"   {format_duration(history.step_seconds)} of steps"]
    return []


def _eta_texts(view: RunView, now: float) -> list[str]:
    """The time left and its parts, as far as known."""
    if doing(view.pending) in ("stopping", "pausing") or view.state.state != "training" or not view.state.total_steps:
        return []
    # Padded, so that neither the bar nor the parts move as the time shrinks, or before it is known.
    if (eta := view.eta(now)) is None:
        return [" " * _ETA_ROOM, " " * _PARTS_WIDTH]
    # The time for saving comes and goes, and so would its text.
    parts = [f"{name} {left:>7}" for name, left in eta_parts(eta).items() if name != "saving"]
    split = f" ({', '.join(parts)})" if len(parts) > 1 else ""
    return [f"   ETA {eta_words(eta):>{ETA_WIDTH}}", f"{split:{_PARTS_WIDTH}}"]


def phases(view: RunView, now: float, width: int, glyphs: GlyphSet) -> Content:
    """Phases before the first step, ``✓ importing  3.1 s``, ``▸ rehearsing``, and the coming phases of a live run."""
    history = view.history
    coming = EXPECTED_PHASES if view.is_live else ()
    # A parked run last saved its state, and will train again.
    later = _LAST_PHASES if view.state.parked else ()
    begun = {name: phase for name, phase in history.phases.items() if name not in later}
    is_cut = not view.is_live and view.state.state != "finished"
    if is_cut and not view.step and begun.keys() > {"training"}:
        del begun["training"]
    names = [*begun, *(name for name in coming if name not in begun)]
    label_width = max((len(phase_name(name)) for name in names), default=0) + 2
    lines: list[Content] = []
    current = history.phase.name if history.phase is not None and not view.state.parked else None
    for name in names:
        known, label = begun.get(name), phase_name(name).ljust(label_width)
        if known is None:
            lines.append(Content.styled(f"  {label}", "$muted"))
            continue
        if is_cut and name == names[-1]:
            mark = (f"{STATE_GLYPHS.get(view.state.state, '?')} ", state_style(view.state.state))
            lines.append(Content.assemble(mark, label, (format_duration(known.seconds).rjust(8), "$muted")))
            continue
        if name != current:
            lines.append(Content.assemble(("✓ ", "$ok"), label, (format_duration(known.seconds).rjust(8), "$muted")))
            continue
        elapsed = history.phase_elapsed(now) if view.is_live else known.seconds
        seconds = "" if view.state.state == "paused" else format_duration(elapsed).rjust(8)
        line = Content.assemble(("▸ ", "$primary"), (label, "bold"), (seconds, "$muted"))
        if known.total and known.done is not None:
            full, empty = bar(known.done / known.total, 12, glyphs)
            line = Content.assemble(line, "  ", (full, "$meter-fill"), (empty, "$meter-track"))
            is_part = name == EVALUATING
            line = Content.assemble(line, f" {evaluation_part(view) if is_part else f'{known.done}/{known.total}'}")
        if known.detail and name != EVALUATING:
            room = max(width - line.cell_length - 3, 0)
            line = Content.assemble(line, "  ", (one_line(known.detail, max(room, 1)), "$muted")) if room > 8 else line
        lines.append(line)
    if not history.phases and view.is_live:
        lines.insert(0, Content.styled("the worker is starting", "$muted"))
    return Content("\n").join(lines)


def banner(view: RunView, keys: KeyTable) -> Content:
    """A banner for a live run that is paused, stopping, silent or slowed, with helpful keys; otherwise empty."""
    name = view.state.state
    headline = _headline(view)
    if not headline:
        return _governed(view)
    reason = one_line(view.state.parked or view.state.reason, 400)
    if name == "stalled" and reason:
        # Its reason is the headline with the time.
        headline, reason = reason, ""
    line = Content.assemble(
        (f"{STATE_GLYPHS.get(name, '?')} {headline}", f"{state_style(name)} bold".strip()),
        f": {reason.rstrip('.')}." if reason else "",
    )
    if name != "stalled":
        # The keys of a paused run are in the border.
        return line
    hint = Content.assemble((keys["train.stop"].display, "$primary bold"), " stop it or kill its process")
    return Content("\n").join([line, hint])


def _governed(view: RunView) -> Content:
    """The governor's effect on a training run, ``slowed to 60 % to hold 80 °C``, and its forecast of end and energy."""
    slowed, night = view.history.slowed, view.history.night
    if view.state.state != "training":
        return Content("")
    parts: list[Content] = []
    if slowed is not None:
        line = words.describe(slowed.action, slowed.cause, slowed.value, slowed.limit, slowed.duty)
        parts.append(Content.styled(one_line(line, 200), "$near"))
    if night is not None:
        line = words.promised(
            night.finish, night.energy_kwh, night.promised_finish, night.promised_energy_kwh, night.used_kwh
        )
        style = "$limit" if night.misses_deadline or night.misses_energy else ""
        parts.append(Content.styled(one_line(line, 200), style))
        replaced = words.in_place(
            night.deadline, night.nearest_deadline, night.energy_limit_kwh, night.nearest_energy_kwh
        )
        if replaced:
            parts.append(Content.styled(f"! {one_line(replaced, 200)}", "$limit"))
    return Content("\n").join(parts)


def _headline(view: RunView) -> str:
    step, phase = view.step, view.history.phase
    if view.state.state == "paused":
        word = "parked, its device given back," if view.state.parked else "paused"
        return f"{word} at step {step}" if step else word.rstrip(",")
    if view.state.state == "stopping":
        return "stopping after a checkpoint" if phase is not None and phase.name == "saving" else "stopping"
    return "no sign of life" if view.state.state == "stalled" else ""
