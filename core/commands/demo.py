"""``demo``: fine-tune the starter model on the sample tickets, with the same questions before and after."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from core.commands.common import PROGRAM, add_json_flag, add_set, emit, exit_code, note, say

if TYPE_CHECKING:
    from core.commands.follow import Followed
    from core.config.schema import Config
    from core.runs.record.events import EvalEvent
    from core.runs.record.store import Run

_QUESTIONS_SHOWN = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_set(parser, "override an option of the sample configuration; may be repeated")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Train on the sample, or join a live sample run; the exit code is that of the run."""
    import sample_data
    from core.commands.follow import Interrupts, follow, leave
    from core.commands.progress import Progress
    from core.commands.train import check_data
    from core.config.document import load_config
    from core.launch.launcher import start_run

    config = load_config(sample_data.path("tickets.toml"), args.set)
    live = None if args.set else find_live_sample(config)
    if live is not None:
        note(f"run {live.id} is already live; joining it")
        followed = follow(live, Progress(), stop_on_interrupt=True)
        return leave(live) if followed is None else _report(followed, as_json=args.json)
    check_data(config)
    with Interrupts() as interrupts:
        started = start_run(config, "tickets")
        note(f"run {started.id}: the starter model learns to turn support tickets into JSON")
        followed = follow(started, Progress(), stop_on_interrupt=True, interrupts=interrupts)
    return leave(started) if followed is None else _report(followed, as_json=args.json)


def find_live_sample(config: Config) -> Run | None:
    """The newest live run on the sample data; None when there is none."""
    from core.errors import UserError
    from core.runs.record.store import list_runs

    for candidate in list_runs():
        if candidate.state().is_over:
            continue
        try:
            if candidate.config().data.train == config.data.train:
                return candidate
        except UserError:
            # A damaged configuration is no sample run.
            continue
    return None


def summarize_demo(followed: Followed) -> dict[str, Any]:
    """The result of the demo.

    Returns:
        ``run``, ``state``, ``before`` and ``after`` (each ``exact_match``, ``valid_json`` and ``n`` on the held-out
        tickets, None where not measured), ``phases`` (seconds), ``tokens_per_second``, ``peak_rss_bytes``,
        ``adapter``; ``reason`` and ``hint`` when it did not finish.
    """
    from core.commands.summary import summarize

    measured = followed.history.evals
    result = {
        "run": followed.run.id,
        "state": followed.state.state,
        "before": _measured(next((event for event in measured if event.step == 0), None)),
        "after": _measured(next((event for event in reversed(measured) if event.step > 0), None)),
        "phases": followed.history.phase_seconds,
    }
    kept = ("tokens_per_second", "peak_rss_bytes", "adapter", "reason", "hint")
    return result | {key: value for key, value in summarize(followed).items() if key in kept}


def _measured(event: EvalEvent | None) -> dict[str, Any] | None:
    if event is None:
        return None
    return {"exact_match": event.exact_match, "valid_json": event.valid_json, "n": event.rows}


def _report(followed: Followed, *, as_json: bool) -> int:
    result = summarize_demo(followed)
    if as_json:
        emit(result)
    else:
        say(*_lines(followed, result))
    return exit_code(followed.state)


def _lines(followed: Followed, result: dict[str, Any]) -> list[str]:
    import sample_data
    from core.commands.summary import summarize, summary_lines
    from core.runs.record.sentences import phase_name
    from core.units import format_duration

    lines = _question_lines(followed)
    if result["before"] and result["after"]:
        lines.append(f"{result['after']['n']} tickets that it has never seen:  before  after")
        for name, key in (("answers that match", "exact_match"), ("answers that are JSON", "valid_json")):
            shares = (result[when][key] for when in ("before", "after"))
            before, after = ("–" if share is None else f"{round(share, 2):.0%}" for share in shares)
            lines.append(f"  {name:<32}{before:>6}  {after:>5}")
        lines.append("")
    spent = [f"{phase_name(name)} {format_duration(seconds)}" for name, seconds in result["phases"].items()]
    lines += summary_lines(followed, summarize(followed))
    if spent:
        lines.insert(len(lines) - 1, f"time      {', '.join(spent)}")
    if followed.state.state == "finished":
        lines.append(f"          {PROGRAM} --run {result['run']}")
        lines.append(f"          {PROGRAM} train CONFIG   (start from a copy of {sample_data.path('tickets.toml')})")
    return lines


def _question_lines(followed: Followed) -> list[str]:
    """The first questions that were asked before and after, with both answers."""
    from core.text import one_line

    answers: dict[str, dict[str, str]] = {}
    for sample in followed.history.samples:
        answers.setdefault(sample.prompt, {})["before" if sample.source == "base" else "after"] = sample.text
    asked_twice = [(prompt, given) for prompt, given in answers.items() if len(given) == 2]
    lines: list[str] = []
    for prompt, given in asked_twice[:_QUESTIONS_SHOWN]:
        lines.append(f"ticket    {one_line(prompt.strip(), 200)}")
        lines += [f"  {when:<8}{one_line(given[when].strip(), 200)}" for when in ("before", "after")]
        lines.append("")
    return lines
