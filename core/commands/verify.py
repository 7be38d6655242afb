"""``verify RUN``: the hash chain of a run checked, and intervals of its training executed again."""

from __future__ import annotations

import argparse
import random
from typing import TYPE_CHECKING

from core.commands.common import EXIT_ERROR, add_json_flag, emit, note, say
from core.commands.live_line import ProgressLine
from core.commands.parser import ArgumentParser, whole_or_none

if TYPE_CHECKING:
    from collections.abc import Iterator

    from core.audit.result import Audit, Difference, SpanResult

#: Exit code of a run that differs from its record.
EXIT_DIFFERS = 6
#: Intervals that are executed again by default.
SPANS = 3


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", metavar="RUN")
    parser.add_argument(
        "--spans",
        metavar="N",
        type=whole_or_none,
        default=SPANS,
        help=f"intervals between two checkpoints that are executed again (default: {SPANS}; 0: the chain alone)",
    )
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--head", metavar="HASH", type=_head)
    parser.add_argument("--seed", metavar="S", type=int)
    add_json_flag(parser)
    for chosen in ("--spans", "--seed"):
        parser.add_conflict("--whole", chosen, "all of the run is executed again, and nothing is chosen.")


def run(args: argparse.Namespace) -> int:
    """Make the audit and print its result; the exit code is 6 if the run differs from its record."""
    from core.audit.job import audit_job
    from core.runs.record.store import find_run

    found = find_run(args.run)
    seed = random.SystemRandom().randrange(1 << 31) if args.seed is None else args.seed
    job = audit_job(found, spans=args.spans, seed=seed, whole=args.whole, head=args.head)
    with ProgressLine("The audit was broken off; nothing of it is left.") as line:
        audit = job.run(line.follow)
    if args.json:
        emit(audit.to_dict())
    else:
        say(*result_lines(audit))
    if audit.verdict != "unproven":
        return EXIT_DIFFERS if audit.verdict == "differs" else 0
    if args.spans == 0 and not args.whole and audit.chain.head is not None:
        return 0  # with --spans 0 the chain alone is checked
    note(f"{found.id} could not be verified either way; the lines above say what is missing.")
    return EXIT_ERROR


def result_lines(audit: Audit) -> Iterator[str]:
    """An audit in lines."""
    from core.units import format_duration

    chain = audit.chain
    if chain.head is not None:
        state = "broken" if chain.differences else "whole"
        yield f"chain      {state}, {chain.links} links"
        yield f"head       {chain.head}"
    else:
        yield "chain      none"
    for difference in (*chain.differences, *audit.inputs):
        yield f"           {_tell(difference)}"
    for span in audit.spans:
        yield f"{_steps(span):<25}  {_came_to(span)}"
        for difference in span.differences:
            yield f"           {_tell(difference)}"
    for sentence in (*chain.notes, *audit.notes):
        yield f"note       {sentence}"
    is_chain_alone = audit.verdict == "unproven" and not audit.spans and chain.head is not None
    verdict = "The chain is whole; nothing was executed again." if is_chain_alone else _VERDICTS[audit.verdict]
    yield f"{verdict} Seed {audit.seed}, {format_duration(audit.seconds)}."


_VERDICTS = {
    "verified": "Verified: every byte that was computed again came out as it was recorded.",
    "differs": "Not what was recorded.",
    "unproven": "Not proven: not all of it could be executed again and compared bit for bit.",
}


def _head(text: str) -> str:
    found = text.strip().rstrip("…").lower()
    if not 12 <= len(found) <= 64 or set(found) - set("0123456789abcdef"):
        raise argparse.ArgumentTypeError("the head of a chain is 64 hexadecimal digits, of which the first 12 will do")
    return found


def _steps(span: SpanResult) -> str:
    first = span.begin + 1
    return f"step {first}" if first == span.end else f"steps {first} to {span.end}"


def _came_to(span: SpanResult) -> str:
    from core.units import format_duration

    words = {"equal": "equal in every byte", "differs": "differs", "inexact": "differs", "skipped": "not executed"}
    seconds = f", in {format_duration(span.seconds)}" if span.seconds else ""
    return f"{words[span.outcome]}{seconds}" + (f": {span.reason}" if span.reason else "")


def _tell(difference: Difference) -> str:
    values = ""
    if difference.recorded is not None and difference.found is not None and len(difference.recorded) < 60:
        values = f" Recorded {difference.recorded}, found {difference.found}."
    return f"{difference.what}{values}"
