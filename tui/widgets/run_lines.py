"""A run in lines of text: its numbers, progress, phases, state and end."""

from __future__ import annotations

import math
from collections.abc import Sequence

from textual.content import Content

from core.runs.names import brief_id
from core.runs.sentences import ALL_DONE, phase_name
from core.runs.series import Series
from core.text import one_line
from core.units import format_duration, format_fixed, format_number, format_rate
from tui.glyphs import GlyphSet
from tui.keys import KeyTable
from tui.state import STATE_COLORS, STATE_GLYPHS, RunView
from tui.widgets.charts.meter import bar

#: Phases of a run, so that those to come can be named.
EXPECTED_PHASES = ("importing", "preparing_data", "loading_model", "rehearsing", "training")


def state_style(state: str) -> str:
    """A state's color, as Content takes it."""
    return f"${STATE_COLORS[state]}" if state in STATE_COLORS else ""


def trend(series: Series) -> str:
    """The direction of the smoothed curve over its last tenth: ``↓``, ``↑``, ``→``; empty when it is too short."""
    if len(series) < 3:
        return ""
    back = max(len(series) // 10, 2)
    recent = [value for value in series.smoothed[-back:] if math.isfinite(value)]
    if len(recent) < 2:
        return ""
    change = recent[-1] - recent[0]
    if abs(change) < 0.002 * max(abs(recent[0]), 1e-9):
        return "→"
    return "↓" if change < 0 else "↑"


def numbers(view: RunView, width: int) -> Content:
    """Numbers: ``loss 0.412 ↓   eval 0.455 @30   grad 0.61   lr 8.1e-4   318 tok/s   1.9 Wh``; cut to the width."""
    history, step = view.history, view.history.last_step
    if step is None:
        return Content("")
    broken = not math.isfinite(step.loss)
    fields = [
        Content.assemble(
            ("loss ", "$muted"),
            (format_number(step.loss).rjust(6), "$limit bold" if broken else "bold"),
            f" {trend(history.loss)}".ljust(2),
        )
    ]
    if history.evals:
        last = history.evals[-1]
        text = f"{format_number(last.loss)} @{last.step}"
        fields.append(Content.assemble(("eval ", "$muted"), text))
        if last.exact_match is not None and width >= 96:
            fields.append(Content.assemble(("exact ", "$muted"), format_fixed(last.exact_match, 2)))
        if last.valid_json is not None and width >= 110:
            fields.append(Content.assemble(("JSON ", "$muted"), format_fixed(last.valid_json, 2)))
    if step.reward_margin is not None:
        fields.append(Content.assemble(("margin ", "$muted"), format_number(step.reward_margin).rjust(6)))
    if step.reward_accuracy is not None:
        fields.append(Content.assemble(("acc ", "$muted"), format_fixed(step.reward_accuracy, 2)))
    fields.append(Content.assemble(("grad ", "$muted"), format_number(step.grad_norm).rjust(6)))
    fields.append(Content.assemble(("lr ", "$muted"), format_number(step.lr).rjust(7)))
    fields.append(Content(format_rate(history.tokens_per_second).rjust(9)))
    if history.energy_wh is not None:
        fields.append(Content(f"{format_fixed(history.energy_wh, 1)} Wh"))
    gap = "   " if width >= 90 else "  "
    kept: list[Content] = []
    used = 0
    for item in fields:
        used += item.cell_length + (len(gap) if kept else 0)
        if used > width:
            break
        kept.append(item)
    return Content(gap).join(kept)


def progress(view: RunView, width: int, glyphs: GlyphSet, now: float, *, answer_awaited: bool = False) -> Content:
    """Progress: ``● training 34/120 ▕████▁▁▁▁▏  28 %  ETA 1m 12s``, or the phase before the steps.

    Args:
        view: The run.
        width: Columns.
        glyphs: The glyphs of the bar.
        now: Unix seconds.
        answer_awaited: Whether a question from the chat holds up the training.
    """
    state, history = view.state, view.history
    total = state.total_steps
    step = max(history.step, state.step)
    head = Content.assemble((f"{STATE_GLYPHS.get(state.state, '?')} {state.state}", state_style(state.state)))
    count = f" {step}/{total}" if total else f" step {step}" if step else ""
    tail = ""
    if total:
        tail += f" {step / total:4.0%}".replace("%", " %")
    phase = history.phase
    if view.is_live and phase is not None and phase.name not in ("training", "importing"):
        done = f" {phase.done}/{phase.total}" if phase.done is not None and phase.total else ""
        tail += f"   {phase_name(phase.name)}{done} {format_duration(history.phase_elapsed(now))}"
    elif state.state == "training" and answer_awaited:
        tail += "   training waits for an answer"
    elif state.state == "training":
        eta = history.eta_seconds(total)
        tail += f"   ETA {format_duration(eta)}" if eta is not None else ""
    elif step and history.step_seconds:
        tail += f"   {format_duration(history.step_seconds)} of steps"
    head = head + Content(count)
    room = width - head.cell_length - len(tail) - 4
    if not total or room < 6:
        return head + Content(tail)
    full, empty = bar(step / total, min(room, 60), glyphs)
    return Content.assemble(
        head,
        "  ",
        (full, "$meter-fill"),
        (empty, "$meter-track"),
        " ",
        tail,
    )


def phases(view: RunView, now: float, width: int, glyphs: GlyphSet) -> Content:
    """Phases of a run before its first step: ``✓ importing  3.1 s``, ``▸ rehearsing``, and those to come."""
    history = view.history
    names = [*history.phases, *(name for name in EXPECTED_PHASES if name not in history.phases)]
    label_width = max(len(phase_name(name)) for name in names) + 2
    lines: list[Content] = []
    current = history.phase.name if history.phase is not None else None
    for name in names:
        known, label = history.phases.get(name), phase_name(name).ljust(label_width)
        if known is None:
            lines.append(Content.styled(f"  {label}", "$muted"))
            continue
        if name != current:
            lines.append(Content.assemble(("✓ ", "$ok"), label, (format_duration(known.seconds).rjust(8), "$muted")))
            continue
        seconds = format_duration(history.phase_elapsed(now) if view.is_live else known.seconds).rjust(8)
        line = Content.assemble(("▸ ", "$primary"), (label, "bold"), (seconds, "$muted"))
        if known.total and known.done is not None:
            full, empty = bar(known.done / known.total, 12, glyphs)
            line = Content.assemble(line, "  ", (full, "$meter-fill"), (empty, "$meter-track"))
            line = Content.assemble(line, f" {known.done}/{known.total}")
        if known.detail:
            room = max(width - line.cell_length - 3, 0)
            line = Content.assemble(line, "  ", (one_line(known.detail, max(room, 1)), "$muted")) if room > 8 else line
        lines.append(line)
    if not history.phases:
        lines.insert(0, Content.styled("the worker is starting", "$muted"))
    return Content("\n").join(lines)


def banner(view: RunView, keys: KeyTable) -> Content:
    """A banner for the state of a run that is not simply training, with the key of the next action; else nothing."""
    state, end = view.state, view.history.end
    name = state.state
    if name in ("queued", "starting", "training"):
        return Content("")
    glyph = Content.styled(f"{STATE_GLYPHS.get(name, '?')} {_headline(view)}", f"{state_style(name)} bold".strip())
    reason = one_line(state.reason or (end.reason if end is not None else ""), 400)
    hint = one_line(end.hint, 300) if end is not None and end.hint and state.is_over else ""
    if reason.startswith(f"{name} "):
        # The banner has the step already: "stopped on request after step 40".
        sentences = [f" {reason.removeprefix(name).strip().rstrip('.')}."]
        glyph = Content.styled(f"{STATE_GLYPHS.get(name, '?')} {name}", f"{state_style(name)} bold".strip())
        sentences += [f" {hint.rstrip('.')}."] if hint else []
        lines = [glyph + Content("".join(sentences))]
    else:
        # A finished run needs no banner, unless it ended early or its adapter is not that of the last step.
        told = (reason, hint) if name != "finished" else (reason if reason != ALL_DONE else "",)
        sentences = [text.rstrip(".") + "." for text in told if text]
        lines = [glyph + Content(f": {' '.join(sentences)}" if sentences else "")]
    following = _next_keys(view, keys)
    if following:
        lines.append(
            Content("   ").join(Content.assemble((key, "$primary bold"), f" {what}") for key, what in following)
        )
    return Content("\n").join(lines)


def _headline(view: RunView) -> str:
    state, step, phase = view.state, view.step, view.history.phase
    where = f" at step {step}" if step else ""
    texts = {
        "paused": f"paused{where}",
        "stopping": "stopping after a checkpoint" if phase is not None and phase.name == "saving" else "stopping",
        "finished": f"finished{where}",
        "stopped": f"stopped{where}",
        "failed": f"failed{where}",
        "lost": f"lost{where}",
        "stalled": "no sign of life",
    }
    return texts.get(state.state, state.state)


def _next_keys(view: RunView, keys: KeyTable) -> Sequence[tuple[str, str]]:
    name = view.state.state
    chat = (keys["app.chat"].display, "talk to it")
    go_on = (keys["train.continue"].display, "continue")
    again = (keys["app.start"].display, f"start {brief_id(view.run.id)} again")
    edit = (keys["train.settings"].display, "edit it first")
    if name == "paused":
        return [(keys["train.pause"].display, "resume"), (keys["train.stop"].display, "stop")]
    if name == "stalled":
        return [(keys["train.stop"].display, "stop it or kill its process")]
    if name == "finished":
        return [chat, again, edit]
    if name in ("stopped", "failed", "lost"):
        return [go_on, chat, again, edit] if view.history.checkpoints else [again, edit]
    return []
