"""The training recipe: everything a run does, from top to bottom.

One optimizer step: plan the window, for each micro-batch forward to hidden states, loss on supervised positions,
backward; then clip, optimizer, events, control point.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from dataclasses import dataclass

import torch

from core.config.schema import WEIGHT_METHODS, Config
from core.memory.batching import TOKEN_BUDGETS
from core.memory.sizes import FP32_STATES, updates_in_backward
from core.models.fingerprint import BaseFingerprint
from core.runs.events import StepEvent
from core.runs.sentences import ALL_DONE
from core.runs.store import Run
from core.worker.checkpoint.checkpoint import Checkpoint
from core.worker.checkpoint.checkpointer import Keeper
from core.worker.checkpoint.rollback import Recovery
from core.worker.control_point import Attendant
from core.worker.data.batches import DataOrder
from core.worker.evaluate.evaluate import Evaluator
from core.worker.evaluate.samples import SampleWriter, choose_questions
from core.worker.loss.fused_loss import choose_for_run
from core.worker.loss.loss import SupervisedLoss
from core.worker.loss.objectives import make_objectives
from core.worker.loss.reference import PrecomputedReference
from core.worker.model.activation_offload import available_offload
from core.worker.model.adapters import adapted_layers, attach_adapters, parameter_groups
from core.worker.model.full_weights import choose_weights, trained_tensors
from core.worker.model.model import (
    choose_device,
    choose_dtype,
    load_model,
    trainable_parameters,
)
from core.worker.oom.retry import MemoryShortageError, Retry, TornUpdateError
from core.worker.optim.optim import make_optimizer
from core.worker.optim.schedule import lr_factor, warmup_steps
from core.worker.optim.update import AdapterUpdate, Update, WeightUpdate
from core.worker.process.control import Controls, StopRequested
from core.worker.process.malloc import keep_freed_memory
from core.worker.process.recorder import Recorder
from core.worker.progress.best import BestStep
from core.worker.progress.finite import FiniteCheck
from core.worker.setup.fast_paths import arrange_rows, compile_layers, fuse_layers, lays_out
from core.worker.setup.memory_decision import decide_memory, predict_memory
from core.worker.setup.preparation import prepare
from core.worker.setup.self_check import check_head, check_model
from core.worker.steps.neftune import EmbeddingNoise
from core.worker.steps.window import WindowGradients, first_budget, make_accelerator


@dataclass(frozen=True)
class Outcome:
    """How a run that was not stopped ended."""

    step: int
    best_step: int | None
    adapter: str
    """The adapter, or the model where its own weights were trained; relative to the run directory."""
    reason: str
    """Why it ended, and which step the result is of where that is not the last one."""


class FinetuneRecipe:
    """Fine-tunes a model: with LoRA adapters (arXiv 2106.09685), on a 4-bit base with QLoRA (arXiv 2305.14314), or
    its own weights, all of them or those of some layers.

    Args:
        run: The run directory.
        config: The configuration, paths absolute.
        recorder: Where events and state go.
        controls: What is asked from outside.
    """

    def __init__(self, run: Run, config: Config, recorder: Recorder, controls: Controls) -> None:
        self.run = run
        self.config = config
        self.recorder = recorder
        self.controls = controls
        self.step = 0
        self.total_steps = 0
        self.paused_seconds = 0.0
        self.selection = BestStep(config.eval.patience, config.eval.min_delta)
        self.last_eval: int | None = None
        self.first_step_rehearses = False
        """Whether it has a micro-batch as large as any, so that none is run before it."""
        self.liger: str | None = None
        self.measured: PrecomputedReference | None = None
        """What the reference says, where that is taken once."""
        self.keeper = Keeper(self)

    def train(self, *, resume: bool) -> Outcome:
        """Do the run.

        Args:
            resume: Go on from the newest valid checkpoint.

        Raises:
            StopRequested: If it was stopped; a checkpoint has then been written, if a step was done and time was given.
            UserError: If it cannot go on.
        """
        found = self.keeper.find() if resume else None
        self._prepare_data()
        self._load_model(found)
        self._choose_loss(found)
        self._prepare_optimization()
        self.base_fingerprint.settle(self.controls.check_stop)
        if found is not None:
            self.keeper.restore(found)
        self._rehearse()
        try:
            self._loop()
        except StopRequested as request:
            self._stop(save=not request.now)
            raise
        return self._finish()

    # Preparation.

    def _prepare_data(self) -> None:
        # What the device cannot do is said before minutes are spent on the rows.
        device = choose_device(self.config.hardware.device)
        choose_dtype(self.config.train.precision, device, self.config.method.name)
        prepared = prepare(self.config, self.recorder, self.controls.check_stop, self.run.created)
        self.base, self.tokenizer, self.template = prepared.base, prepared.tokenizer, prepared.template
        self.dataset, self.held_out = prepared.dataset, prepared.held_out
        self.data_fingerprint = prepared.data_fingerprint
        self.held_out_fingerprint = prepared.held_out_fingerprint
        self.questions = choose_questions(self.config, self.held_out)

    def _load_model(self, found: Checkpoint | None) -> None:
        self.controls.check_stop()
        config = self.config
        self.recorder.phase("loading_model", config.model.base)
        # Beside the loading, which reads the same files.
        self.base_fingerprint = BaseFingerprint(self.base)
        self.loaded = load_model(
            self.base,
            method=config.method.name,
            precision=config.train.precision,
            device=config.hardware.device,
            for_training=True,
            tokenizer=self.tokenizer,
        )
        if config.method.name in WEIGHT_METHODS:
            choose_weights(self.loaded.model, config.method, seed=config.train.seed)
            budget = found.manifest.get("reference_budget") if found is not None else None
            self.measured = PrecomputedReference(int(budget or TOKEN_BUDGETS[self.loaded.device.type]), self.warn)
        else:
            self._attach_adapters(fresh=found is None)
        self.fused = fuse_layers(config, self.loaded)
        budget = first_budget(self.loaded.device, whole=updates_in_backward(config))
        self.memory = decide_memory(config, self.loaded.device, self.dataset, budget)
        if self.memory.dequantized:
            self.fused.keep_weights(self.loaded.dtype)
        self.loss = SupervisedLoss(self.loaded.model)
        self.accelerator = make_accelerator(self.loaded)
        wanted = lays_out(config, self.fused)
        trial = check_model(self.loaded, self.loss, self.dataset.rows, self.accelerator.autocast, laid_out=wanted)
        check_head(trial, self.loaded.dtype, config.model.base)
        arrange_rows(config, self.loaded, self.loss, self.dataset.rows, self.fused, trial)
        report = self.recorder.reporter("loading_model", self.controls.check_stop)
        self.objective, self.held_out_objective = make_objectives(
            config,
            self.loss,
            self.dataset.rows,
            self.held_out.rows if self.held_out is not None else None,
            self.loaded,
            self.accelerator.autocast,
            lambda done, total: report("answers by the reference", done, total),
            self.measured,
        )

    def _choose_loss(self, found: Checkpoint | None) -> None:
        manifest = None if found is None else found.manifest
        choice = choose_for_run(self.config, self.loss.head, self.loaded.device, manifest)
        self.loss.sum_losses, self.liger = choice.function, choice.liger
        if choice.notice is not None:
            self.recorder.notice(*choice.notice)

    def _attach_adapters(self, *, fresh: bool) -> None:
        config = self.config
        report = self.recorder.reporter("loading_model", self.controls.check_stop)
        self.loaded.model = attach_adapters(
            self.loaded.model,
            config.method,
            seed=config.train.seed,
            base=self.base,
            fresh=fresh,
            progress=lambda done, total: report("beginning of the adapters", done, total),
        )
        self._tell_layers()

    def _prepare_optimization(self) -> None:
        train = self.config.train
        self.order = DataOrder(self.dataset.lengths, train.batch_size, train.seed)
        by_epochs = math.ceil(train.epochs * self.order.steps_per_epoch)
        self.total_steps = train.max_steps or by_epochs
        self.warmup = warmup_steps(train.warmup, self.total_steps)
        self.update = self._make_update()
        alpha = self.config.method.neftune_alpha
        self.windows = WindowGradients(
            self.loaded,
            self.loss,
            self.dataset.rows,
            accelerator=self.accelerator,
            max_rows=train.micro_batch_size,
            notice=self.warn,
            noise=None if alpha is None else EmbeddingNoise(self.loaded.model, alpha),
            partial=lambda: self.update.partial,
            whole=self.update.in_backward,
            place=self.dataset.place,
            objective=self.objective,
            free_caches=self.fused.drop_weights,
            offload=available_offload(self.config.memory.activation_offload, self.loaded.device),
        )
        self.windows.set_checkpointing(self.memory.checkpointing, offload=self.memory.offload)
        if self.loaded.device.type == "cpu":
            keep_freed_memory()
        if self.config.train.compile:
            compile_layers(self.loaded, self.warn)
        self.attendant = Attendant(self)
        self.health = FiniteCheck(self.warn, self.dataset.places)
        self.recovery = Recovery(self)
        self.samples = SampleWriter(
            self.loaded,
            self.questions,
            autocast=self.accelerator.autocast,
            template=self.template,
            warn=lambda message, hint: self.recorder.notice("warning", "no_samples", message, hint),
        )
        self.evaluator = None
        if self.held_out is not None:
            self.evaluator = Evaluator(
                self.loaded,
                self.loss,
                self.held_out,
                token_budget=min(self.windows.token_budget, TOKEN_BUDGETS[self.loaded.device.type]),
                autocast=self.accelerator.autocast,
                max_new_tokens=self.config.chat.max_new_tokens if self.config.eval.exact_match else 0,
                template=self.template,
                check=self.attendant.attend,
                samples=0 if self.samples.is_needed else self.config.eval.samples,
                notice=self.warn,
                objective=self.held_out_objective,
            )
        self.recorder.update(total_steps=self.total_steps)

    def _make_update(self) -> Update:
        train = self.config.train
        retry = Retry(lambda: f"step {self.step + 1}", self.warn)
        if self.config.method.name not in WEIGHT_METHODS:
            parameters = trainable_parameters(self.loaded.model)
            groups = parameter_groups(self.loaded.model, self.config.method.loraplus_ratio)
            optimizer = make_optimizer(groups, train)
            return AdapterUpdate(self.accelerator, optimizer, parameters, train.max_grad_norm, retry)
        return WeightUpdate(
            trained_tensors(self.loaded.model),
            lambda parameters: make_optimizer(parameters, train, weight_decay=0.0),
            states_in_fp32=train.optimizer in FP32_STATES,
            weight_decay=train.weight_decay,
            max_grad_norm=train.max_grad_norm,
            in_backward=updates_in_backward(self.config),
            retry=retry,
        )

    def warn(self, code: str, message: str, hint: str) -> None:
        """Give notice of what went wrong and does not end the run."""
        self.recorder.notice("warning", code, message, hint)

    def _rehearse(self) -> None:
        self.controls.check_stop()
        self.recorder.phase("rehearsing")
        # A resumed run goes on as it was, whatever would be decided now.
        if self.step == 0 and self.config.memory.gradient_checkpointing == "auto":
            self.recorder.notice("info", "checkpointing", self.memory.checkpointing_reason)
        if self.step == 0 and self.memory.offload_reason:
            self.recorder.notice("info", "activation_offload", self.memory.offload_reason)
        if self.loaded.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.loaded.device)
        batch_size = self.config.train.batch_size
        self.first_step_rehearses = (
            self.step == 0
            and not self.update.in_backward
            and self.windows.has_largest(self.order.window(self.step), batch_size)
        )
        if self.first_step_rehearses:
            self.recorder.phase("rehearsing", "the first step is as large as any", done=1, total=1)
        else:
            with self.update.rehearsal():
                rows, length = self.windows.rehearse(batch_size)
            self.recorder.phase("rehearsing", f"{rows} rows of {length} tokens", done=1, total=1)
            self._record_memory(rehearsed=True)
        self.keeper.check_room()

    # The loop.

    def _loop(self) -> None:
        self.recorder.update(state="training", step=self.step)
        if self.step == 0 and self.config.eval.baseline:
            self._evaluate()
        elif self.step and self.step < self.total_steps:
            # What a stop cut short is measured before the run goes on, as if it had not been stopped.
            self._evaluate_if_due()
        self.recorder.phase("training", done=self.step, total=self.total_steps)
        self.attendant.attend()
        while self.step < self.total_steps and not self.selection.is_exhausted:
            try:
                self._optimizer_step()
            except TornUpdateError as error:
                self.recovery.go_back(error)
                continue
            if self.health.is_hopeless:
                self.keeper.drop_after(self.selection.last_good)
                raise self.health.verdict(self.selection.last_good)
            if self.step < self.total_steps:
                self._evaluate_if_due()
            # A pause here is one for a best checkpoint that could not be written; another would fail as well.
            due = self._due(self.attendant.checkpoint_every) or self.keeper.postponed
            if due and not self.attendant.paused:
                self.keeper.save()
            self.attendant.attend()

    def _optimizer_step(self) -> None:
        began = time.monotonic()
        self.recorder.begin_step()
        lr = self.attendant.learning_rate * lr_factor(
            self.config.train.scheduler, self.step, self.warmup, self.total_steps
        )
        self.update.begin(lr)
        window = self.order.window(self.step)
        result = self.windows.run(window, where=f"step {self.step + 1}")
        norm = self.update.clip()
        scaler = self.accelerator.scaler
        overflow = scaler is not None and scaler.get_scale() > 1.0
        if self.health.accepts(self.step + 1, result.loss, norm, window, overflow=overflow):
            self.selection.proved(self.step)
            self.update.step()
        else:
            self.update.drop()
        self.step += 1
        seconds = time.monotonic() - began
        self.recorder.event(
            StepEvent(
                step=self.step,
                epoch=self.step / self.order.steps_per_epoch,
                loss=result.loss,
                lr=lr,
                grad_norm=norm,
                tokens=result.tokens,
                supervised_tokens=result.supervised_tokens,
                seconds=seconds,
                tokens_per_second=result.tokens / seconds,
                paused_seconds=self.paused_seconds,
                reward_margin=result.rewards.margin,
                reward_accuracy=result.rewards.accuracy,
            )
        )
        self.paused_seconds = 0.0
        self.recorder.end_step(self.step)
        if self.first_step_rehearses:
            self.first_step_rehearses = False
            self._record_memory(rehearsed=True)

    def _due(self, every: int | None) -> bool:
        return every is not None and self.step % every == 0

    # What the loop calls now and then.

    def _evaluate_if_due(self) -> None:
        if self.attendant.is_evaluation_due(self.step) and self.selection.last_measured != self.step:
            self._evaluate()
            self.recorder.phase("training", done=self.step, total=self.total_steps)

    def _evaluate(self) -> None:
        """Measure, keep the best, and write samples; what a stop cuts short, the control point that follows acts on."""
        if self.last_eval == self.step or (self.evaluator is None and not self.samples.is_needed):
            return
        report = self.recorder.reporter("evaluating", self.attendant.attend)
        self.recorder.phase("evaluating", total=len(self.held_out.rows) if self.held_out else None)
        with contextlib.suppress(StopRequested):
            if self.evaluator is not None:
                paused = self.paused_seconds
                try:
                    event, samples = self.evaluator.measure(self.step, report)
                except MemoryShortageError as error:
                    self.last_eval = self.step
                    message = f"The evaluation after step {self.step} is left out. {error.message}"
                    self.warn("evaluation_skipped", message, error.hint)
                    return
                event = dataclasses.replace(event, seconds=event.seconds - (self.paused_seconds - paused))
                for told in (event, *samples):
                    self.recorder.event(told)
                if self.selection.measured(self.step, event.loss):
                    self.keeper.save()
            self.last_eval = self.step
            for sample in self.samples.write(self.step, functools.partial(report, "samples")):
                self.recorder.event(sample)
        self._record_memory()

    def _stop(self, *, save: bool) -> None:
        self.recorder.update(state="stopping")
        if save:
            self.recorder.phase("saving", "checkpoint")
            self.keeper.save()

    def _finish(self) -> Outcome:
        self.recorder.phase("saving", "checkpoint")
        self.keeper.save()
        if self.attendant.paused:
            self.attendant.attend()
        self._evaluate()
        output = self.keeper.output
        self.recorder.phase("saving", output.name)
        chosen = self.keeper.choose()
        self.keeper.save_result(chosen)
        self._record_memory()
        reason = ALL_DONE
        if self.selection.is_exhausted and self.step < self.total_steps:
            reason = f"no lower held-out loss in {self.selection.waited} evaluations"
        if chosen is not None:
            reason += f"; the {output.name} is that of step {chosen.step}, the best one"
        return Outcome(self.step, self.selection.best_step, output.name, reason)

    # Telling.

    def _tell_layers(self) -> None:
        if self.config.method.target_modules == "all-linear":
            return
        found = adapted_layers(self.loaded.model)
        names = ", ".join(f"{name} {count}" for name, count in found.items())
        self.recorder.notice("info", "adapters", f"{sum(found.values())} layers have adapters: {names}.")

    def _record_memory(self, *, rehearsed: bool = False) -> None:
        device = self.loaded.device
        predicted = None
        if rehearsed:
            kept = self.fused.keeps_weights
            predicted = predict_memory(self.config, device.type, self.dataset, self.windows, dequantized=kept)
        if device.type != "cuda":
            self.recorder.memory_of_process(predicted, rehearsed=rehearsed)
            return
        peak = torch.cuda.max_memory_allocated(device)
        free, total = torch.cuda.mem_get_info(device)
        self.recorder.memory(
            str(device),
            predicted_bytes=predicted,
            rehearsed_bytes=peak if rehearsed else None,
            peak_bytes=peak,
            limit_bytes=min(total, free + torch.cuda.memory_reserved(device)),
        )
