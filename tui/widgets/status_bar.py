"""Status bar, the first line of the screen: run, configuration and devices, shortened by priority."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from textual.content import Content
from textual.widget import Widget

from core.hardware.snapshot import Device
from core.jobs.running import RunningJob
from core.runs.outlook.energy import energy_words
from core.runs.outlook.time_left import eta_words
from core.runs.record.sentences import brief_id, doing, slug_of
from core.runs.record.timings import EVALUATING
from core.text import one_line
from core.units import coarse_ago, format_number
from tui.meters import (
    GLYPHS,
    SHORT_WORDS,
    WORD_COLORS,
    memory_percent,
    memory_word,
    stale_words,
    temperature_word,
    worst,
)
from tui.state import STATE_GLYPHS, AppState, RunView
from tui.widgets.run_lines import ETA_WIDTH, evaluation_part, evaluation_rows, state_head, state_style
from tui.widgets.strips import style_of

#: Maximum number of cards with a value each.
MOST_LISTED = 4
#: Seconds from which a running job is shown.
JOB_SECONDS = 3.0
#: Columns of the loss.
_LOSS_WIDTH = 5
#: Blanks between two segments.
_GAP = 2


@dataclass(frozen=True)
class Segment:
    """A segment of the bar. If room is short, segments with high priority numbers are shortened, then left out."""

    content: Content
    priority: float
    """Priority; 0 is kept longest."""
    short: Content | None = None
    right: bool = False
    """Align to the right."""


_PROGRAM = Segment(Content.styled("localtune-tui", "$primary bold"), 8)
#: Priority of written-out forms, between those of parts.
_WRITTEN_OUT = 7.5


def fit(segments: Sequence[Segment], width: int) -> Content:
    """Fit the segments into a number of columns: the least important are shortened first, then left out; where there is
    room again, they are brought back or written out."""
    kept: dict[int, Segment] = dict(enumerate(segments))
    by_priority = sorted(kept, key=lambda place: -segments[place].priority)
    for place in by_priority:
        short = segments[place].short
        if _length(kept.values()) > width and short is not None:
            kept[place] = dataclasses.replace(segments[place], content=short)
    left_out: dict[int, Segment] = {}
    for place in by_priority:
        if _length(kept.values()) > width:
            left_out[place] = kept.pop(place)
    # Of the written-out forms, the one that costs least comes first: a percentage before the name of a card.
    ranks = {
        place: (_WRITTEN_OUT, segment.content.cell_length - kept[place].content.cell_length, -place)
        if place in kept
        else (segment.priority, 0, -place)
        for place, segment in enumerate(segments)
    }
    for place in sorted(ranks, key=ranks.__getitem__):
        segment = left_out.get(place, segments[place])
        if _length({**kept, place: segment}.values()) <= width:
            kept[place] = segment
    shown = [kept[place] for place in sorted(kept)]
    left = Content(" " * _GAP).join(item.content for item in shown if not item.right)
    right = Content(" " * _GAP).join(item.content for item in shown if item.right)
    space = max(width - left.cell_length - right.cell_length, _GAP if right.plain else 0)
    return Content.assemble(left, " " * space, right)


def _length(segments: Iterable[Segment]) -> int:
    lengths = [item.content.cell_length for item in segments]
    return sum(lengths) + _GAP * max(len(lengths) - 1, 0)


def header_segments(state: AppState, now: float, *, jobs: str = "J") -> list[Segment]:
    """Segments of the header, the same whichever pane is shown, so that none moves from pane to pane.

    Args:
        state: The app's state.
        now: The current time, in Unix seconds.
        jobs: The key that shows the jobs.
    """
    segments = [_PROGRAM]
    view = state.view
    is_same, is_other = False, view is not None and not view.is_live and not state.is_of_config
    # Beside the state of another configuration's run, the name of this one matters more.
    name_priority = 2 if is_other else 9
    if state.file_name:
        edited = Content.styled(" •edited", "$near") if state.is_dirty else Content("")
        segments.append(Segment(Content(one_line(state.file_name, 40)) + edited, name_priority))
    elif (state.is_dirty or not state.is_of_config) and (name := state.config_name):
        unsaved = Content.styled(" •not saved", "$near") if state.is_dirty else Content("")
        # A name shared with the run is shown once.
        is_same = view is not None and slug_of(view.run.id) == name
        segments.append(Segment(Content(one_line(name, 40)) + unsaved, 8 if is_same else name_priority))
    if view is not None and is_other:
        segments += _other_run(view, now)
    elif view is not None:
        segments += _run_segments(
            view, now, answer_awaited=state.answer_awaited, is_named=is_same, is_own=state.is_of_config
        )
    if state.other_live:
        segments.append(Segment(Content.styled(f"● {one_line(state.other_live, 30)} is live", "$ok"), 1))
    if state.serving is not None and state.serving.error is None:
        is_on = state.serving.address is not None
        glyph, style = ("●", "$ok") if is_on else ("◌", "$near")
        brief = Content.styled(f"{glyph} serving", style)
        segments.append(Segment(brief + Content(f" {one_line(state.serving.name, 40)}"), 4, brief))
    if listed := [job for job in state.jobs if job.is_over or job.seconds >= JOB_SECONDS]:
        segments.append(_job_segment(listed, jobs))
    devices, read = state.devices, 0.0
    if view is not None and view.reports_devices:
        devices, read = view.reading().devices, view.reading_age(now) or 0.0
    if cards := [item for item in devices if item.kind != "cpu"] or devices[:1]:
        segments += _device_segments(cards, stale_words(max(read, *(card.age_s or 0.0 for card in cards))))
    segments.append(Segment(Content.styled(one_line(state.host, 30), "$muted"), 6, right=True))
    return segments


def _job_segment(jobs: Sequence[RunningJob[Any, Any]], key: str) -> Segment:
    """The running job that ends last, else the one that ended last, and the number of the others."""
    running = [job for job in jobs if not job.is_over]
    job = max(running, key=lambda item: item.seconds_left) if running else jobs[-1]
    style = "$muted" if running else "$limit" if job.error is not None else "$ok"
    more = f" +{len(jobs) - 1}" if len(jobs) > 1 else ""
    head, short = Content.styled(f"{key} ", "$primary bold"), job.left if running else job.state
    whole = Content.assemble(head, f"{job.kind} ", (job.state, style), more)
    return Segment(whole, 1, Content.assemble(head, f"{job.kind} ", (short.removesuffix(" left"), style), more))


def _other_run(view: RunView, now: float) -> list[Segment]:
    """The segment of an ended run of another configuration."""
    ended = f"{view.state.state} {coarse_ago(now - view.state.updated)}"
    # The line separates it from the configuration.
    which = f"│ {'last' if view.is_leftover else 'other'} run:"
    brief = Content.styled(f"{which} {one_line(slug_of(view.run.id), 20)}, {ended}", "$muted")
    return [Segment(Content.styled(f"{which} {brief_id(view.run.id)}, {ended}", "$muted"), 5, brief)]


def _run_segments(
    view: RunView, now: float, *, answer_awaited: bool, is_named: bool = False, is_own: bool = True
) -> list[Segment]:
    """Segments of the run: its name, model, and state with the time left.

    Args:
        view: The run.
        now: The current time, in Unix seconds.
        answer_awaited: A question to the model holds it up.
        is_named: The segment before already shows its short name.
        is_own: It belongs to the configuration of the segment before.
    """
    identity, word = one_line(view.run.id, 60), ("run ", "$muted")
    whole, slug = Content.assemble(word, identity), slug_of(identity)
    if is_own:
        segments = [Segment(whole, 9) if is_named else Segment(whole, 5, Content(slug))]
    else:
        # Without its name, the configuration's would seem to be trained.
        segments = [Segment(whole, 0, Content.assemble(word, one_line(slug, 20)))]
    if view.model:
        segments.append(Segment(Content.styled(view.model, "$muted"), 10))
    name, total, activity = view.state.state, view.state.total_steps, view.activity
    step = max(view.history.step, view.state.step)
    count = f" {step:{len(str(total))}}/{total}" if total else ""
    glyph, style = STATE_GLYPHS.get(name, "?"), state_style(name)
    digits = max(len(str(total)), len(str(evaluation_rows(view))))
    if activity == EVALUATING:
        # Without the part's name, for which the pane has room.
        count = f" {evaluation_part(view, is_short=True):{2 * digits + 1}}"
    elif name == "training" and answer_awaited:
        activity, count = "answering", f" at step {step}"
    full, brief = Content.styled(f"{glyph} {activity}", style) + Content(count), None
    pending = view.pending
    if pending:
        full, brief = state_head(view, now), state_head(view, now, is_short=True)
    is_going_on = name == "training" and activity != "answering" and doing(pending) not in ("stopping", "pausing")
    eta = view.eta(now) if is_going_on and total else None
    why = (view.state.parked or view.state.reason) if name == "paused" and not pending else ""
    # The room of the time left is kept where nothing else takes it.
    free = _GAP + len("ETA ") + ETA_WIDTH if eta is None and not why else 0
    if view.is_live:
        # What follows keeps its column when an evaluation begins, and before the time left is known.
        room = len(f"● {EVALUATING} /") + 2 * digits + free
        full = full.pad_right(max(room - full.cell_length, 0))
        brief = brief and brief.pad_right(max(room - brief.cell_length, 0))
    segments.append(Segment(full, 0, brief))
    if why:
        segments.append(Segment(Content.styled(one_line(why, 60), style), 1))
    if eta is not None:
        segments.append(Segment(Content.assemble(("ETA ", "$muted"), f"{eta_words(eta):>{ETA_WIDTH}}"), 1))
    if energy := energy_words(view.reading().energy_wh, view.tariff):
        # In the room of 1.00 kWh.
        segments.append(Segment(Content.styled("  ".join(f"{part:8}" for part in energy), "$muted"), 11))
    last = view.history.last_step
    if last is not None or view.is_live:
        # Its room is kept before the first step, and is empty before the number of steps is known.
        value = _brief_number(last.loss) if last is not None else "–"
        loss = Content.assemble(("loss ", "$muted"), f"{value:{_LOSS_WIDTH}}")
        segments.append(Segment(loss if total else Content(" " * loss.cell_length), 3))
    return segments


def _brief_number(value: float) -> str:
    """A loss in the room of ``0.123``, so that a smaller one moves nothing."""
    text = format_number(value)
    if len(text) <= _LOSS_WIDTH:
        return text
    return f"{value:.3f}" if 1e-3 <= abs(value) < 1 else f"{value:.0e}"


def _name(cards: Sequence[Device]) -> str:
    names = {short_device_name(card.name) for card in cards}
    if len(cards) == 1:
        return "CPU" if cards[0].kind == "cpu" else names.pop()
    return f"{len(cards)}× {names.pop()}" if len(names) == 1 else f"{len(cards)} cards"


@dataclass(frozen=True)
class _Reading:
    """A reading of the cards, its short form, and the word for its threshold."""

    whole: str
    brief: str
    word: str
    priority: float

    def segment(self, age: str = "", *, is_first: bool) -> Segment:
        """Its segment. Word and glyph have the room of the longest, so that a threshold moves nothing. A stale reading
        is dim and without its word; the first one has the age there, in short in the place of a blank too.

        Args:
            age: The age of a stale reading, ``20s old``; empty for a fresh one.
            is_first: It has the age.
        """
        if not self.word:
            return Segment(Content(self.whole), self.priority, Content(self.brief), right=True)
        whole, brief = (self.whole, SHORT_WORDS[self.word]), (self.brief, GLYPHS[self.word])
        base, style = "", f"${WORD_COLORS[self.word]}"
        if age:
            base, style = "$muted", "$near"
            whole, brief = (self.whole, ""), (self.brief, "")
            if is_first:
                whole, brief = (self.whole, age), (self.brief.replace(" ", ""), age.partition(" ")[0])
        rooms = (
            len(text) + 1 + _longest(words.values())
            for text, words in ((self.whole, SHORT_WORDS), (self.brief, GLYPHS))
        )
        first, second = (
            Content.assemble((f"{text} ", base), (word.ljust(room - len(text) - 1), style))
            for (text, word), room in zip((whole, brief), rooms, strict=True)
        )
        return Segment(first, self.priority, second, right=True)


def _device_segments(cards: Sequence[Device], age: str) -> Iterator[Segment]:
    """Unreadable cards, or else temperatures, or else loads, and memory; the age of stale readings comes last.

    Args:
        cards: The cards.
        age: The age of stale readings, in words; empty for fresh ones.
    """
    hot = [card for card in cards if card.temperature_c is not None]
    loads = [f"{_steady(card):.0f}" for card in cards if card.utilization is not None]
    unread = sum(bool(card.problem) for card in cards)
    readings: list[_Reading] = []
    if hot or unread:
        yield Segment(Content.styled(_name(cards), "$muted"), _WRITTEN_OUT, right=True)
    if unread:
        text = f"{f'{unread} of {len(cards)} ' if len(cards) > 1 else ''}cannot be read"
        yield Segment(Content.styled(text, "$limit"), 2, right=True)
    elif hot:
        degrees = [f"{card.temperature_c:.0f}" for card in hot]
        # The third digit takes the place of the blank, so that 100 °C moves nothing.
        unit = "°C" if any(len(text) > 2 for text in degrees) else " °C"
        word = worst(temperature_word(card) for card in hot)
        readings.append(_Reading(f"{_listed(degrees)}{unit}", f"{max(degrees, key=float)}{unit}", word, 2))
    elif loads:
        load = f"{_listed(loads).rjust(4 * min(len(loads), MOST_LISTED) - 1)}%", "$muted" if age else ""
        yield Segment(Content.assemble((f"{_name(cards)} ", "$muted"), load), 7, right=True)
    readings += _memory(cards)
    for reading in readings:
        yield reading.segment(age, is_first=reading is readings[0])
    if age and not readings:
        yield Segment(Content.styled(age, "$near"), 2, right=True)


def _memory(cards: Sequence[Device]) -> Iterator[_Reading]:
    """Memory of each card if all are equally large, else the sum, and the percentage of the fullest card, which is the
    short form."""
    filled = [(card.memory_used, card.memory_total) for card in cards if card.memory_used is not None]
    sizes = [(used / 1e9, total / 1e9) for used, total in filled if total]
    if not sizes:
        return
    word = worst(memory_word(card) for card in cards if memory_word(card))
    is_cpu = cards[0].kind == "cpu"
    # The blank before it is the room of 100 %.
    percent = f"{max(memory_percent(card) or 0 for card in cards)}%".rjust(4)
    together = _of(sum(used for used, _ in sizes), sum(total for _, total in sizes))
    totals = {f"{total:.0f}" for _, total in sizes}
    each = together
    if len(sizes) > 1 and len(totals) == 1:
        room = max(len(f"{total:.1f}") for _, total in sizes)
        each = f"{_listed([f'{used:{room}.1f}' for used, _ in sizes])}/{totals.pop()} GB"
    whole, brief = (f"RAM {each}", f"RAM{percent}") if is_cpu else (f"{each}{percent}", f"VRAM{percent}")
    yield _Reading(whole, brief, word, 2.5)


def _of(used: float, total: float) -> str:
    """Used and total gigabytes; the used ones have the room of the total."""
    return f"{used:{len(f'{total:.1f}')}.1f}/{total:.0f} GB"


def _longest(words: Iterable[str]) -> int:
    return max(map(len, words))


def _listed(values: Sequence[str]) -> str:
    """The value of each card, or the range for many: ``71·83``, ``61–74``."""
    if len(values) <= MOST_LISTED:
        return "·".join(values)
    return f"{min(values, key=float)}–{max(values, key=float)}"


def _steady(device: Device) -> float:
    """The load of a device; a CPU's is rounded to 5 %, so that an idle screen is not repainted."""
    load = device.utilization or 0.0
    return round(load / 5) * 5 if device.kind == "cpu" else load


def short_device_name(name: str) -> str:
    """A card's name without its vendor: ``RTX 4090``."""
    text = one_line(name, 60)
    for maker in ("NVIDIA ", "GeForce ", "AMD ", "Radeon ", "Tesla "):
        text = text.replace(maker, "")
    return text.strip()[:24]


class StatusBar(Widget):
    """The bar, repainted only when its text changes."""

    DEFAULT_CSS = style_of("StatusBar")

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._segments: Sequence[Segment] = [_PROGRAM]
        self._line = _PROGRAM.content

    def show(self, state: AppState, now: float, *, jobs: str = "J") -> None:
        """Show the app's state at a Unix time; see :func:`header_segments`."""
        self._segments = header_segments(state, now, jobs=jobs)
        self._fit()

    def on_resize(self) -> None:
        """Fit the line to the new width."""
        self._fit()

    def _fit(self) -> None:
        line = fit(self._segments, self.content_size.width)
        if not line.is_same(self._line):
            self._line = line
            self.refresh()

    def render(self) -> Content:
        return self._line
