"""An audit as a job: the chain checked here, spans executed by a process of its own that leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from core import paths
from core.audit.chain_check import Sealed, check_chain, compare_head, read_sealed, sealed_config
from core.audit.request import recorded_threads, span_to
from core.audit.result import Audit, ChainResult, Difference, SpanResult
from core.audit.spans import Span, choose, join, spans_of
from core.config.schema import Config
from core.directories import disk_error
from core.errors import UserError
from core.helper import Helper, HelperProgress, describe_end, finding_core
from core.launch.launcher import worker_environment
from core.runs.checkpoints import read_manifest
from core.runs.state import in_words
from core.runs.store import Run, complete_checkpoints
from core.runs.tail import EventTail
from core.runs.trained import result_step
from core.text import one_line

MODULE = "core.worker.audit"
_JANITOR = "core.audit.janitor"
_WORK = "work-"
_FAST = (
    "The run is fast, not strict, on its card: what is computed again is equal to rounding, and not bit for bit. Only "
    "the chain is checked; train.deterministic = strict makes a new run that can be executed again."
)
_CARDS = (
    "The run was computed by several processes on cards, whose sums are not known to be made in the same order twice; "
    "only the chain is checked."
)
#: Most processes that are started to execute a run again.
_MOST_PROCESSES = 64


class AuditCancelledError(Exception):
    """The audit was closed before it was done; nothing of it remains."""


@dataclass(frozen=True)
class _Plan:
    """Intervals to execute again."""

    spans: list[Span]
    config: Config
    sealed: Sealed
    manifests: dict[int, dict[str, Any]]
    notes: list[str]
    last: int
    """The step of the result, or of the last checkpoint."""


class AuditJob:
    """An audit. ``run`` blocks, so call it from a thread; ``close`` ends it from any other.

    Args:
        run: The run, which is over; it is only read.
        spans: How many intervals between checkpoints are executed again.
        seed: Chooses them.
        whole: Execute all of it instead, from the untouched base on.
        head: The head of its chain as it was written down earlier, or the beginning of it; None if there is none.
    """

    def __init__(self, run: Run, *, spans: int, seed: int, whole: bool = False, head: str | None = None) -> None:
        self._run, self._spans, self._seed, self._whole, self._head = run, spans, seed, whole, head
        self._guard = threading.Lock()
        self._helper: Helper | None = None
        self._is_closed = False

    def run(self, progress: Callable[[HelperProgress], None] = lambda _: None) -> Audit:
        """Make the audit.

        Args:
            progress: Called several times a second.

        Raises:
            AuditCancelledError: If it is closed meanwhile.
            UserError: If the run is on, or cannot be read.
        """
        began = time.monotonic()
        refuse_live(self._run)
        progress(HelperProgress("checking the chain"))
        sealed = read_sealed(self._run)
        chain = check_chain(self._run, sealed)
        if self._head is not None:
            chain = compare_head(chain, sealed, self._head)
        plan = self._plan(sealed, chain)
        answer: dict[str, Any] = {"inputs": [], "spans": [], "notes": []}
        if plan.manifests or sealed.starts:
            with _work_directory() as work:
                answer = self._execute(plan, work, progress)
        spans = tuple(map(_span_result, answer["spans"]))
        gap = _gap(spans, plan.last) if self._whole else ""
        return Audit(
            run=self._run.id,
            chain=chain,
            inputs=tuple(map(Difference.from_dict, answer["inputs"])),
            spans=spans,
            notes=(*plan.notes, *map(str, answer["notes"]), *([gap] if gap else [])),
            seed=self._seed,
            seconds=round(time.monotonic() - began, 3),
            complete=not gap,
        )

    def close(self) -> None:
        """End it; may be called twice, and after it has ended."""
        with self._guard:
            self._is_closed = True
            if self._helper is not None:
                self._helper.end()

    def _plan(self, sealed: Sealed, chain: ChainResult) -> _Plan:
        run, notes = self._run, list[str]()
        config = sealed_config(sealed) or run.config()
        manifests = {int(path.name.removeprefix("step-")): read_manifest(path) for path in complete_checkpoints(run)}
        there = set(manifests)
        manifests = {step: manifest for step, manifest in manifests.items() if manifest} | sealed.manifests
        damaged = {difference.step for difference in chain.differences if _is_content(difference)}
        events = EventTail(run.events_path).read_all()
        recorded = spans_of(events)
        spans = [span for span in recorded if span.end in manifests]
        last = max([result_step(run) or 0, *(span.end for span in recorded)])
        if not spans:
            notes.append("The run has no checkpoint that its training could be compared with.")
        for span in spans:
            if span.obstacle:
                notes.append(f"Steps {span.begin + 1} to {span.end} cannot be executed again: {span.obstacle}.")
        obstacle = _obstacle(recorded, manifests)
        if obstacle and spans:
            notes.append(obstacle)
            spans = []
        spans = join(spans) if self._whole else spans
        usable = [span for span in spans if span.begin == 0 or span.begin in there - damaged]
        if spans and len(usable) < len(spans):
            notes.append(
                f"{len(usable)} of {len(spans)} intervals can be executed again: checkpoint.keep has removed the "
                "checkpoints that the others begin with. With --whole, all steps are."
                if not damaged
                else f"{len(usable)} of {len(spans)} intervals have a whole checkpoint to begin with."
            )
        # One whose end is damaged tells what was changed in it.
        first = [span for span in usable if span.end in damaged and not span.obstacle]
        count = len(usable) if self._whole else self._spans
        chosen = choose(usable, there - damaged, count, self._seed)
        chosen = sorted({span.end: span for span in [*chosen, *first]}.values(), key=lambda span: span.end)
        return _Plan(chosen, config, sealed, manifests, notes, last)

    def _execute(self, plan: _Plan, work: Path, progress: Callable[[HelperProgress], None]) -> dict[str, Any]:
        starts = [plan.sealed.start_of(span.end) for span in plan.spans]
        known = plan.sealed.starts
        job = {
            "title": "execute the run again",
            "hint": "Please report it.",
            "directory": str(work),
            "run": str(self._run.path),
            "config": plan.config.model_dump(mode="json", exclude_defaults=True),
            "start": known[-1].body if known else {},
            "manifest": next(reversed(plan.manifests.values()), {}),
            "manifests": plan.manifests,
            "spans": [span_to(span) | {"start": start} for span, start in zip(plan.spans, starts, strict=True)],
        }
        with tempfile.TemporaryFile() as log:
            helper = self._start(log, next(filter(None, map(recorded_threads, starts)), None))
            with helper:
                return self._follow(helper, job, log, progress)

    def _start(self, log: IO[bytes], threads: int | None) -> Helper:
        environment = worker_environment()
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        with self._guard:
            if self._is_closed:
                raise AuditCancelledError
            self._helper = Helper(MODULE, environment=environment, log=log.fileno())
            return self._helper

    def _follow(
        self, helper: Helper, job: dict[str, Any], log: IO[bytes], progress: Callable[[HelperProgress], None]
    ) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):  # it died or was closed: its missing answer tells
            helper.send(json.dumps(job).encode() + b"\n")
        for answer in helper.answers():
            if "done" in answer:
                return dict(answer["done"])
            if "error" in answer:
                raise UserError(one_line(answer["error"]), one_line(answer["hint"]))
            told = answer["progress"]
            progress(HelperProgress(one_line(told["activity"], 100), told["done"], told["total"]))
        if self._is_closed:
            raise AuditCancelledError
        raise _death(helper.end(), log)


def refuse_live(run: Run) -> None:
    """Refuse a run that is on: its record and its checkpoints change, and it has the device.

    Raises:
        UserError: If so.
    """
    state = run.state()
    if not state.is_over:
        raise UserError(
            f"Run {run.id} {in_words(state.state)}; only a run that is over can be verified.",
            f"Wait for its end, or stop it: localtune-tui stop {run.id}",
        )


def _is_content(difference: Difference) -> bool:
    """True for a checkpoint that cannot be resumed."""
    return difference.step is not None and (difference.file or "").startswith("checkpoints/")


def _obstacle(spans: Sequence[Span], manifests: Mapping[int, Mapping[str, Any]]) -> str:
    """Why nothing of a run can be executed again bit for bit; empty where it can."""
    if any(span.team.is_several and span.team.has_cards for span in spans):
        return _CARDS
    most = max((span.team.count for span in spans), default=1)
    if most > _MOST_PROCESSES:
        return (
            f"The run was computed by {most} processes, and {_MOST_PROCESSES} at most are started to execute it again; "
            "only the chain is checked."
        )
    if any(manifest.get("deterministic") == "fast" for manifest in manifests.values()):
        return _FAST
    return ""


def _gap(spans: Sequence[SpanResult], last: int) -> str:
    """The sentence about a run that was not executed again up to its last step; empty where it was."""
    reached = 0
    for span in spans:
        if span.begin != reached or span.outcome == "skipped":
            break
        reached = span.end
    if reached >= last:
        return ""
    return f"Not all of the run was executed again: that its steps after {reached} follow from the base is not proven."


def _span_result(values: Mapping[str, Any]) -> SpanResult:
    return SpanResult(
        begin=values["from"],
        end=values["to"],
        outcome=values["outcome"],
        reason=str(values.get("reason", "")),
        differences=tuple(map(Difference.from_dict, values.get("differences", ()))),
        seconds=float(values.get("seconds", 0.0)),
    )


def _death(status: int, log: IO[bytes]) -> UserError:
    log.seek(0)
    lines = [line for line in log.read().decode("utf-8", errors="replace").splitlines() if line.strip()]
    said = f", and said: {one_line(lines[-1], 200)}" if lines else ""
    return UserError(
        f"The run was not executed again: its process {describe_end(status)}{said}.",
        "The machine may be out of memory; close other programs." if status == -9 else "Please report it.",
    )


@contextlib.contextmanager
def _work_directory() -> Iterator[Path]:
    """A private directory for copies, removed whatever happens to this process.

    Raises:
        UserError: If it cannot be made.
    """
    parent = paths.make_private_dir(paths.audits_dir())
    try:
        work = Path(tempfile.mkdtemp(prefix=_WORK, dir=parent))
    except OSError as error:
        raise disk_error(parent, error) from error
    janitor = subprocess.Popen(
        [sys.executable, "-m", _JANITOR, str(work)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=finding_core(worker_environment()),
    )
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        janitor.communicate()
