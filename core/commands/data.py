"""``data FILE``: a dataset's properties, its problems, and the tokens that a model would learn from it; with ``--run``,
the rows that a run's model has not learned."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.commands.common import EXIT_USAGE, PROGRAM, add_json_flag, emit, note, say
from core.commands.parser import ArgumentParser, column_parts, whole_number
from core.config.choices import LEARNED
from core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from core.analysis.problems import Problem
    from core.analysis.result import Analysis, AnalysisRequest, Lengths
    from core.analysis.row_samples import Token, TokenSample
    from core.config.schema import Config

_BAR = 40


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", metavar="FILE", nargs="?")
    parser.add_argument("--config", metavar="CONFIG")
    parser.add_argument("--model", metavar="MODEL")
    parser.add_argument("--template", metavar="FILE")
    parser.add_argument("--columns", metavar="PART=COLUMN,…", type=column_parts)
    parser.add_argument("--row", metavar="N", type=whole_number)
    parser.add_argument("--run", metavar="RUN")
    parser.add_argument("--worst", metavar="N", type=whole_number)
    parser.add_argument("--again", action="store_true")
    add_json_flag(parser)
    for other in ("--config", "--model", "--template", "--columns", "--row"):
        parser.add_conflict("--run", other, "--run reads the rows as its training did.")


def run(args: argparse.Namespace) -> int:
    """Analyze every row and print the findings; the exit code is 0 whatever they are."""
    if args.run is not None:
        from core.commands import row_losses

        return row_losses.run(args)
    if args.worst is not None or args.again:
        note(f"{PROGRAM} data: error: --worst and --again go with --run.")
        return EXIT_USAGE
    from core.analysis.job import analyze
    from core.analysis.row_samples import sample_row
    from core.commands.live_line import LiveLine, busy, progress_words

    request = make_request(args)
    if args.template is not None and args.model is None and args.config is None:
        raise UserError("--template needs a tokenizer.", "Name a model's directory with --model.")
    if args.row is not None and request.masks is None:
        raise UserError("--row needs a tokenizer.", "Name a model's directory with --model.")
    with LiveLine() as live:
        analysis = analyze(request, lambda at: live.draw(progress_words(at)))
    sample = None
    if request.masks is not None and (args.row is not None or not args.json):
        with busy("reading the row as tokens"):
            sample = sample_row(request, analysis, args.row)
    if args.json:
        emit(as_json(analysis, sample))
        return 0
    say(*render(analysis, request))
    if sample is not None:
        no_color = os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "", None)
        has_color = sys.stdout.isatty() and not no_color
        say("", *render_sample(sample, color=has_color))
    return 0


def make_request(args: argparse.Namespace) -> AnalysisRequest:
    """The analysis that the arguments ask for.

    Raises:
        UserError: If there is neither a file nor a configuration, or the model or the template cannot be found.
    """
    from core.analysis.result import request_for
    from core.config.document import load_config
    from core.config.schema import Config
    from core.data.formats.mapping import ColumnMap
    from core.template.builtin import template_source

    if args.file is not None and not args.file.strip():
        raise _nothing_named()
    config: Config
    if args.config is not None:
        config = load_config(Path(args.config))
    elif args.file is not None:
        # Its data files are replaced below, as a configuration cannot hold every possible file name.
        config = Config.model_validate({"data": {"train": "-"}})
    else:
        raise _nothing_named()
    template = template_source(args.template, None) if args.template else None
    if template is None:
        template = template_source(config.template.file, config.template.name)
    request = request_for(config, model=_model_directory(args, config), template=template)
    if args.columns is not None:
        # Checked here, so that the error names --columns and not data.columns.
        mapped = ColumnMap(args.columns)
        request = dataclasses.replace(request, columns={str(part): name for part, name in mapped.columns.items()})
    if args.config is None:
        # Without a configuration nobody has set a limit or an objective, so their defaults do not drop rows.
        request = dataclasses.replace(request.without_limit(), objective=None)
    if args.file is None:
        return request
    # The weights are for the entries of the configuration.
    return dataclasses.replace(request, train=(args.file,), weights=None)


def _nothing_named() -> UserError:
    return UserError("There is nothing to look at.", "Name a data file, or a configuration with --config.")


def _model_directory(args: argparse.Namespace, config: Config) -> str | None:
    from core.analysis.row_samples import tokenizer_directory

    if args.model is not None:
        return str(tokenizer_directory(args.model))
    if args.config is None:
        return None
    try:
        return str(tokenizer_directory(config.model.base))
    except UserError as error:
        # Rows can be analyzed without the model.
        note(f"Tokens are not counted. {error}")
        return None


# JSON.


def as_json(analysis: Analysis, sample: TokenSample | None) -> dict[str, Any]:
    """The result as described in ``docs/reference/commands.md``."""
    first = analysis.sources[0]
    result: dict[str, Any] = {
        "format": first.format,
        "reason": first.reason,
        "sources": [dataclasses.asdict(source) for source in analysis.sources],
        "rows": analysis.rows,
        "used": analysis.used,
        "dropped": analysis.dropped,
        "problems": [_problem_json(problem) for problem in analysis.problems],
        "turns": {str(turns): rows for turns, rows in analysis.turns.items()},
        "scripts": analysis.scripts,
        "eval_rows": analysis.eval_rows,
        "seconds": round(analysis.seconds, 3),
    }
    if (lengths := analysis.lengths) is not None:
        result["lengths"] = {**lengths.to_dict(), "longest": lengths.longest + 1}
    if sample is not None:
        further = [[dataclasses.asdict(token) for token in row] for row in sample.further]
        optional = {
            "further": further or None,
            "cut": sample.cut,
            "rejected": [dataclasses.asdict(token) for token in sample.rejected] or None,
            "rejected_cut": sample.rejected_cut,
            "label": sample.label,
            "row_error": {"code": sample.code, "message": sample.error} if sample.error else None,
        }
        result["row"] = sample.index + 1
        result["tokens"] = [dataclasses.asdict(token) for token in sample.tokens]
        result |= {name: value for name, value in optional.items() if value is not None}
    return result


def _problem_json(problem: Problem) -> dict[str, Any]:
    return {
        "code": problem.code,
        "level": problem.kind.level,
        "title": problem.kind.title,
        "count": problem.count,
        "rows": [place.index + 1 for place in problem.places],
        "lines": [place.line or None for place in problem.places],
        "files": sorted({place.file for place in problem.places if place.file}),
        "detail": problem.detail,
        "hint": problem.hint,
    }


# For people.


def render(analysis: Analysis, request: AnalysisRequest) -> list[str]:
    """Aligned lines, safe for a terminal."""
    from core.text import one_line

    lines = []
    for source in analysis.sources:
        lines += [f"{'file':<10} {one_line(source.name)}", f"{'format':<10} {source.format}: {one_line(source.reason)}"]
    held = {source.format for source in analysis.sources}
    fitting = [objective for objective, wanted in LEARNED.items() if wanted in held]
    by = f" by train.objective = {' or '.join(fitting)}" if request.objective is None and fitting else ""
    lines.append(f"{'rows':<10} {analysis.rows} read, {analysis.used} used{by}")
    lines += [f"{'':<10} {count} dropped: {code}" for code, count in analysis.dropped.items()]
    if analysis.turns:
        lines.append(f"{'messages':<10} " + ", ".join(f"{rows} x {turns}" for turns, rows in _most(analysis.turns)))
    if analysis.scripts:
        lines.append(f"{'scripts':<10} " + ", ".join(f"{name} {rows}" for name, rows in _most(analysis.scripts)))
    if analysis.lengths is not None:
        lines += _render_lengths(analysis.lengths, request.max_length)
    lines.append("")
    if not analysis.problems:
        lines.append("No problems found.")
    for problem in analysis.problems:
        lines += _render_problem(problem)
    return lines


def _most(counts: dict[Any, int]) -> list[tuple[Any, int]]:
    return sorted(counts.items(), key=lambda pair: -pair[1])[:8]


def _render_lengths(lengths: Lengths, limit: int) -> list[str]:
    shown = (
        f"min {lengths.min}, median {lengths.p50}, 95% up to {lengths.p95}, max {lengths.max} "
        f"(row {lengths.longest + 1})" + (f"; limit {limit}" if limit else "")
    )
    learned = f"{lengths.supervised} of {lengths.tokens} learned ({lengths.supervised_share:.1%})"
    lines = [f"{'tokens':<10} {shown}", f"{'':<10} {learned}"]
    most = max(bucket.count for bucket in lengths.buckets)
    for empty, group in itertools.groupby(lengths.buckets, key=lambda bucket: not bucket.count):
        buckets = list(group)
        if empty and (len(buckets) > 2 or buckets[0] is lengths.buckets[0]):
            # Empty buckets before the shortest row are left out, and gaps before far longer rows are shortened.
            lines += [f"{'':<10} {'...':>7}"] if buckets[0] is not lengths.buckets[0] else []
            continue
        for bucket in buckets:
            bar = "#" * max(round(_BAR * bucket.count / most), 1 if bucket.count else 0)
            lines.append(f"{'':<10} {bucket.low:>7} {bar} {bucket.count or ''}".rstrip())
    return lines


def _render_problem(problem: Problem) -> list[str]:
    from core.text import one_line

    places = problem.places[:8]
    numbered = bool(places) and all(not place.line and not place.file for place in places)
    shown = [str(place.index + 1) if numbered else place.shown for place in places]
    where = f"{'row' if numbered else 'line'}{'s' if len(shown) > 1 else ''} {', '.join(shown)}" if shown else ""
    if any(place.line not in (0, place.index + 1) for place in places):
        # Row numbers, as --row and the Data pane count them.
        where += f" (row{'s' if len(shown) > 1 else ''} {', '.join(str(place.index + 1) for place in places)})"
    more = ", ..." if places and problem.count > len(places) else ""
    lines = [f"{problem.kind.level:<5} {problem.count:>8} x {problem.code}: {problem.kind.title}"]
    if where:
        lines.append(f"{'':<17}{one_line(where)}{more}")
    if problem.detail:
        lines.append(f"{'':<17}{one_line(problem.detail, 300)}")
    lines.append(f"{'':<17}-> {problem.hint}")
    return lines


def render_sample(sample: TokenSample, *, color: bool) -> list[str]:
    """A row as its tokens: in color, supervised ones bright and others dim; else supervised ones in double brackets."""
    if sample.error:
        return [f"row {sample.index + 1} is not used: {sample.error}"]
    name = f"row {sample.index + 1}"
    if sample.rejected:
        better = _render_tokens(f"{name}, better answer", sample.tokens, sample.cut, color=color)
        worse = _render_tokens(f"{name}, worse answer", sample.rejected, sample.rejected_cut, color=color)
        return [*better, "", *worse]
    answer = "" if sample.label is None else f", {'good' if sample.label else 'bad'} answer"
    lines = _render_tokens(name + answer, sample.tokens, sample.cut, color=color)
    for number, tokens in enumerate(sample.further, 2):
        # Turns that the template renders differently once later ones follow are learned in rows of their own.
        lines += ["", *_render_tokens(f"{name}, part {number}", tokens, None, color=color)]
    return lines


def _render_tokens(name: str, tokens: Sequence[Token], cut: int | None, *, color: bool) -> list[str]:
    from core.text import sanitize

    learned = sum(token.supervised for token in tokens)
    how = "lit" if color else "in [[ ]]"
    pieces: list[str] = []
    was: bool | None = None
    for place, token in enumerate(tokens):
        if place == cut:
            pieces.append(_end(was, color) + f"\n--- cut at {cut} tokens ---\n")
            was = None
        if token.supervised != was:
            pieces.append(_end(was, color) + _begin(token.supervised, color))
            was = token.supervised
        pieces.append(sanitize(token.text))
    pieces.append(_end(was, color))
    return [f"{name}: {len(tokens)} tokens, {learned} learned ({how})", *"".join(pieces).split("\n")]


def _begin(supervised: bool, color: bool) -> str:
    if color:
        return "\x1b[1;32m" if supervised else "\x1b[2m"
    return "[[" if supervised else ""


def _end(supervised: bool | None, color: bool) -> str:
    if supervised is None:
        return ""
    if color:
        return "\x1b[0m"
    return "]]" if supervised else ""
