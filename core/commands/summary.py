"""The summary of a followed run, as fields for ``--json`` and as lines for a reader."""

from __future__ import annotations

import os
from typing import Any

from core.commands.common import PROGRAM, describe_state, emit, exit_code, say
from core.commands.follow import Followed
from core.errors import UserError
from core.launch.launcher import failure_reason
from core.runs.catalog.result import PROBE_LOSS, RunResult, refusal_of, result_of, result_path
from core.runs.catalog.trained import take_command
from core.runs.outlook.energy import energy_words
from core.runs.record.store import Run, after_refusal, complete_checkpoints, way_on
from core.text import one_line
from core.tracking.start import places
from core.units import format_bytes, format_duration, format_number, format_rate


def summarize(followed: Followed) -> dict[str, Any]:
    """The summary of a run.

    Returns:
        ``run``, ``state``, ``step``, ``total_steps``, ``loss`` (of the last step), ``tokens_per_second`` (padding,
        pauses and start-up left out), ``peak_rss_bytes`` (of the first process), ``processes``, ``adapter`` (an
        absolute path, or None), and for a run that did not finish ``reason`` and ``hint``; for a result that
        ``eval.gate`` refuses, the missed bars as ``refused``, and ``hint``.
    """
    run, state, history = followed.run, followed.state, followed.history
    last, adapter = history.last_step, result_path(run, history.end)
    summary: dict[str, Any] = {
        "run": run.id,
        "state": state.state,
        "step": last.step if last else state.step,
        "total_steps": state.total_steps,
        "loss": last.loss if last else None,
        "tokens_per_second": history.tokens_per_second,
        "peak_rss_bytes": followed.peak_rss_bytes,
        "processes": max(len(history.ranks), 1),
        "adapter": os.fspath(adapter) if adapter is not None else None,
    }
    if state.state != "finished":
        end = history.end if state.state != "lost" else None
        summary["reason"] = (end.reason if end else "") or failure_reason(run)
        summary["hint"] = (end.hint if end else "") or _hint(run)
    elif refused := refusal_of(state, history.end):
        summary["refused"], summary["hint"] = refused, after_refusal(run)
    return summary


def report(followed: Followed, *, as_json: bool) -> int:
    """Print the summary of an ended run, and return the exit code."""
    summary = summarize(followed)
    if as_json:
        emit(summary)
    else:
        say(*summary_lines(followed, summary))
    return exit_code(followed.state)


def summary_lines(followed: Followed, summary: dict[str, Any]) -> list[str]:
    """The summary for a reader, with the next command."""
    run = followed.run
    lines = [f"run       {run.id}", f"state     {describe_state(followed.state)}"]
    # A run that ended before its first step has no loss.
    if summary["loss"] is not None:
        lines.append(f"loss      {format_number(summary['loss'])}")
    lines += _gain_lines(run, result_of(run, followed.state, followed.history))
    if (speed := summary["tokens_per_second"]) is not None:
        lines.append(f"speed     {format_rate(speed)}")
    if (peak := summary["peak_rss_bytes"]) is not None:
        first = f" in the first of {summary['processes']} processes" if summary["processes"] > 1 else ""
        lines.append(f"memory    {format_bytes(peak)} at most{first}")
    if summary["adapter"]:
        lines.append(f"adapter   {summary['adapter']}")
    if refused := summary.get("refused"):
        lines.append(f"refused   {one_line(refused)}")
        lines.append(f"next      {one_line(summary['hint'])}")
    elif reason := summary.get("reason"):
        if reason != followed.state.reason:
            lines.append(f"reason    {one_line(reason)}")
        if summary["hint"]:
            lines.append(f"next      {one_line(summary['hint'])}")
    else:
        lines.append(f"next      {PROGRAM} chat {run.id}")
    return lines + _tracker_lines(run)


def _gain_lines(run: Run, result: RunResult) -> list[str]:
    """The figures of the last evaluation, each with its baseline if there is one, a better step, and the run's time and
    energy."""
    lines = [
        f"measured  {measure.name} {measure.words(measure.after)}"
        if measure.before is None
        else f"gained    {measure.name} {measure.words(measure.before)} → {measure.words(measure.after)}"
        for measure in result.measures
        if measure.name not in ("training loss", PROBE_LOSS)
    ]
    lines += [
        f"probe     loss {measure.words(measure.before)} → {measure.words(measure.after)}, {measure.note}"
        for measure in result.measures
        if measure.name == PROBE_LOSS and measure.before is not None
    ]
    if (better := result.better) is not None and not better.is_taken:
        lines.append(f"better    {better.told}; take it: {take_command(run, better.step)}")
    took = ", ".join([format_duration(result.seconds), *energy_words(result.energy_wh, result.tariff)])
    return [*lines, *([f"took      {took}"] if result.step else [])]


def _tracker_lines(run: Run) -> list[str]:
    """Lines about failed trackers; nothing waits for a tracker that is still at work."""
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
    if complete_checkpoints(run) or not run.log_path.exists():
        return way_on(run)
    return f"It saved no checkpoint; the whole log is {run.log_path}."
