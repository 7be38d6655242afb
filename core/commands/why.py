"""``why RUN --prompt TEXT``: the training rows behind an answer, or the index that makes their list exact."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from core.commands.common import EXIT_USAGE, PROGRAM, add_json_flag, emit, escape_json, note, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from core.attribution.job import IndexResult
    from core.attribution.result import AttributedRow, Attribution

#: Cells of the longest bar, and the width of a row's text.
_BAR, _TEXT = 12, 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", metavar="RUN[@STEP]")
    parser.add_argument("--prompt", metavar="TEXT")
    parser.add_argument("--system", metavar="TEXT")
    parser.add_argument("--answer", metavar="TEXT", default="")
    parser.add_argument("--wanted", metavar="TEXT", default="")
    parser.add_argument("--like", action="store_true")
    parser.add_argument("--index", action="store_true")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Print the rows behind an answer, or make the index."""
    from core.attribution.job import attribution_job, index_job
    from core.attribution.result import AttributionRequest
    from core.commands.live_line import ProgressLine
    from core.runs.catalog.trained import find_run_at

    if not args.index and not args.prompt:
        note(f"{PROGRAM} why: error: --prompt names the question, or --index makes the index.")
        return EXIT_USAGE
    found, step = find_run_at(args.run)
    if args.index:
        indexing = index_job(found, step)
        with ProgressLine("The index was broken off; its finished rows are kept.") as line:
            index = indexing.run(line.follow)
        if args.json:
            emit({"run": found.id, **vars(index)})
        else:
            say(index_line(index))
    if not args.prompt:
        return 0
    system = args.system if args.system is not None else found.config().chat.system
    before = ({"role": "system", "content": system},) if system else ()
    messages = (*before, {"role": "user", "content": args.prompt})
    request = AttributionRequest(str(found.path), messages, args.answer, args.wanted, step)
    job = attribution_job(request)
    with ProgressLine("The attribution was broken off.") as line:
        result = job.run(line.follow)
    if args.json:
        emit({"run": found.id, **result.to_dict(), "is_base": result.is_base})
    else:
        say(*result_lines(result, like=args.like))
    return 0


def index_line(index: IndexResult) -> str:
    """An index in a sentence, and what it lacks."""
    from core.units import counted, format_bytes, format_duration

    steps = " and ".join(map(str, index.steps))
    size = f"{format_bytes(index.bytes)} in {format_duration(index.seconds)}"
    there = "" if index.made else "; it was there already"
    made = f"{counted(index.rows, 'row')} at {'steps' if len(index.steps) > 1 else 'step'} {steps}: {size}{there}."
    return f"{made} {index.note}".rstrip()


def result_lines(result: Attribution, *, like: bool = False) -> Iterator[str]:
    """The rows behind an answer, in lines.

    Args:
        result: The result.
        like: Also list further rows up to the gap in the scores.
    """
    from core.attribution.job import NO_ROWS, PROOF, SAME
    from core.attribution.result import ROWS_FOR
    from core.data.exclusion import entries_of
    from core.text import one_line
    from core.units import counted

    if result.is_base:
        yield SAME
    yield f"answer  {one_line(result.answer, _TEXT)}"
    if not result.is_base:
        yield f"base    {one_line(result.base, _TEXT)}"
    if result.wanted:
        yield f"wanted  {one_line(result.wanted, _TEXT)}"
    yield ""
    rows = result.rows if like else result.rows[:ROWS_FOR]
    if not rows:
        yield NO_ROWS
        return
    yield "Rows for it:"
    yield from _row_lines(rows, "#")
    if result.against:
        yield "Rows against it:"
        yield from _row_lines(result.against, "-")
    yield ""
    if result.like > len(rows):
        yield f"Up to the gap in the scores there are {counted(result.like, 'row')}; --like lists all of them."
    if result.considered < result.total:
        yield (
            f"{result.considered} of {result.total} rows were compared, chosen by their hidden states; "
            "'localtune-tui why RUN --index' makes it all of them, as the queue does after a run with checkpoint.index."
        )
    yield PROOF
    entries = entries_of((row.file, row.line) for row in result.rows[: result.like])
    yield f"data.exclude = {escape_json(json.dumps(entries, ensure_ascii=False))}"


def _row_lines(rows: Sequence[AttributedRow], mark: str) -> Iterator[str]:
    """Rows with bars relative to the first row for the answer, and their words that matter most between stars."""
    from core.text import one_line

    places = [f"{one_line(row.file)}:{row.line}" for row in rows]
    width = max(map(len, places))
    for place, row in zip(places, rows, strict=True):
        bar = mark * max(1, min(_BAR, round(_BAR * abs(row.score))))
        yield f"{bar:>{_BAR}}  {place:<{width}}  {one_line(row.question, _TEXT)}"
        yield f"{'':>{_BAR}}  {'':<{width}}  => {one_line(_starred(row), _TEXT)}"


def _starred(row: AttributedRow) -> str:
    text = row.answer
    for begin, end in reversed(row.words):
        text = f"{text[:begin]}*{text[begin:end]}*{text[end:]}"
    return text
