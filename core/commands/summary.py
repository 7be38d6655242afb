"""The summary of a followed run, as fields for ``--json`` and as lines for a reader."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from core.commands.common import PROGRAM, describe_state, emit, exit_code, say
from core.commands.follow import Followed
from core.errors import UserError
from core.launch.launcher import failure_reason
from core.runs.after_end import way_on
from core.runs.store import Run, complete_checkpoints
from core.text import one_line
from core.tracking.start import places
from core.units import format_bytes, format_number, format_rate


def summarize(followed: Followed) -> dict[str, Any]:
    """The summary of a run.

    Returns:
        ``run``, ``state``, ``step``, ``total_steps``, ``loss`` (of the last step), ``tokens_per_second`` (padding,
        pauses and start-up left out), ``peak_rss_bytes``, ``adapter`` (an absolute path, or None), and for a run that
        did not finish ``reason`` and ``hint``.
    """
    run, state, history = followed.run, followed.state, followed.history
    last = history.last_step
    summary: dict[str, Any] = {
        "run": run.id,
        "state": state.state,
        "step": last.step if last else state.step,
        "total_steps": state.total_steps,
        "loss": last.loss if last else None,
        "tokens_per_second": history.tokens_per_second,
        "peak_rss_bytes": followed.peak_rss_bytes,
        "adapter": adapter_of(followed),
    }
    if state.state != "finished":
        end = history.end if state.state != "lost" else None
        summary["reason"] = (end.reason if end else "") or failure_reason(run)
        summary["hint"] = (end.hint if end else "") or _hint(run)
    return summary


def adapter_of(followed: Followed) -> str | None:
    """The path of an ended run's adapter; None where it has none."""
    end = followed.history.end
    if end is None or not end.adapter:
        return None
    parts = Path(end.adapter).parts
    # It is in the run directory, whatever a record says.
    is_inside = ".." not in parts and not Path(end.adapter).is_absolute() and "\0" not in end.adapter
    return os.fspath(followed.run.path / end.adapter) if is_inside else None


def report(followed: Followed, *, as_json: bool) -> int:
    """Print the summary of an ended run, and return the exit code."""
    summary = summarize(followed)
    if as_json:
        emit(summary)
    else:
        for line in summary_lines(followed, summary):
            say(line)
    return exit_code(followed.state.state)


def summary_lines(followed: Followed, summary: dict[str, Any]) -> list[str]:
    """The summary for a reader, with what to do next."""
    run = followed.run
    lines = [
        f"run       {run.id}",
        f"state     {describe_state(followed.state)}",
        f"loss      {format_number(summary['loss'])}",
        f"speed     {format_rate(summary['tokens_per_second'])}",
        f"memory    {format_bytes(summary['peak_rss_bytes'])} at most",
    ]
    if summary["adapter"]:
        lines.append(f"adapter   {summary['adapter']}")
    if reason := summary.get("reason"):
        if reason != followed.state.reason:
            lines.append(f"reason    {one_line(reason)}")
        if summary["hint"]:
            lines.append(f"next      {one_line(summary['hint'])}")
    else:
        lines.append(f"next      {PROGRAM} chat {run.id}")
    return lines + _tracker_lines(run)


def _tracker_lines(run: Run) -> list[str]:
    """Lines about trackers that have failed so far; one that is still at work is not waited for."""
    try:
        asked = list(places(run, run.config()))
    except UserError:
        return []
    return [
        f"tracker   {place.name} failed: {one_line(position.reason, 200)} Send the rest: {PROGRAM} track {run.id}"
        for place in asked
        if (position := place.position()).state == "failed"
    ]


def _hint(run: Run) -> str:
    if complete_checkpoints(run):
        return way_on(run)
    return f"It saved no checkpoint; the whole log is {run.log_path}."
