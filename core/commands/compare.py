"""``compare RUN RUN …``: the differences between runs, in results and in options."""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable
from pathlib import Path

from core.commands.common import BOTH_PRINTED, add_json_flag, emit, find_runs, note, say
from core.commands.parser import ArgumentParser
from core.errors import UserError


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("runs", metavar="RUN", nargs="+")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--csv", type=Path, metavar="FILE")
    parser.add_argument("--curves", type=Path, metavar="FILE")
    add_json_flag(parser)
    for first, second in itertools.combinations(("--markdown -", "--csv -", "--curves -", "--json"), 2):
        parser.add_conflict(first, second, BOTH_PRINTED)


def run(args: argparse.Namespace) -> int:
    """Print the comparison, or write it to files.

    Raises:
        UserError: If a run is unknown, there are too few or too many, or a file cannot be written.
    """
    from core.evaluation.run_answers import answers_of_runs, answers_to_json, answers_to_lines, answers_to_markdown
    from core.runs.catalog.compare import (
        compare_runs,
        read_record,
        text_lines,
        to_csv,
        to_curves_csv,
        to_json,
        to_markdown,
    )

    runs = find_runs(args.runs)
    comparison = compare_runs([read_record(target) for target in runs])
    answers = functools.cache(lambda: answers_of_runs(runs))
    texts: tuple[tuple[Path | None, Callable[[], str]], ...] = (
        (args.markdown, lambda: f"{to_markdown(comparison)}\n{answers_to_markdown(answers())}"),
        (args.csv, lambda: to_csv(comparison)),
        (args.curves, lambda: to_curves_csv(comparison)),
    )
    wanted = [(path, text) for path, text in texts if path is not None]
    for path, text in wanted:
        _write(path, text())
    if args.json:
        emit({**to_json(comparison), **answers_to_json(answers())})
    elif not wanted:
        say(*text_lines(comparison), "", *answers_to_lines(answers()))
    return 0


def _write(path: Path, text: str) -> None:
    from core.atomic import write_atomic
    from core.paths import user_path

    if str(path) == "-":
        say(*text.splitlines())
        return
    target = user_path(path)
    try:
        write_atomic(target.resolve(), text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.", "Name another file.") from error
    note(f"Written to {target}.")
