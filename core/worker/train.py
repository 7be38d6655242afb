"""The training recipe: everything a run does, from top to bottom.

One optimizer step: plan the window, for each micro-batch forward to hidden states, loss on supervised positions,
backward; then clip, optimizer, events, control point.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.config.schema import WEIGHT_METHODS, Config
from core.errors import UserError
from core.memory.batching import TOKEN_BUDGETS
from core.memory.sizes import FP32_STATES, updates_in_backward
from core.models.files import weights_fingerprint
from core.runs.events import CheckpointEvent, StepEvent
from core.runs.sentences import ALL_DONE
from core.runs.store import Run
from core.worker import checkpoint as checkpoints
from core.worker.adapters import adapted_layers, attach_adapters, parameter_groups
from core.worker.attendant import Attendant
from core.worker.batches import DataOrder
from core.worker.control import Controls, StopRequested
from core.worker.evaluate import Evaluator
from core.worker.gradients import WindowGradients, make_accelerator
from core.worker.health import Health, NotFiniteError
from core.worker.loss import SupervisedLoss
from core.worker.model import (
    choose_device,
    choose_dtype,
    evaluation_mode,
    load_model,
    trainable_parameters,
)
from core.worker.noise import EmbeddingNoise
from core.worker.objectives import make_objectives
from core.worker.optim import make_optimizer
from core.worker.own_weights import choose_weights, trained_tensors
from core.worker.prediction import decide_checkpointing, predict_memory
from core.worker.preparation import prepare
from core.worker.recorder import Recorder
from core.worker.samples import SampleWriter, choose_questions
from core.worker.schedule import lr_factor, warmup_steps
from core.worker.selection import Selection
from core.worker.shortage import TRIES, MemoryShortageError, Persistence, attempt
from core.worker.tensors import read_tensors
from core.worker.update import AdapterUpdate, Update, WeightUpdate

#: The greatest difference between our logits and the model's own that rounding explains.
LOGIT_TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 1.0, torch.float16: 0.25}
#: Sections of the configuration that a resumed run must share with its beginning.
FIXED_SECTIONS = ("model", "data", "template", "method", "train")


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
        self.selection = Selection(config.eval.patience, config.eval.min_delta)
        self.last_checkpoint: int | None = None
        self.last_eval: int | None = None
        self._save_again = False

    def train(self, *, resume: bool) -> Outcome:
        """Do the run.

        Args:
            resume: Go on from the newest valid checkpoint.

        Raises:
            StopRequested: If it was stopped; a checkpoint has then been written, if a step was done and time was given.
            UserError: If it cannot go on.
        """
        found = self._newest_checkpoint() if resume else None
        self._prepare_data()
        self._load_model(fresh=not resume)
        self._prepare_optimization()
        if found is not None:
            self._restore(found)
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
        self.questions = choose_questions(self.config, self.held_out)

    def _load_model(self, *, fresh: bool) -> None:
        self.controls.check_stop()
        config = self.config
        self.recorder.phase("loading_model", config.model.base)
        self.base_fingerprint = weights_fingerprint(self.base)
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
        else:
            self._attach_adapters(fresh=fresh)
        self.loss = SupervisedLoss(self.loaded.model)
        self.accelerator = make_accelerator(self.loaded)
        report = self.recorder.reporter("loading_model", self.controls.check_stop)
        self.objective, self.held_out_objective = make_objectives(
            config,
            self.loss,
            self.dataset.rows,
            self.held_out.rows if self.held_out is not None else None,
            self.loaded,
            self.accelerator.autocast,
            lambda done, total: report("answers by the reference", done, total),
        )

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
            notice=self._warn,
            noise=None if alpha is None else EmbeddingNoise(self.loaded.model, alpha),
            partial=lambda: self.update.partial,
            whole=self.update.in_backward,
            place=self.dataset.place,
            objective=self.objective,
        )
        recomputing, self._decision = decide_checkpointing(self.config, self.loaded.device, self.dataset, self.windows)
        self.windows.set_checkpointing(recomputing)
        self.attendant = Attendant(self)
        self.health = Health(
            lambda code, message, hint: self.recorder.notice("warning", code, message, hint), self.dataset.places
        )
        self.samples = SampleWriter(
            self.loaded,
            self.questions,
            autocast=self.accelerator.autocast,
            template=self.template,
            complain=lambda message, hint: self.recorder.notice("warning", "no_samples", message, hint),
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
                notice=self._warn,
                objective=self.held_out_objective,
            )
        self.recorder.update(total_steps=self.total_steps)

    def _make_update(self) -> Update:
        train = self.config.train
        persistence = Persistence(lambda: f"step {self.step + 1}", self._warn)
        if self.config.method.name not in WEIGHT_METHODS:
            parameters = trainable_parameters(self.loaded.model)
            groups = parameter_groups(self.loaded.model, self.config.method.loraplus_ratio)
            optimizer = make_optimizer(groups, train)
            return AdapterUpdate(self.accelerator, optimizer, parameters, train.max_grad_norm, persistence)
        return WeightUpdate(
            trained_tensors(self.loaded.model),
            lambda parameters: make_optimizer(parameters, train, weight_decay=0.0),
            states_in_fp32=train.optimizer in FP32_STATES,
            weight_decay=train.weight_decay,
            max_grad_norm=train.max_grad_norm,
            in_backward=updates_in_backward(self.config),
            persistence=persistence,
        )

    def _warn(self, code: str, message: str, hint: str) -> None:
        self.recorder.notice("warning", code, message, hint)

    def _rehearse(self) -> None:
        self.controls.check_stop()
        self.recorder.phase("rehearsing")
        # A resumed run goes on as it was, whatever would be decided now.
        if self.step == 0 and self.config.memory.gradient_checkpointing == "auto":
            self.recorder.notice("info", "checkpointing", self._decision)
        self._verify_head()
        if self.loaded.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.loaded.device)
        with self.update.rehearsal():
            rows, length = self.windows.rehearse(self.config.train.batch_size)
        self.recorder.phase("rehearsing", f"{rows} rows of {length} tokens", done=1, total=1)
        self._record_memory(rehearsed=True)
        checkpoints.check_room(self.run.path, self._checkpoint_size())

    def _verify_head(self) -> None:
        ids = torch.as_tensor(self.dataset.rows[0].input_ids[:16], dtype=torch.int64, device=self.loaded.device)
        # In evaluation mode, as dropout would make the two differ and take from the random state that was restored.
        with evaluation_mode(self.loaded.model), self.accelerator.autocast():
            difference = self.loss.verify(ids[None])
        if not difference <= LOGIT_TOLERANCE[self.loaded.dtype]:
            raise UserError(
                f"The output head of {self.config.model.base} works in a way that is not known here "
                f"(logits differ by {difference:.3g}).",
                "Report the model's architecture; training it would go wrong silently.",
            )

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
            self._optimizer_step()
            if self.health.is_hopeless:
                raise self._give_up()
            if self.step < self.total_steps:
                self._evaluate_if_due()
            # A pause here is one for a best checkpoint that could not be written; another would fail as well.
            due = self._due(self.attendant.checkpoint_every) or self._save_again
            if due and not self.attendant.paused:
                self.save_checkpoint()
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
        norm = self.update.measure()
        scaler = self.accelerator.scaler
        overflow = scaler is not None and scaler.get_scale() > 1.0
        if self.health.accepts(self.step + 1, result.loss, norm, window, overflow=overflow):
            self.selection.proved(self.step)
            self.update.apply()
        else:
            self.update.skip()
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

    def _give_up(self) -> NotFiniteError:
        """Take away the checkpoints after the last good one, so that whoever goes on begins there."""
        good = self.selection.last_good
        if good is not None and (path := self._checkpoint_path(good)).is_dir():
            keep, protected = self.config.checkpoint.keep, self.selection.protected
            checkpoints.rotate(self.run.checkpoints_path, keep, newest=path, protected=protected)
        return self.health.verdict(good)

    def _checkpoint_path(self, step: int) -> Path:
        return self.run.checkpoints_path / checkpoints.checkpoint_name(step)

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
                    self._warn("evaluation_skipped", message, error.hint)
                    return
                event = dataclasses.replace(event, seconds=event.seconds - (self.paused_seconds - paused))
                for told in (event, *samples):
                    self.recorder.event(told)
                if self.selection.measured(self.step, event.loss):
                    self.save_checkpoint()
            self.last_eval = self.step
            for sample in self.samples.write(self.step, functools.partial(report, "samples")):
                self.recorder.event(sample)
        self._record_memory()

    def save_checkpoint(self) -> None:
        """Write a checkpoint of the present step, unless there is one; old ones are rotated out afterwards.

        A full disk does not end the run: it is paused, to be resumed when there is room. When memory runs out, it is
        tried again, at once and after the next step.
        """
        if self.last_checkpoint == self.step or self.step == 0:
            return
        began = time.monotonic()
        try:
            checkpoints.check_room(self.run.path, self._checkpoint_size())
            written = self._write_checkpoint()
        except MemoryShortageError as error:
            self._save_again = True
            self._warn("checkpoint_postponed", error.message, "It is tried again after the next step, if there is one.")
            return
        except (OSError, UserError) as error:
            reason = error.message if isinstance(error, UserError) else str(error)
            self.recorder.notice(
                "error",
                "checkpoint_failed",
                f"The checkpoint of step {self.step} was not written: {reason}",
                "Make room, then resume; earlier checkpoints are untouched.",
            )
            self.attendant.pause()
            return
        self.last_checkpoint = self.step
        self._save_again = False
        self.selection.saved(self.step)
        checkpoints.rotate(
            self.run.checkpoints_path,
            self.config.checkpoint.keep,
            newest=written.path,
            protected=self.selection.protected,
        )
        size = sum(facts["bytes"] for facts in written.manifest["files"].values())
        path = str(written.path.relative_to(self.run.path))
        self.recorder.event(CheckpointEvent(step=self.step, path=path, bytes=size, seconds=time.monotonic() - began))

    def _write_checkpoint(self) -> checkpoints.Checkpoint:
        def write() -> checkpoints.Checkpoint:
            return checkpoints.save_checkpoint(
                self.run.checkpoints_path,
                model=self.loaded.model,
                optimizer=self.update,
                step=self.step,
                facts=self._facts(),
            )

        reason = ""
        for _ in range(TRIES):
            tried = attempt(write)
            if tried.result is not None:
                return tried.result
            reason = tried.reason or ""
        raise MemoryShortageError(f"Memory ran out in saving the checkpoint of step {self.step}: {reason}", "")

    def _facts(self) -> dict[str, Any]:
        return {
            "config_sha256": config_hash(self.config),
            "data_sha256": self.data_fingerprint,
            "base_sha256": self.base_fingerprint,
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
            "total_steps": self.total_steps,
            "token_budget": self.windows.token_budget,
            "gradient_checkpointing": self.windows.checkpointing,
            "overrides": self.attendant.overrides,
            "selection": self.selection.facts(),
            "health": self.health.facts(),
        }

    def _newest_checkpoint(self) -> checkpoints.Checkpoint:
        # Before minutes are spent on the rows and the model.
        found, damaged = checkpoints.newest_valid(self.run.checkpoints_path)
        for sentence in damaged:
            self.recorder.notice("warning", "checkpoint_damaged", sentence, "An older checkpoint is used.")
        if found is None:
            raise UserError(f"Run {self.run.id} has no valid checkpoint to go on from.", "Start it again.")
        if found.manifest["config_sha256"] != config_hash(self.config):
            raise UserError(
                f"{self.run.config_path} has changed since {found.path.name}.", "Put it back, or start a new run."
            )
        return found

    def _restore(self, found: checkpoints.Checkpoint) -> None:
        for name, now, what in (
            ("data_sha256", self.data_fingerprint, "The training data"),
            ("base_sha256", self.base_fingerprint, f"The base model {self.config.model.base}"),
        ):
            if found.manifest[name] != now:
                raise UserError(f"{what} has changed since {found.path.name}.", "Put it back, or start a new run.")
        checkpoints.restore(found, model=self.loaded.model, optimizer=self.update)
        if self.accelerator.scaler is not None and found.manifest["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(found.manifest["scaler"])
        self.step = self.last_checkpoint = found.step
        self.windows.token_budget = int(found.manifest["token_budget"])
        self.windows.set_checkpointing(bool(found.manifest["gradient_checkpointing"]))
        self.attendant.apply(found.manifest["overrides"])
        self.selection.restore(found.manifest["selection"], found.step)
        self.health.restore(found.manifest["health"])
        self.recorder.update(step=self.step)
        self.recorder.notice("info", "resumed", f"Going on from {found.path.name}.")

    def _stop(self, *, save: bool) -> None:
        self.recorder.update(state="stopping")
        if save:
            self.recorder.phase("saving", "checkpoint")
            self.save_checkpoint()

    def _finish(self) -> Outcome:
        self.recorder.phase("saving", "checkpoint")
        self.save_checkpoint()
        if self.attendant.paused:
            self.attendant.attend()
        self._evaluate()
        output = self.run.model_path if self.config.method.name in WEIGHT_METHODS else self.run.adapter_path
        self.recorder.phase("saving", output.name)
        chosen = self._chosen_checkpoint()
        self._save_final(output, chosen)
        self._record_memory()
        reason = ALL_DONE
        if self.selection.is_exhausted and self.step < self.total_steps:
            reason = f"no lower held-out loss in {self.selection.waited} evaluations"
        if chosen is not None:
            reason += f"; the {output.name} is that of step {chosen.step}, the best one"
        return Outcome(self.step, self.selection.best_step, output.name, reason)

    def _checkpoint_size(self) -> int:
        return checkpoints.size_estimate(self.loaded.model, self.config.train.optimizer)

    def _chosen_checkpoint(self) -> checkpoints.Checkpoint | None:
        """The checkpoint that becomes the result; None for the weights as they are."""
        best = self.selection.best_step
        if self.config.checkpoint.final == "last" or best == self.step:
            return None
        try:
            if best is None:
                raise UserError("No step was measured with a finite loss.")
            return checkpoints.verify_checkpoint(self._checkpoint_path(best))
        except UserError as error:
            self.recorder.notice(
                "warning", "best_missing", f"The best step cannot be taken: {error.message}", "The last one is."
            )
        return None

    def _save_final(self, output: Path, chosen: checkpoints.Checkpoint | None) -> None:
        def fill(directory: Path) -> None:
            if output == self.run.model_path:
                if chosen is not None:
                    read_tensors(chosen.weights_path, trained_tensors(self.loaded.model))
                checkpoints.save_model(self.loaded.model, directory)
            elif chosen is not None:
                shutil.copytree(chosen.adapter_path, directory, dirs_exist_ok=True)
            else:
                checkpoints.save_adapter(self.loaded.model, directory)
            self.loaded.tokenizer.save_pretrained(directory)
            if self.template is not None:
                (directory / "chat_template.jinja").write_text(self.template, encoding="utf-8")

        def nothing() -> None:
            """What was half written is gone already."""

        saving = Persistence(lambda: "the end", self._warn)
        newest = f"The newest checkpoint holds it; free memory and 'localtune-tui continue {self.run.id}'."
        try:
            saving.insist(
                lambda: checkpoints.write_directory(output, fill), nothing, f"in saving the {output.name}", newest
            )
        except OSError as error:
            raise UserError(
                f"The {output.name} cannot be written to {output}: {error}.",
                f"The newest checkpoint holds it; make room and 'localtune-tui continue {self.run.id}'.",
            ) from error

    # Telling.

    def _tell_layers(self) -> None:
        if self.config.method.target_modules == "all-linear":
            return
        found = adapted_layers(self.loaded.model)
        names = ", ".join(f"{name} {count}" for name, count in found.items())
        self.recorder.notice("info", "adapters", f"{sum(found.values())} layers have adapters: {names}.")

    def _record_memory(self, *, rehearsed: bool = False) -> None:
        device = self.loaded.device
        predicted = predict_memory(self.config, device.type, self.dataset, self.windows) if rehearsed else None
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


def config_hash(config: Config) -> str:
    """SHA-256 over the sections that decide what is trained and how."""
    dumped = config.model_dump(mode="json")
    fixed = {section: dumped[section] for section in FIXED_SECTIONS}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode("utf-8")).hexdigest()
