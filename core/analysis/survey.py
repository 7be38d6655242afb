"""Survey of a dataset: examines every row on all cores, and merges the findings into an analysis."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, TypeVar

from core.analysis import row_facts
from core.analysis.division import HELD_OUT, NOT_SAMPLED, Fingerprints, divide_rows, find_near, find_same, find_shared
from core.analysis.problems import COLUMNS_NOT_READ, Problem, ProblemTally, RowPlace
from core.analysis.result import Analysis, AnalysisRequest, SourceFormat, measure_lengths
from core.analysis.row_facts import Examiner, RowFacts
from core.data.exclusion import EXCLUDED, Exclusion
from core.data.files.rows import Row, RowFile
from core.data.formats.detect import SAMPLE, Detection, count_names, find_ambiguity
from core.data.registries.resolve import refuse_two_evals, resolve_sources, weights_of
from core.data.registries.source import DataSource
from core.directories import Progress
from core.sandbox.limits import cpu_limit, limit_growth
from core.template.mask import Masker
from core.text import one_line

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class ForkedProcessError(Exception):
    """A forked process died before it returned its result, killed perhaps by the kernel for lack of memory.

    Args:
        status: Its exit status, negative for a signal; None if unknown.
    """

    def __init__(self, status: int | None) -> None:
        super().__init__()
        self.status = status


def forked_map(
    work: Callable[[ItemT], ResultT], items: Sequence[ItemT], processes: int, prepare: Callable[[], None]
) -> Iterator[ResultT]:
    """Map a function over items in forked processes; only items and results are sent between processes.

    Each process has its own pipe, so a killed process is noticed at once. In ``ProcessPoolExecutor`` all processes
    write to one pipe: one killed in the middle of a result leaves the others waiting forever.

    Args:
        work: The function.
        items: The items.
        processes: Number of processes.
        prepare: Called first in each process.

    Returns:
        The results, in the order of the items.

    Raises:
        ForkedProcessError: If a process dies.
        Exception: Any exception of ``work``.
    """
    context = get_context("fork")
    team: dict[Connection, ForkProcess] = {}
    try:
        for _ in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, work, prepare), daemon=True)
            process.start()
            # A dead process must leave an end of file.
            theirs.close()
            team[ours] = process
        idle, busy, found = list(team), dict[Connection, int](), dict[int, ResultT]()
        begun = 0
        for number in range(len(items)):
            while number not in found:
                # Only a few ahead: results must not pile up behind a slow item.
                while idle and begun < min(len(items), number + 2 * processes + 1):
                    connection = idle.pop()
                    with contextlib.suppress(OSError):  # of a dead process, which the wait for its result shows
                        connection.send(items[begun])
                    busy[connection] = begun
                    begun += 1
                for ready in wait(list(busy)):
                    if isinstance(ready, Connection):
                        found[busy.pop(ready)] = _receive(ready, team[ready])
                        idle.append(ready)
            yield found.pop(number)
    finally:
        for connection, process in team.items():
            process.kill()
            process.join()
            connection.close()


def _receive(connection: Connection, process: ForkProcess) -> Any:
    try:
        result, error = connection.recv()
    except (EOFError, OSError) as gone:
        # Its end of the pipe closes a moment before it exits.
        process.join(1)
        raise ForkedProcessError(process.exitcode) from gone
    if error is not None:
        raise error
    return result


def _serve(connection: Connection, work: Callable[[ItemT], object], prepare: Callable[[], None]) -> None:
    prepare()
    while True:
        try:
            item = connection.recv()
        except EOFError:
            os._exit(0)
        answer: tuple[object, BaseException | None]
        try:
            answer = (work(item), None)
        except BaseException as error:  # raised in the parent
            answer = (None, error)
        try:
            connection.send(answer)
        except OSError:
            os._exit(1)


#: Rows examined between two reports.
PORTION = 512
#: Rows per read; each may be as large as the reader's limit.
_PAGE = 32
#: Rows below which processes would take longer to start than to work.
_WORTH_PROCESSES = 1500
_MOST_PROCESSES = 8
#: Bytes that a forked process may allocate on top of the memory shared with its parent.
_GROWTH = 1 << 30


@dataclass
class OpenSource:
    """An open, indexed source."""

    source: DataSource
    file: RowFile
    detection: Detection
    examiner: Examiner
    first: int
    """Number of its first row."""
    rows: int
    held_out: bool
    entry: int
    """Index of its entry of ``data.train`` or ``data.eval``."""
    unread: Counter[str] = field(default_factory=Counter)
    """Filled columns that nothing reads, with the number of rows of each."""
    rows_unread: int = 0
    """Rows with such a column."""

    def head(self) -> list[Row]:
        """First rows, for format detection."""
        return self.file.rows(0, min(SAMPLE, self.rows))


#: Sources of the survey in this process; global, so forked processes inherit them.
_open_sources: list[OpenSource] = []


def survey(request: AnalysisRequest, report: Progress = lambda *_: None) -> Analysis:
    """Examine every row. Blocks and forks, so call it in a separate process.

    Args:
        request: Datasets and settings.
        report: Called with the progress; may raise to stop.

    Raises:
        UserError: If a file cannot be read, its format is unknown or the model has no tokenizer.
    """
    began = time.monotonic()
    settings = request.masks
    masker = None
    if settings is not None:
        report("loading", None, None)
        # Making the masker already renders some probe conversations.
        with cpu_limit(row_facts.BATCH_SECONDS):
            masker = settings.masker()
    opened: list[OpenSource] = []
    exclusion = Exclusion(request.exclude)
    try:
        refuse_two_evals(request.eval_share, bool(request.eval))
        for references, held_out in ((request.train, False), (request.eval, True)):
            groups = resolve_sources(list(references), request.format, request.columns) if references else []
            first = 0
            for entry, source in ((entry, source) for entry, group in enumerate(groups) for source in group):
                opened.append(_open(source, request, masker, first, held_out, entry, report, exclusion))
                first += opened[-1].rows
        _open_sources[:] = opened
        return _Findings(request, opened, exclusion).gather(report, began)
    finally:
        _open_sources.clear()
        for item in opened:
            item.file.close()


def _open(
    source: DataSource,
    request: AnalysisRequest,
    masker: Masker | None,
    first: int,
    held_out: bool,
    entry: int,
    report: Progress,
    exclusion: Exclusion,
) -> OpenSource:
    file = source.open()
    try:
        file.index(lambda done, total: report("indexing", done, total))
        rows = source.count(file)
        detection = source.recognize(file)
    except BaseException:
        file.close()
        raise
    examiner = Examiner(
        detection, masker, request.max_length, request.overlong, request.objective, exclusion, source.path
    )
    return OpenSource(source, file, detection, examiner, first, rows, held_out, entry)


class _Findings:
    """Findings so far, portion by portion in the order of rows."""

    def __init__(self, request: AnalysisRequest, opened: Sequence[OpenSource], exclusion: Exclusion) -> None:
        self._request, self._exclusion = request, exclusion
        self._train = [item for item in opened if not item.held_out]
        self._opened = opened
        self._tally = ProblemTally()
        self._rows, self._eval_rows = Fingerprints(), Fingerprints()
        self._weights = weights_of(request.weights, len(request.train))
        self._divides = bool(request.eval_share) or any(weight != 1 for weight in self._weights)
        self._used: list[array[int]] = [array("I") for _ in request.train]
        """Positions of usable rows in the fingerprints, by entry; filled only if rows are divided."""
        self._excluded: dict[int, None] = {}
        """Numbers of the usable rows that ``data.exclude`` names, in order."""
        self._total = RowFacts()
        self._eval_read = 0
        self._held_out: tuple[int, ...] = ()
        self._dropped: dict[str, int] = {}

    def gather(self, report: Progress, began: float) -> Analysis:
        """Examine all rows."""
        total = sum(item.rows for item in self._opened)
        done = 0
        report("reading", done, total)
        for item, facts in _examine_all(self._opened):
            done += facts.read
            self._add(item, facts)
            report("reading", done, total)
        self._exclusion.check(is_part=self._request.is_part)
        report("comparing", 0, total)
        self._compare()
        self._divide()
        self._exclude()
        return self._sum_up(began)

    def _add(self, item: OpenSource, facts: RowFacts) -> None:
        if item.held_out:
            self._eval_read += facts.read
            self._eval_rows.extend(facts.compared, facts.keys, facts.signatures)
            return
        whole = self._total
        whole.read += facts.read
        whole.used += facts.used
        whole.tokens += facts.tokens
        whole.supervised += facts.supervised
        whole.stop_learned += facts.stop_learned
        whole.measured += facts.measured
        whole.lengths += facts.lengths
        whole.turns.update(facts.turns)
        whole.scripts.update(facts.scripts)
        count_names(item.unread, facts.unread)
        item.rows_unread += facts.rows_unread
        unused = {number for number, _, _ in facts.dropped}
        self._excluded.update(dict.fromkeys(number for number in facts.excluded if number not in unused))
        self._exclusion.merge(facts.named)
        if self._divides:
            places = enumerate(facts.compared, len(self._rows))
            self._used[item.entry].extend(place for place, number in places if number not in unused)
        self._rows.extend(facts.compared, facts.keys, facts.signatures)
        for number, code, detail in facts.dropped:
            self._dropped[code] = self._dropped.get(code, 0) + 1
            self._tally.add(code, number, detail)
        for number, code, detail in facts.found:
            self._tally.add(code, number, detail)

    def _compare(self) -> None:
        same = find_same(self._rows)
        self._note_twins("duplicate", same, self._rows, "It is the same as row {}.")
        self._note_twins("near_duplicate", find_near(self._rows, same), self._rows, "It is almost the same as row {}.")
        if len(self._eval_rows):
            leaked, near = (
                {place: other for place, other in found.items() if self._rows.numbers[place] not in self._excluded}
                for found in find_shared(self._rows, self._eval_rows)
            )
            self._note_twins("leaked", leaked, self._eval_rows, "It is the same as row {} of data.eval.")
            self._note_twins("near_leaked", near, self._eval_rows, "It is almost the same as row {} of data.eval.")

    def _divide(self) -> None:
        """Remove rows that are held out or left out by weight from the rows used."""
        if not self._divides:
            return
        usable = self._rows.at(list(itertools.chain.from_iterable(self._used)))
        bounds = list(itertools.accumulate(map(len, self._used), initial=0))
        division = divide_rows(usable, bounds, self._weights, self._request.eval_share, self._request.seed)
        kept_out = division.held_out
        self._held_out = tuple(usable.numbers[place] for place in sorted(kept_out))
        left_out = division.counts.count(0) - len(kept_out)
        self._total.used -= len(kept_out) + left_out
        self._dropped |= {code: count for code, count in ((HELD_OUT, len(kept_out)), (NOT_SAMPLED, left_out)) if count}
        for number in self._held_out:
            if number in self._excluded:
                del self._excluded[number]
                self._tally.add("excluded_held_out", number)
        for place, count in enumerate(division.counts):
            if not count:
                self._excluded.pop(usable.numbers[place], None)
        if division.crosses:
            held_out = usable.at(sorted(kept_out))
            trained = usable.at([place for place, count in enumerate(division.counts) if count])
            _, near = find_shared(trained, held_out)
            for place in sorted(near):
                other = held_out.numbers[near[place]] + 1
                self._tally.add(
                    "near_leaked", trained.numbers[place], f"It is almost the same as row {other}, which is held out."
                )

    def _exclude(self) -> None:
        """Remove rows that ``data.exclude`` leaves out from the rows used."""
        if self._excluded:
            self._total.used -= len(self._excluded)
            self._dropped[EXCLUDED] = len(self._excluded)
        for number in self._excluded:
            self._tally.add(EXCLUDED, number)

    def _note_twins(self, code: str, twins: dict[int, int], others: Fingerprints, sentence: str) -> None:
        for place in sorted(twins):
            self._tally.add(code, self._rows.numbers[place], sentence.format(others.numbers[twins[place]] + 1))

    def _sum_up(self, began: float) -> Analysis:
        whole = self._total
        problems = [*self._tally.problems(self._place), *self._source_problems()]
        # A single row may be about templates.
        problems = [problem for problem in problems if problem.code != "unfilled" or problem.count > 1]
        return Analysis(
            sources=tuple(
                SourceFormat(one_line(item.source.name), item.detection.format, item.detection.reason, item.rows)
                for item in self._train
            ),
            rows=whole.read,
            used=whole.used,
            dropped=dict(sorted(self._dropped.items(), key=lambda pair: (-pair[1], pair[0]))),
            problems=tuple(sorted(problems, key=Problem.rank)),
            turns=dict(sorted(whole.turns.items())),
            scripts=dict(sorted(whole.scripts.items(), key=lambda pair: -pair[1])),
            lengths=measure_lengths(whole.lengths, whole.measured, whole.tokens, whole.supervised),
            stop_learned=whole.stop_learned if self._request.masks is not None else None,
            eval_rows=self._eval_read,
            held_out=self._held_out,
            seconds=time.monotonic() - began,
        )

    def _source_problems(self) -> Iterator[Problem]:
        """Problems of a source as a whole."""
        for item in self._train:
            numbers = array("I", range(item.first, item.first + item.rows))
            name = one_line(item.source.name)
            if sentence := find_ambiguity(item.head(), item.detection, item.source.format):
                yield Problem("format_ambiguous", item.rows, (), numbers, f"{name}: {sentence}")
            if item.unread:
                where = f"{name}: " if len(self._train) > 1 else ""
                names = f"{where}{item.detection.describe_unread(item.unread, item.head())}"
                yield Problem(COLUMNS_NOT_READ, item.rows_unread, detail=names)

    def _place(self, number: int) -> RowPlace:
        item = next(item for item in reversed(self._train) if item.first <= number)
        row = item.file.row(number - item.first)
        several = len(self._train) > 1 or row.file
        return RowPlace(number, row.line, one_line(row.file or item.source.path.name) if several else "")


def _examine_all(opened: Sequence[OpenSource]) -> Iterator[tuple[OpenSource, RowFacts]]:
    """Facts of all portions, in row order, each with its source."""
    portions = [
        (place, start, min(PORTION, item.rows - start))
        for place, item in enumerate(opened)
        for start in range(0, item.rows, PORTION)
    ]
    processes = min(len(os.sched_getaffinity(0)), _MOST_PROCESSES, len(portions))
    if processes < 2 or sum(item.rows for item in opened) < _WORTH_PROCESSES:
        for portion in portions:
            yield opened[portion[0]], _examine(*portion)
        return
    lifeline = os.pipe()
    try:
        # Forked processes share the files, their indexes and the tokenizer.
        found = forked_map(lambda portion: _examine(*portion), portions, processes, lambda: _hold_on(*lifeline))
        for portion, facts in zip(portions, found, strict=True):
            yield opened[portion[0]], facts
    finally:
        for end in lifeline:
            os.close(end)


def _hold_on(reading: int, writing: int) -> None:
    """Exit this forked process when its parent ends, however that happens."""
    os.close(writing)
    limit_growth(_GROWTH)
    # Without the parent's standard output, its readers see end of file when the parent ends.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)

    def wait() -> None:
        os.read(reading, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _examine(place: int, start: int, count: int) -> RowFacts:
    item = _open_sources[place]
    pages = (item.file.rows(at, min(_PAGE, start + count - at)) for at in range(start, start + count, _PAGE))
    rows = itertools.chain.from_iterable(pages)
    return item.examiner.keys(rows, item.first) if item.held_out else item.examiner.examine(rows, item.first)
