"""``eval RUN … --prompts FILE``: a prompt set over models as a table; or a benchmark of lm-eval."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.commands.common import (
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    PROGRAM,
    add_json_flag,
    emit,
    fields,
    note,
    print_table,
    say,
)
from core.commands.parser import ArgumentParser
from core.errors import UserError

if TYPE_CHECKING:
    from core.evaluation.evaluation import Evaluation
    from core.evaluation.lm_eval import Figure, HarnessModel, HarnessResult
    from core.evaluation.record import EvaluationRecord
    from core.evaluation.table import EvaluationTable
    from core.jobs.job import JobProgress


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("targets", metavar="RUN|MODEL", nargs="+")
    parser.add_argument("--prompts", metavar="FILE")
    parser.add_argument("--against", metavar="RUN|MODEL", action="append", default=[])
    parser.add_argument("--limit", metavar="N", type=int)
    parser.add_argument("--max-new-tokens", metavar="N", type=int)
    parser.add_argument("--check", metavar="COMMAND")
    parser.add_argument("--fail-on-flips", metavar="N", type=int)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--out", metavar="FILE")
    parser.add_argument("--with", dest="harness", choices=("lm-eval",))
    parser.add_argument("--tasks", metavar="NAMES")
    parser.add_argument("--include", metavar="DIRECTORY")
    add_json_flag(parser)
    for asks in ("--prompts", "--against", "--limit", "--max-new-tokens", "--check", "--with"):
        parser.add_conflict("--show", asks, "--show asks nothing.")


def run(args: argparse.Namespace) -> int:
    """Ask and compare, or start the harness; exit code 5 if more answers went wrong than ``--fail-on-flips`` allows."""
    if args.harness is not None:
        return _run_harness(args)
    refused = {
        "--tasks and --include go with --with lm-eval": args.tasks is not None or args.include is not None,
        "--fail-on-flips needs --against, or --show": args.fail_on_flips is not None
        and not (args.against or args.show or len(args.targets) > 1),
        "--fail-on-flips must be 0 or more": args.fail_on_flips is not None and args.fail_on_flips < 0,
    }
    if wrong := next((sentence for sentence, is_so in refused.items() if is_so), None):
        note(f"{PROGRAM} eval: error: {wrong}.")
        return EXIT_USAGE
    from core.commands.live_line import LiveLine
    from core.evaluation.evaluation import EvaluationRequest
    from core.evaluation.report import report_path, write_report
    from core.evaluation.table import EvaluationTable

    if args.out is not None:
        report_path(args.out)  # refused before the work and not after it
    if args.show:
        return _show(args)
    request = EvaluationRequest(
        tuple(args.targets), tuple(args.against), args.prompts, args.limit, args.max_new_tokens, args.check
    )
    with LiveLine() as line:
        evaluation = request.prepare(lambda at: line.draw(at.activity))
    prompts = evaluation.prompts
    if args.fail_on_flips is not None and not evaluation.can_be_right:
        raise UserError(
            f"Nothing can be right or wrong: {prompts.name} has no expected answer.",
            "Add expected answers or schemas, or name a --check.",
        )
    if prompts.skipped:
        note(f"{prompts.skipped} rows of {prompts.name} are not questions, and are skipped.")
    done = _evaluate(evaluation)
    record = evaluation.record
    table = EvaluationTable.of(record)
    if done:
        if args.out is not None:
            note(f"Written to {write_report(record, table, args.out)}.")
    else:
        note(f"{record.done} of {record.total} answers are kept; the same command continues with the rest.")
    code = _print(evaluation.file.path if evaluation.file is not None else None, record, table, args)
    return code if done else EXIT_INTERRUPTED


def _show(args: argparse.Namespace) -> int:
    """The newest evaluation of a run, as it is kept."""
    from core.chat.session import names_model
    from core.evaluation.record import newest_record
    from core.evaluation.report import write_report
    from core.evaluation.table import EvaluationTable
    from core.runs.catalog.trained import find_run_at

    name = args.targets[0]
    path, record = newest_record(None if names_model(name) else find_run_at(name)[0])
    table = EvaluationTable.of(record)
    if args.out is not None:
        note(f"Written to {write_report(record, table, args.out)}.")
    if record.state != "done":
        unfinished = f"It is unfinished: {record.done} of {record.total} answers."
        if args.fail_on_flips is not None:
            raise UserError(unfinished, "Continue it by the same command as before, without --show.")
        note(unfinished)
    if args.fail_on_flips is not None and table.deciding is None:
        raise UserError("Nothing in it can be right or wrong: no answer is expected.", "Evaluate other prompts.")
    if args.fail_on_flips is not None and not table.comparisons:
        raise UserError(f"It has the answers of {record.targets[0]} alone.", "Evaluate it --against another one.")
    return _print(path, record, table, args)


def _evaluate(evaluation: Evaluation) -> bool:
    """Run the evaluation; False if it was interrupted."""
    from core.commands.live_line import LiveLine

    is_first = True

    def show(progress: JobProgress) -> None:
        nonlocal is_first
        if is_first and evaluation.is_continued:
            note(f"Continues with {progress.done} of {progress.total} answers of an earlier attempt.")
        is_first = False
        line.draw(f"{progress.activity}  {progress.done}/{progress.total}")

    with LiveLine() as line:
        try:
            evaluation.run(show)
        except KeyboardInterrupt:
            evaluation.cancel()
            return False
    return True


def _print(path: Path | None, record: EvaluationRecord, table: EvaluationTable, args: argparse.Namespace) -> int:
    """Print an evaluation; returns the exit code by ``--fail-on-flips``."""
    from core.evaluation.flips import flips_line, flips_of
    from core.evaluation.report import flip_lines, summary_lines
    from core.runs.record.state import EXIT_REFUSED
    from core.units import counted

    flips = flips_of(record, table.deciding)
    if args.json:
        emit(summary(record, table, str(path) if path is not None else None))
    else:
        say(*summary_lines(record, table))
        for each in flips:
            say(*(["", *flip_lines(record, each)] if args.fail_on_flips is not None else [flips_line(each)]))
        note(f"kept in {path}")
    if args.fail_on_flips is None:
        return 0
    over = [each for each in flips if len(each.broken) > args.fail_on_flips]
    for each in over:
        answers = counted(len(each.broken), "answer")
        note(f"{answers} that {each.before} gives right went wrong; --fail-on-flips allows {args.fail_on_flips}.")
    return EXIT_REFUSED if over else 0


def summary(record: EvaluationRecord, table: EvaluationTable, path: str | None) -> dict[str, Any]:
    """An evaluation as ``--json`` prints it.

    Returns:
        ``id``, ``path`` of the record, ``state`` (``running`` where it was interrupted), ``prompts`` (their file),
        ``items`` (their number), ``targets``, the fields of
        :meth:`core.evaluation.table.EvaluationTable.to_dict`, and ``flips``, a list of
        :func:`core.evaluation.report.flips_to_json`.
    """
    from core.evaluation.flips import flips_of
    from core.evaluation.report import flips_to_json

    return {
        "id": record.id,
        "path": path,
        **fields(record, "state", "prompts"),
        "items": len(record.items),
        "targets": list(record.targets),
        **table.to_dict(),
        "flips": [flips_to_json(record, each) for each in flips_of(record, table.deciding)],
    }


def _run_harness(args: argparse.Namespace) -> int:
    from core.evaluation.lm_eval import HarnessRun, read_tasks

    refused = {
        "--limit must be at least 1": args.limit is not None and args.limit < 1,
        "--tasks is needed: names separated by commas": args.tasks is None,
        "--prompts, --against, --check, --max-new-tokens, --fail-on-flips and --out do not go with --with": any(
            (args.prompts, args.against, args.check, args.max_new_tokens, args.fail_on_flips is not None, args.out)
        ),
        "lm-eval measures one model at a time": len(args.targets) > 1,
    }
    if wrong := next((sentence for sentence, is_so in refused.items() if is_so), None):
        note(f"{PROGRAM} eval: error: {wrong}.")
        return EXIT_USAGE
    include = Path(args.include).absolute() if args.include is not None else None
    model, device = _harness_model(args.targets[0])
    job = HarnessRun(model, read_tasks(args.tasks), args.limit, include, device).job()
    result = job.run((lambda at: note(at.activity)) if sys.stderr.isatty() else None)
    if args.json:
        emit(harness_summary(model, result))
    else:
        print_table(figure_table(result.figures))
        note(f"kept in {result.path}")
    return 0


def _harness_model(name: str) -> tuple[HarnessModel, str]:
    """The model that the harness loads, and its device."""
    from core.chat.session import names_model
    from core.evaluation.lm_eval import model_of, plain_model
    from core.evaluation.targets import resolve_targets

    (target,) = resolve_targets([name])
    if target.trained is None or names_model(name):
        return plain_model(name), "auto"
    return model_of(target.trained, target.name), target.trained.config.hardware.device


def harness_summary(model: HarnessModel, result: HarnessResult) -> dict[str, Any]:
    """A benchmark as ``--json`` prints it: ``model``, ``path`` of the saved result, ``harness`` (its version) and
    ``figures`` (``task``, ``metric``, ``filter``, ``value``, ``stderr``)."""
    from dataclasses import asdict

    return {
        "model": model.name,
        "path": str(result.path),
        "harness": result.version,
        "figures": [asdict(figure) for figure in result.figures],
    }


def figure_table(figures: tuple[Figure, ...]) -> list[tuple[str, str, str]]:
    """The figures as a table: task, metric, and value with its standard error."""
    table = [("TASK", "METRIC", "VALUE")]
    for figure in figures:
        error = f" ± {figure.stderr:.4f}" if figure.stderr is not None else ""
        metric = figure.metric if figure.filter == "none" else f"{figure.metric} ({figure.filter})"
        table.append((figure.task, metric, f"{figure.value:.4f}{error}"))
    return table
