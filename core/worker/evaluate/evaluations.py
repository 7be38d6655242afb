"""Evaluations of a run, with their events: held-out rows, general probe, sample answers."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from core.errors import UserError
from core.evaluation.held_out import keep_answers
from core.runs.record.events import ProbeEvent, SampleEvent
from core.worker.checkpoint.checkpointer import Checkpointer
from core.worker.evaluate.evaluate import Evaluator, Probe
from core.worker.evaluate.samples import SampleWriter
from core.worker.oom.retry import MemoryShortageError
from core.worker.process.control import EvaluationSkipped, StopRequested

#: Callback with the part of an evaluation, rows done, and all rows.
Progress = Callable[[str, int, int], None]


@dataclass
class Evaluations:
    """Measures the model between steps, keeps the best checkpoint, and writes the events.

    A stop interrupts an evaluation; the next control point acts on it.

    Args:
        evaluator: Evaluator on held-out rows; None without held-out rows.
        probe: The general probe; None if it is off.
        samples: The sample answers.
        checkpointer: Saves the best step; holds state and recorder of the run.
        attend: The control point, called often; may raise to stop.
    """

    evaluator: Evaluator | None
    probe: Probe | None
    samples: SampleWriter
    checkpointer: Checkpointer
    attend: Callable[[], None]

    def __post_init__(self) -> None:
        self.state, self.recorder = self.checkpointer.state, self.checkpointer.recorder
        self._is_failing = False

    def evaluate(self) -> bool:
        """Measure the current step, unless it was measured already. Returns True if there was anything to measure."""
        state, step = self.state, self.state.step
        if state.evaluated == step or (self.evaluator is None and not self.samples.is_needed):
            return False
        with self._passes():
            try:
                self._measure()
            except EvaluationSkipped:
                state.evaluated = step
                raise
        return True

    def look_first(self) -> None:
        """Run the general probe and the sample answers of the untrained model, for later comparison. Held-out rows are
        not measured."""
        if self.probe is not None:
            self._probe_first(self.probe)
        if self.samples.is_needed or (self.evaluator is not None and self.evaluator.has_samples):
            self._answer_first()

    @contextlib.contextmanager
    def _passes(self) -> Iterator[None]:
        """Context of forward passes without gradients; a stop or a skip ends it."""
        state = self.state
        state.measures_baseline = state.step == 0
        try:
            with contextlib.suppress(StopRequested), self.checkpointer.strategy.leading():
                yield
        except EvaluationSkipped:
            state.skipping = False
        finally:
            state.measures_baseline = False
            self.recorder.end_progress()

    def _measure(self) -> None:
        state, recorder, evaluator, step = self.state, self.recorder, self.evaluator, self.state.step
        tell = recorder.reporter("evaluating", self.attend)

        def report(part: str, done: int, total: int) -> None:
            recorder.progress("evaluation" if part == "loss" else part, done, total)
            tell(part, done, total)

        recorder.phase("evaluating", total=evaluator.rows if evaluator is not None else None)
        if evaluator is not None and not self._measure_rows(evaluator, report):
            return
        state.evaluated = step
        self._record(self.samples.write(step, functools.partial(report, "samples")))

    def _measure_rows(self, evaluator: Evaluator, report: Progress) -> bool:
        """Measure the held-out rows and the probe; returns True if memory sufficed."""
        state, step = self.state, self.state.step
        paused, began = state.paused_seconds, time.monotonic()
        try:
            event, samples, answers = evaluator.measure(step, report)
        except MemoryShortageError as error:
            state.evaluated = step
            message = f"The evaluation after step {step} is left out. {error.message}"
            self.recorder.warn("evaluation_skipped", message, error.hint)
            return False
        if self.probe is not None:
            event = dataclasses.replace(event, probe_loss=self.probe.measure(functools.partial(report, "probe")))
        # Time spent in a pause does not count.
        seconds = time.monotonic() - began - (state.paused_seconds - paused)
        event = dataclasses.replace(event, seconds=seconds)
        self.recorder.event(event)
        self._record(samples)
        if state.best.measured(step, event.loss, proves=state.spikes.is_trusted):
            self.checkpointer.save()
        if answers:
            self._keep(evaluator, answers)
        return True

    def _keep(self, evaluator: Evaluator, answers: Sequence[str]) -> None:
        state, recorder = self.state, self.recorder
        if not recorder.keeps:
            return
        try:
            keep_answers(
                recorder.run, state.step, evaluator.items, answers, evaluator.max_new_tokens, best=state.best.best_step
            )
        except (UserError, OSError) as error:
            # They are for later comparison only; a full disk never ends a run here.
            if not self._is_failing:
                message = f"The answers to the held-out rows are not kept: {error}"
                recorder.warn("answers_not_kept", message, "Flipped answers are not listed for this run.")
            self._is_failing = True

    def _probe_first(self, probe: Probe) -> None:
        tell = self.recorder.reporter("evaluating", self.attend)
        self.recorder.phase("evaluating", "probe")
        paused, began = self.state.paused_seconds, time.monotonic()
        with self._passes():
            loss = probe.measure(functools.partial(tell, "probe"))
            if loss is not None:
                seconds = time.monotonic() - began - (self.state.paused_seconds - paused)
                self.recorder.event(ProbeEvent(step=0, loss=loss, seconds=seconds))

    def _answer_first(self) -> None:
        evaluator, recorder, step = self.evaluator, self.recorder, self.state.step
        # A separate name: its duration is no estimate for later measurements of rows.
        part = "samples" if evaluator is None else "first answers"
        tell = recorder.reporter("evaluating", self.attend)

        def report(done: int, total: int) -> None:
            recorder.progress("samples", done, total)
            tell(part, done, total)

        recorder.phase("evaluating", part)
        with self._passes():
            if evaluator is not None and evaluator.has_samples:
                samples = evaluator.answer_samples(step, lambda _, done, total: report(done, total))
            else:
                samples = self.samples.write(step, report)
            self._record(samples)

    def _record(self, samples: Iterable[SampleEvent]) -> None:
        """Record answers; before the first step of an adapter that is trained further, they are not the base's."""
        is_further = self.state.step == 0 and self.checkpointer.config.model.adapter is not None
        for sample in samples:
            self.recorder.event(dataclasses.replace(sample, source="step-0") if is_further else sample)
