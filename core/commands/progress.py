"""The progress of a run on standard error: one live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time

from core.commands.follow import Followed
from core.commands.live_line import ProgressLine
from core.runs.catalog.answers import verdict
from core.runs.outlook.time_left import eta_words
from core.runs.record import sentences
from core.runs.record.events import Event, SampleEvent, StepEvent
from core.runs.record.history import LogLine, RunPhase
from core.runs.record.sentences import pending_words, phase_count, progress_words, step_progress
from core.runs.record.state import StepProgress
from core.text import one_line
from core.units import format_duration, format_fixed, format_number, format_power, format_rate


def step_words(event: StepEvent, total_steps: int) -> str:
    """An optimizer step in words: ``step 34/120  loss 0.412  lr 8.1e-4  grad 0.61  318 tok/s``."""
    step = f"{event.step}/{total_steps}" if total_steps else f"{event.step}"
    margin = "" if event.reward_margin is None else f"margin {format_number(event.reward_margin)}  "
    accuracy = "" if event.reward_accuracy is None else f"acc {format_fixed(event.reward_accuracy, 2)}  "
    return (
        f"step {step}  loss {format_number(event.loss)}  lr {format_power(event.lr)}  "
        f"grad {format_number(event.grad_norm)}  {margin}{accuracy}{format_rate(event.tokens_per_second)}"
    )


def sample_words(event: SampleEvent) -> str:
    """An answer in words: ``step-30 to "Router 12 is dead": {"area": "network"} (right)``."""
    question, answer = one_line(event.prompt.strip(), 80), one_line(event.text.strip(), 200)
    found = verdict(event)
    mark = " (right)" if found == "right" else ""
    if found == "wrong" and event.expected is not None:
        mark = f" (wanted: {one_line(event.expected.strip(), 100)})"
    return f'{one_line(event.source, 40)} to "{question}": {answer}{mark}'


def log_words(line: LogLine) -> str:
    """A log line, with its level in front unless it is information."""
    return line.text if line.level == "info" else f"{line.level}: {line.text}"


class Progress(ProgressLine):
    """The progress display of a followed run; a :class:`~core.commands.follow.View`."""

    def __init__(self) -> None:
        super().__init__()
        self._stalled = False

    def event(self, event: Event, log: list[LogLine], followed: Followed) -> None:  # noqa: ARG002
        """Print the log lines that the event adds."""
        for line in log:
            self.message(log_words(line))

    def tick(self, followed: Followed) -> None:
        """Update the live line."""
        state = followed.state
        if (state.state == "stalled") != self._stalled:
            self._stalled = not self._stalled
            self.message(f"warning: {state.reason}" if self._stalled else "it responds again")
        if not state.is_over:
            self.show(present(followed))

    def close(self) -> None:
        """Clear the live line."""
        self.clear()


def present(followed: Followed) -> str:
    """The current activity of the run, on one line."""
    state, history = followed.state, followed.history
    last, phase = history.last_step, history.phase
    now = time.time()
    # Pending requests come first, as the line is cut at the terminal's width.
    waits = pending_words(state.pending, state, history.timings, now)
    front = f"{waits}  " if waits else ""
    if state.state == "paused":
        word = f"parked ({state.parked})" if state.parked else "paused"
        why = f": {state.reason}" if state.reason and not state.parked else ""
        return f"{front}{word} at step {state.step} of {state.total_steps}{why}"
    left = "" if waits else eta_words(followed.eta(now), split=True)
    eta = f"  ETA {left}" if left else ""
    if last is not None and (phase is None or phase.name == "training"):
        within = progress_words(step_progress(state, history.timings, now))
        return f"{front}{step_words(last, state.total_steps)}{f'  {within}' if within else ''}{eta}"
    if phase is None:
        return f"{front}{state.state}"
    words = phase_words(phase, state.progress, history.phase_elapsed(now))
    return f"{front}{words}{eta}"


def phase_words(phase: RunPhase, progress: StepProgress | None, elapsed: float) -> str:
    """A phase, how far it is, and since when: ``evaluating: answers 32/80  12s``."""
    counted = phase_count(phase.name, progress, phase.done or 0, phase.total)
    # A part of an evaluation is counted by its name, which the detail has too.
    told = counted if counted and not counted[0].isdigit() else " ".join(filter(None, (phase.detail, counted)))
    words = sentences.phase_name(phase.name) + (f": {told}" if phase.detail else f" {told}" if told else "")
    return f"{words}  {format_duration(elapsed)}"
