"""The training recipe: one optimizer step, the loop around it, and a whole run.

A step is forward, loss and backward for each micro-batch, then clipping, the optimizer step, the schedule, the event
and the control point. With several processes, each works on a share of the window, and the sums run over all shares.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from core.config.gate import read_bars
from core.config.schema import Config
from core.runs.catalog.result import GateFigures, judge
from core.runs.record.events import BEST_CHOSEN, FinishedEvent, StepEvent
from core.runs.record.sentences import ALL_DONE
from core.runs.record.state import EventTail
from core.runs.record.store import after_refusal
from core.worker.data.batches import make_micro_batch, supervised_count
from core.worker.distributed.ranks import Ranks, lost_ranks_told
from core.worker.loss.objectives import Rewards
from core.worker.model.full_weights import trained_tensors
from core.worker.model.model import may_draw
from core.worker.oom.retry import TornUpdateError
from core.worker.process.control import Controls, ParkRequested, StopRequested
from core.worker.process.determinism import nondeterminism_explained, own_draws, restore_rng, rng_state
from core.worker.process.recorder import Recorder
from core.worker.progress.health import Spike
from core.worker.setup.build import Parts, set_up

#: Seconds within which every device that measures its power has reported it.
_SAMPLED_SECONDS = 30.0


@dataclass(frozen=True)
class Gradients:
    """Totals of a window whose gradients are in the parameters."""

    loss: float
    """Mean over the supervised tokens of the whole window, or over another weight of the objective."""
    tokens: int
    supervised_tokens: int
    rewards: Rewards


def train(
    config: Config,
    recorder: Recorder,
    controls: Controls,
    *,
    resume: bool,
    paused: bool = False,
    ranks: Ranks | None = None,
) -> FinishedEvent:
    """Train a run to its end.

    Args:
        config: The configuration, paths absolute.
        recorder: Writes the run's events and state.
        controls: Commands from outside the process.
        resume: Continue from the newest valid checkpoint.
        paused: Start paused, as the run was when it gave its device back.
        ranks: The processes of the run, this one being the first; None for a single process.

    Raises:
        ParkRequested: If the run must give its device back. Its steps are in a checkpoint by then.
        RankLostError: If another process does not answer.
        StopRequested: If the run was stopped. Its steps are in a checkpoint, unless the stop was immediate.
        UserError: If the run cannot continue.
    """
    with nondeterminism_explained(), lost_ranks_told():
        parts = set_up(config, recorder, controls, ranks, resume=resume)
        parts.state.paused = paused
        return FinetuneRecipe(config, recorder, controls, parts).run()


@dataclass(frozen=True)
class FinetuneRecipe:
    """Fine-tuning of a model: LoRA adapters (arXiv 2106.09685), QLoRA on a 4-bit base (arXiv 2305.14314), or the
    model's own weights in all or some layers."""

    config: Config
    recorder: Recorder
    controls: Controls
    parts: Parts

    def run(self) -> FinishedEvent:
        """Rehearse, train and write the result.

        Raises:
            ParkRequested: As :func:`train`.
            StopRequested: As :func:`train`.
            UserError: If it cannot go on.
        """
        rehearses = self.rehearse()
        with self.parts.governor.governing(self.parts.state.overrides), self.parts.strategy.orders.session():
            try:
                self.loop_until_left(rehearses=rehearses)
            except ParkRequested:
                raise  # saved already, and not at its end
            except StopRequested as request:
                self.recorder.update(state="stopping")
                if not request.now:
                    self.recorder.phase("saving", "checkpoint")
                    self.parts.checkpointer.save()
                raise
            return self.finish()

    def rehearse(self) -> bool:
        """Check before the first step that the run fits in memory. Returns True if the first step itself is the
        rehearsal, because it has a micro-batch as large as any."""
        parts, state, batch_size = self.parts, self.parts.state, self.config.train.batch_size
        self.controls.check_stop()
        self.recorder.phase("rehearsing")
        # A resumed run goes on as it was, whatever would be decided now.
        if state.step == 0 and (self.config.memory.gradient_checkpointing == "auto" or parts.memory.cut):
            self.recorder.notice("info", "checkpointing", parts.memory.checkpointing_reason)
        if state.step == 0 and parts.memory.offload_reason:
            self.recorder.notice("info", "activation_offload", parts.memory.offload_reason)
        parts.meter.reset_peak()
        first = state.step == 0 and not parts.update.in_backward
        by_first_step = first and parts.micro_batches.has_largest(parts.order.window(0), batch_size)
        if by_first_step:
            self.recorder.phase("rehearsing", "the first step is as large as any", done=1, total=1)
        else:
            with parts.update.rehearsal():
                rows, length = parts.micro_batches.rehearse(batch_size, self.accumulate)
            self.recorder.end_progress()
            self.recorder.phase("rehearsing", f"{rows} rows of {length} tokens", done=1, total=1)
            parts.meter.record(rehearsed=True)
        parts.checkpointer.check_room()
        return by_first_step

    def loop_until_left(self, *, rehearses: bool) -> None:
        """Run the loop. It continues if the device should be given back but no checkpoint could be written.

        Raises:
            ParkRequested: If the device must be given back, and all steps are in a checkpoint.
        """
        state = self.parts.state
        while True:
            try:
                return self.loop(rehearses=rehearses)
            except ParkRequested as request:
                request.paused = state.paused
                self.recorder.phase("saving", "checkpoint")
                self.parts.checkpointer.save()
                if state.saved == state.step or state.step == 0:
                    raise
                self.controls.drop_park()
                rehearses = False

    def loop(self, *, rehearses: bool) -> None:
        """Run optimizer steps to the end, with evaluations and checkpoints when due and a control point after each
        step.

        Args:
            rehearses: Whether the first step is the rehearsal.
        """
        parts, state = self.parts, self.parts.state
        self.recorder.update(state="training", step=state.step)
        if state.step == 0 and self.config.eval.baseline:
            self._evaluate()
        elif state.step == 0:
            parts.evaluations.look_first()
            if rehearses:
                parts.meter.reset_peak()  # the first step's peak is its own
        elif state.step < state.total_steps:
            # An evaluation cut short by a stop is made up for, as in a run that never stopped.
            self._evaluate_if_due()
        self.recorder.phase("training", done=state.step, total=state.total_steps)
        parts.control_point.attend()
        is_blind = state.limits.is_blind
        while state.step < state.total_steps and not self._is_exhausted and self._limit_reached() is None:
            try:
                self.step()
            except TornUpdateError as error:
                parts.rollback.go_back(error)
                continue
            if is_blind:
                is_blind = self._tell_blindness()
            if rehearses:
                rehearses = False
                parts.meter.record(rehearsed=True)
            if state.finite.is_hopeless:
                parts.checkpointer.drop_after(state.best.last_good)
                raise state.finite.verdict(state.best.last_good)
            if (spike := state.spikes.due) is not None:
                self._answer_spike(spike)
                continue
            if state.step < state.total_steps:
                self._evaluate_if_due()
            # A pause at this point means that a best checkpoint could not be written; another one would fail too.
            due = parts.intervals.is_checkpoint_due or parts.checkpointer.postponed
            due = due or (state.saved is None and state.spikes.needs_checkpoint)
            if due and not state.paused:
                parts.checkpointer.save()
            parts.control_point.attend()

    def step(self) -> None:
        """Do one optimizer step."""
        parts, state = self.parts, self.parts.state
        if state.step + 1 in state.spikes.left_out:
            self._pass_over()
            return
        parts.strategy.orders.step(state)
        window = parts.order.window(state.step)
        if not window:
            with self._draws_of_whole_window():
                parts.noise.draw()
            self._pass_over()
            return
        began, rested = time.monotonic(), parts.governor.throttle.rested_seconds
        if parts.file is not None:
            parts.file.begin_step()
        self.recorder.begin_step()
        learning_rate = parts.learning_rate()
        parts.update.begin(learning_rate)
        with self._draws_of_whole_window():
            result = self.gradients(window)
        norm = parts.update.clip()
        if self._accepts(result, norm, window):
            parts.update.step()
            if parts.file is not None:
                parts.file.updated()
        else:
            parts.update.drop()
        state.step += 1  # and with it the schedule
        seconds = time.monotonic() - began
        self._report_step(result, learning_rate, norm, seconds)
        state.limits.pause(state.paused_seconds)
        parts.governor.step_done(
            tokens=result.tokens,
            seconds=seconds,
            rested=parts.governor.throttle.rested_seconds - rested,
            paused=state.paused_seconds,
            steps_left=state.total_steps - state.step,
        )
        state.paused_seconds = 0.0
        self.recorder.end_step(state.step)
        if parts.compilation is not None:
            parts.compilation.report(state.step, self.recorder.notice)

    @contextlib.contextmanager
    def _draws_of_whole_window(self) -> Iterator[None]:
        """Context for the gradients of the present window. Where rows of it are left out, the random generators are
        afterwards as after the whole window, so that the dropout of all other windows is that of a run with these rows.
        """
        parts, step = self.parts, self.parts.state.step
        whole = parts.order.whole_window(step)
        has_gap = len(parts.order.window(step)) < len(whole)
        draws = has_gap and (self.config.method.dropout > 0 or may_draw(parts.loaded.model))
        # Several processes draw from generators of their own in each step.
        if not draws or not parts.strategy.ranks.is_single:
            yield
            return
        before = rng_state()
        parts.noise.draw()
        for attempt in parts.micro_batches.attempts(whole, where=f"step {step + 1}"):
            with attempt, torch.no_grad():
                for rows in attempt.micro_batches:
                    sequences, loaded = parts.objective.sequences(rows), parts.loaded
                    batch = make_micro_batch(rows, sequences, loaded.pad_id, loaded.device)
                    with parts.accelerator.autocast():
                        parts.objective.forward(batch)
        after = rng_state()
        restore_rng(before)
        yield
        restore_rng(after)

    def gradients(self, window: list[int]) -> Gradients:
        """Compute the gradients of a window, cut finer and run again if memory runs out; then reduce them, the loss and
        the rewards over all processes."""
        parts, strategy, step = self.parts, self.parts.strategy, self.parts.state.step
        noise, ranks = parts.noise.draw(), strategy.ranks
        rows = strategy.share(window, parts.dataset.lengths)
        # Draws differ between processes; afterwards all generators have the same state.
        with nullcontext() if ranks.is_single else own_draws(self.config.train.seed, step, ranks.rank):
            for attempt in parts.micro_batches.attempts(rows, where=f"step {step + 1}"):
                with attempt:
                    result = self.accumulate(attempt.micro_batches, window=window, noise=noise)
        if ranks.is_single:
            return dataclasses.replace(result, rewards=parts.objective.rewards())
        trained = list(trained_tensors(parts.loaded.model).values())
        loss, *sums = strategy.reduce(trained, [result.loss, *parts.objective.reward_sums()])
        return dataclasses.replace(result, loss=loss, rewards=parts.objective.rewards_of(sums))

    def accumulate(
        self,
        micro_batches: list[list[int]],
        *,
        window: Sequence[int] | None = None,
        noise: int | None = None,
        most_shared: int | None = None,
    ) -> Gradients:
        """Accumulate gradients: forward, loss and backward of each micro-batch. The loss is summed over the window and
        divided by the window's weight (its supervised tokens in supervised learning), so the cut into micro-batches
        changes nothing.

        Args:
            micro_batches: Row indices of each.
            window: All rows of the window, if ``micro_batches`` are only a share of it; None if they are all.
            noise: The window's number in :class:`~core.worker.steps.EmbeddingNoise`; None to draw one.
            most_shared: Maximum length in tokens of a shared prefix that is computed once; None for no limit.

        Returns:
            The loss of these rows, without rewards.
        """
        parts, objective, data, device = self.parts, self.parts.objective, self.parts.dataset, self.parts.loaded.device
        rows_here = [row for rows in micro_batches for row in rows]
        # A whole window is summed in the order of its micro-batches.
        window = rows_here if window is None or len(window) == len(rows_here) else window
        weight = objective.begin(window, parts.state.token_budget)
        total = torch.zeros((), dtype=torch.float32, device=device)
        parts.noise.begin_window(noise)
        for done, rows in enumerate(parts.strategy.passes(micro_batches)):
            if len(micro_batches) > 1:
                self.recorder.progress("micro_batches", done, len(micro_batches))
            # Built while the device still computes the previous gradients.
            batch = make_micro_batch(rows, objective.sequences(rows), parts.loaded.pad_id, device, most_shared)
            with parts.noise.on(rows, [data.rows[row].longest for row in rows]), parts.accelerator.autocast():
                # The outputs have no name, so they are freed before backward.
                loss = objective.loss(batch, objective.forward(batch))
            total += loss.detach()
            if parts.update.in_backward and not math.isfinite(float(loss.detach())):
                break  # an update inside backward would change some weights before the first non-finite gradient
            parts.accelerator.backward(loss / weight)
            parts.governor.throttle.rest()
        tokens = sum(data.rows[row].tokens for row in window)
        supervised_tokens = sum(supervised_count(data.rows[row]) for row in window)
        return Gradients(float(total) / weight, tokens, supervised_tokens, Rewards())

    def _report_step(self, result: Gradients, learning_rate: float, norm: float, seconds: float) -> None:
        """Write the event of the step just done.

        Args:
            result: Loss and token counts of its window.
            learning_rate: Learning rate of its update.
            norm: Gradient norm before clipping.
            seconds: Duration of the step.
        """
        state = self.parts.state
        self.recorder.event(
            StepEvent(
                step=state.step,
                epoch=state.step / self.parts.order.steps_per_epoch,
                loss=result.loss,
                lr=learning_rate,
                grad_norm=norm,
                tokens=result.tokens,
                supervised_tokens=result.supervised_tokens,
                seconds=seconds,
                tokens_per_second=result.tokens / seconds,
                paused_seconds=state.paused_seconds,
                reward_margin=result.rewards.margin,
                reward_accuracy=result.rewards.accuracy,
            )
        )

    def _pass_over(self) -> None:
        """Skip a step: only the schedule advances."""
        if self.parts.file is not None:
            self.parts.file.begin_step()
        self.parts.state.step += 1
        self.recorder.end_step(self.parts.state.step)

    def _accepts(self, result: Gradients, norm: float, window: list[int]) -> bool:
        """True if the step may update the weights. Its loss also judges the weights it was computed with."""
        state, step = self.parts.state, self.parts.state.step + 1
        if not state.finite.accepts(step, result.loss, norm, window, overflow=state.may_overflow):
            return False
        accepted = state.spikes.accepts(step, result.loss, result.supervised_tokens, window)
        if state.spikes.is_trusted:
            state.best.proved(state.step)
        return accepted

    def _evaluate_if_due(self) -> None:
        state = self.parts.state
        if self.parts.intervals.is_evaluation_due and state.best.last_measured != state.step:
            self._evaluate()
            self.recorder.phase("training", done=state.step, total=state.total_steps)

    def _evaluate(self) -> None:
        if self.parts.evaluations.evaluate():
            self.parts.meter.record()

    def _answer_spike(self, spike: Spike) -> None:
        """Return to the last good checkpoint and skip the steps of a loss spike.

        Raises:
            StopRequested: If the run ends there.
        """
        parts, state = self.parts, self.parts.state
        if state.spikes.may_go_back and parts.rollback.leave_out(spike):
            return
        good = state.best.last_good
        parts.checkpointer.drop_after(good)
        kept = f"the last good checkpoint is that of step {good}" if good else "no checkpoint is known to be good"
        times = f" after {state.spikes.rollbacks} rollbacks" if state.spikes.rollbacks else ""
        self.recorder.warn(
            "loss_spike_stop",
            f"The run stops{times}: {kept}. The rows of the spike: {state.spikes.name(spike)}.",
            "Look at them; a lower train.learning_rate or train.max_grad_norm makes training steadier.",
        )
        raise StopRequested(f"a loss spike ({spike.sentence})", now=True)

    @property
    def _is_exhausted(self) -> bool:
        """True if patience has run out. It cannot end a run before the weights of its file are trained."""
        file = self.parts.file
        return self.parts.state.best.is_exhausted and (file is None or file.weights.in_use)

    def _limit_reached(self) -> str | None:
        """The limit that ends the run after the last step, as a reason; None before the first step."""
        state = self.parts.state
        return state.limits.reached(state.paused_seconds) if state.step > 0 else None

    def _tell_blindness(self) -> bool:
        """Warn once that an energy limit has no effect here. Returns True while that is not known yet."""
        limits = self.parts.state.limits
        if limits.seconds < _SAMPLED_SECONDS:
            return True
        if limits.is_blind:
            self.recorder.warn(
                "energy_unknown",
                "train.max_energy_wh has no effect: no device here reports its power.",
                "train.max_hours ends a run everywhere.",
            )
        return False

    def finish(self) -> FinishedEvent:
        """Write the last checkpoint, evaluate once more, and write the result."""
        parts, state, best = self.parts, self.parts.state, self.parts.state.best
        limit = self._limit_reached() if state.step < state.total_steps else None
        self.recorder.phase("saving", "checkpoint")
        parts.checkpointer.save()
        if state.paused:
            parts.control_point.attend()
        self._evaluate()
        output = parts.checkpointer.output
        chosen = parts.checkpointer.choose()
        refused = self._refusal(state.step if chosen is None else chosen.step)
        if not refused:
            self.recorder.phase("saving", output.name)
            parts.checkpointer.save_result(chosen)
        parts.meter.record()
        reason = ALL_DONE
        if best.is_exhausted and state.step < state.total_steps:
            reason = f"no lower held-out loss in {best.waited} evaluations"
        elif limit is not None:
            reason = f"{limit}, after step {state.step} of {state.total_steps}"
        if chosen is not None:
            reason += f"; the {'result' if refused else output.name} is that of step {chosen.step}, {BEST_CHOSEN}"
        run = self.recorder.run
        return FinishedEvent(
            reason=reason,
            step=state.step,
            best=best.best_step,
            adapter=None if refused else output.name,
            hint=after_refusal(run) if refused else f"Talk to it: localtune-tui chat {run.id}",
            refused=refused or None,
        )

    def _refusal(self, step: int) -> str:
        """The bars of ``eval.gate`` that the result of a step misses; empty if it passes."""
        bars = read_bars(self.config.eval.gate)
        if not bars:
            return ""
        # Read from the record, because evaluations before a resume count as well.
        events = itertools.chain.from_iterable(EventTail(self.recorder.run.events_path).batches())
        return judge(bars, GateFigures.of(events, step))
