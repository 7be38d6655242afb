"""``watch RUN``: a run's events as they come, as a readable log or as JSON lines."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING

from core.commands.common import (
    add_json_flag,
    add_run_argument,
    describe_state,
    escape_json,
    exit_code,
    flush,
    note,
    put,
    say,
)

if TYPE_CHECKING:
    from core.commands.follow import Followed, View
    from core.runs.record.events import Event
    from core.runs.record.history import LogLine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_run_argument(parser)
    parser.add_argument("--plain", action="store_true")
    add_json_flag(parser, "print each event as a line of JSON, as in the run's events.jsonl")


def run(args: argparse.Namespace) -> int:
    """Show the whole history, then new events, until the run is over; Ctrl-C leaves it running.

    Returns:
        The exit code of the run, or 130 when the user left it.
    """
    from core.commands.follow import follow, leave
    from core.commands.summary import summarize, summary_lines
    from core.runs.record.store import find_run

    target = find_run(args.run)
    view: View = JsonLines() if args.json else Log(plain=args.plain)
    followed = follow(target, view, stop_on_interrupt=False)
    if followed is None:
        return leave(target)
    if not args.json:
        say(*summary_lines(followed, summarize(followed)))
    return exit_code(followed.state)


class JsonLines:
    """A view that prints each event as JSON, and the state between events; a :class:`~core.commands.follow.View`."""

    def __init__(self) -> None:
        self._told: tuple[object, ...] = ((), None)

    def event(self, event: Event, log: list[LogLine], followed: Followed) -> None:  # noqa: ARG002
        """Print the event."""
        from core.runs.record.events import encode_event

        put(escape_json(encode_event(event)))

    def tick(self, followed: Followed) -> None:
        """Print requests that wait, and how far a long step or an evaluation is, where that has changed."""
        import dataclasses

        from core.runs.record.sentences import long_progress

        state = followed.state
        if not state.is_over:
            now = time.time()
            progress = long_progress(state, followed.history.timings, now)
            # That a step is over is an event; the next one may be short.
            told = (state.pending, progress or self._told[1])
            if told != self._told:
                self._told = told
                within = dataclasses.asdict(progress) if progress is not None else None
                fields = {"state": state.state, "step": state.step, "pending": state.pending, "progress": within}
                put(escape_json(json.dumps({"t": now, "type": "state", **fields}) + "\n"))
        flush()

    def message(self, text: str) -> None:
        """Print a message of the command itself, apart from the events."""
        note(text)

    def close(self) -> None:
        """Nothing to clean up."""


class Log:
    """A view that prints a line per event with its time, and on a terminal the run's activity below; a
    :class:`~core.commands.follow.View`.

    Args:
        plain: Whether to leave out the line below, on any terminal.
    """

    def __init__(self, *, plain: bool = False) -> None:
        from core.commands.live_line import LiveLine

        self._line = LiveLine(plain=plain)
        self._state = ""
        self._pending: tuple[str, ...] = ()
        self._silent = False

    def event(self, event: Event, log: list[LogLine], followed: Followed) -> None:
        """Print the event in words."""
        from core.commands.progress import log_words, sample_words, step_words
        from core.runs.record.events import RanksEvent, SampleEvent, StepEvent
        from core.runs.record.sentences import clock

        for line in log:
            self._say(f"{line.clock} {log_words(line)}")
        if isinstance(event, StepEvent):
            self._say(f"{clock(event.t)} {step_words(event, followed.state.total_steps)}")
        elif isinstance(event, SampleEvent):
            self._say(f"{clock(event.t)} {sample_words(event)}")
        elif isinstance(event, RanksEvent):
            for rank in followed.history.ranks:
                self._say(f"{clock(event.t)} process {rank.rank}: {rank.host}, {rank.device}, pid {rank.pid}")

    def tick(self, followed: Followed) -> None:
        """Print the changes without an event: a state, and requests that wait for the end of a step."""
        from core.commands.progress import present
        from core.runs.record.sentences import clock, pending_words

        state, now = followed.state, time.time()
        if state.state != self._state and state.state in ("paused", "stalled", "lost"):
            self._say(f"{clock(now)} {describe_state(state)}")
        self._tell_silence(followed, now)
        pending = () if state.is_over else state.pending
        if set(pending) - set(self._pending):
            self._say(f"{clock(now)} {pending_words(pending, state, followed.history.timings, now)}")
        self._state, self._pending = state.state, pending
        if state.is_over:
            self._line.clear()
        else:
            self._line.draw(present(followed))

    def _tell_silence(self, followed: Followed, now: float) -> None:
        """Print when processes stop giving signs of life, and when they do again."""
        from core.runs.record.sentences import clock
        from core.runs.record.state import read_ranks, silent_words

        if len(followed.history.ranks) < 2 or followed.state.is_over:
            return
        words = silent_words(read_ranks(followed.run.path), now)
        if bool(words) != self._silent:
            self._silent = bool(words)
            self._say(f"{clock(now)} {words or 'all processes respond again'}")

    def _say(self, text: str) -> None:
        self._line.clear()
        say(text)

    def message(self, text: str) -> None:
        """Print a message of the command itself."""
        self._line.clear()
        note(text)

    def close(self) -> None:
        """Clear the line of progress."""
        self._line.clear()
