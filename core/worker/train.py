"""The training recipe: everything a run does, from top to bottom.

One optimizer step: plan the window, for each micro-batch forward to hidden states, loss on supervised positions,
backward; then clip, optimizer, events, control point.
"""

from __future__ import annotations

import hashlib
import json
import math
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
from core.runs.store import Run
from core.worker import checkpoint as checkpoints
from core.worker.adapters import adapted_layers, attach_adapters, parameter_groups
from core.worker.attendant import Attendant
from core.worker.batches import DataOrder
from core.worker.control import Controls, StopRequested
from core.worker.evaluate import Evaluator
from core.worker.gradients import WindowGradients, make_accelerator
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
from core.worker.prediction import predict_memory
from core.worker.preparation import prepare
from core.worker.recorder import Recorder
from core.worker.schedule import lr_factor, warmup_steps
from core.worker.update import AdapterUpdate, Update, WeightUpdate

#: Steps without a finite gradient after which a run gives up.
NONFINITE_LIMIT = 5
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
        self.best_step: int | None = None
        self.best_loss = math.inf
        self.last_checkpoint: int | None = None
        self.last_eval: int | None = None
        self._nonfinite = 0

    def train(self, *, resume: bool) -> Outcome:
        """Do the run.

        Args:
            resume: Go on from the newest valid checkpoint.

        Raises:
            StopRequested: If it was stopped; a checkpoint has then been written, if a step was done.
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
        except StopRequested:
            self._stop()
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
            notice=lambda code, message, hint: self.recorder.notice("warning", code, message, hint),
            noise=None if alpha is None else EmbeddingNoise(self.loaded.model, alpha),
            partial=lambda: self.update.partial,
            whole=self.update.in_backward,
            objective=self.objective,
        )
        wanted = self.config.memory.gradient_checkpointing
        self.windows.set_checkpointing(wanted == "on" or (wanted == "auto" and self.loaded.device.type == "cuda"))
        self.attendant = Attendant(self)
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
                check=self.attendant.answer_questions,
                objective=self.held_out_objective,
            )
        self.recorder.update(total_steps=self.total_steps)

    def _make_update(self) -> Update:
        train = self.config.train
        if self.config.method.name not in WEIGHT_METHODS:
            parameters = trainable_parameters(self.loaded.model)
            groups = parameter_groups(self.loaded.model, self.config.method.loraplus_ratio)
            optimizer = self.accelerator.prepare_optimizer(make_optimizer(groups, train))
            return AdapterUpdate(self.accelerator, optimizer, parameters, train.max_grad_norm)
        return WeightUpdate(
            trained_tensors(self.loaded.model),
            lambda parameters: make_optimizer(parameters, train, weight_decay=0.0),
            states_in_fp32=train.optimizer in FP32_STATES,
            weight_decay=train.weight_decay,
            max_grad_norm=train.max_grad_norm,
            in_backward=updates_in_backward(self.config),
        )

    def _rehearse(self) -> None:
        self.controls.check_stop()
        self.recorder.phase("rehearsing")
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
        self.recorder.phase("training", done=self.step, total=self.total_steps)
        self.attendant.attend()
        while self.step < self.total_steps:
            self._optimizer_step()
            if self._due(self.attendant.eval_every) and self.step < self.total_steps:
                self._evaluate()
                self.recorder.phase("training", done=self.step, total=self.total_steps)
            if self._due(self.attendant.checkpoint_every):
                self.save_checkpoint()
            self.attendant.attend()

    def _optimizer_step(self) -> None:
        began = time.monotonic()
        lr = self.attendant.learning_rate * lr_factor(
            self.config.train.scheduler, self.step, self.warmup, self.total_steps
        )
        self.update.begin(lr)
        result = self.windows.run(self.order.window(self.step), where=f"step {self.step + 1}")
        norm = self.update.finish()
        if math.isfinite(norm) and math.isfinite(result.loss):
            self._nonfinite = 0
        else:
            self._note_nonfinite(result.loss, norm)
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
        self.recorder.update(step=self.step)

    def _note_nonfinite(self, loss: float, norm: float) -> None:
        scaler = self.accelerator.scaler
        if scaler is not None and math.isfinite(loss) and scaler.get_scale() > 1.0:
            return  # an overflow of the scaled gradient, which a smaller scale will mend
        self._nonfinite += 1
        where = f"step {self.step + 1}"
        message = f"The gradient of {where} is not finite (loss {loss:g}, norm {norm:g}); the update is skipped."
        self.recorder.notice("warning", "nonfinite", message)
        if self._nonfinite >= NONFINITE_LIMIT:
            raise UserError(
                f"The gradients have not been finite for {NONFINITE_LIMIT} steps, up to {where}.",
                "Lower train.learning_rate, or set train.precision to bf16 or fp32.",
            )

    def _due(self, every: int | None) -> bool:
        return every is not None and self.step % every == 0

    # What the loop calls now and then.

    def _evaluate(self) -> None:
        if self.evaluator is None or self.last_eval == self.step:
            return
        report = self.recorder.reporter("evaluating")
        self.recorder.phase("evaluating", total=len(self.held_out.rows) if self.held_out else None)
        try:
            event, samples = self.evaluator.measure(self.step, report)
        except StopRequested:
            return  # the control point that follows acts on it
        self.last_eval = self.step
        if self.step and event.loss < self.best_loss:
            self.best_step, self.best_loss = self.step, event.loss
        self.recorder.event(event)
        for sample in samples:
            self.recorder.event(sample)
        self._record_memory()

    def save_checkpoint(self) -> None:
        """Write a checkpoint of the present step, unless there is one; old ones are rotated out afterwards.

        A full disk does not end the run: it is paused, to be resumed when there is room.
        """
        if self.last_checkpoint == self.step or self.step == 0:
            return
        began = time.monotonic()
        try:
            checkpoints.check_room(self.run.path, self._checkpoint_size())
            written = checkpoints.save_checkpoint(
                self.run.checkpoints_path,
                model=self.loaded.model,
                optimizer=self.update,
                step=self.step,
                facts=self._facts(),
            )
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
        checkpoints.rotate(self.run.checkpoints_path, self.config.checkpoint.keep, newest=written.path)
        size = sum(facts["bytes"] for facts in written.manifest["files"].values())
        path = str(written.path.relative_to(self.run.path))
        self.recorder.event(CheckpointEvent(step=self.step, path=path, bytes=size, seconds=time.monotonic() - began))

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
            "best": None if self.best_step is None else {"step": self.best_step, "loss": self.best_loss},
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
        if (best := found.manifest["best"]) is not None:
            self.best_step, self.best_loss = int(best["step"]), float(best["loss"])
        self.recorder.update(step=self.step)
        self.recorder.notice("info", "resumed", f"Going on from {found.path.name}.")

    def _stop(self) -> None:
        self.recorder.update(state="stopping")
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
        self._save_final(output)
        self._record_memory()
        return Outcome(self.step, self.best_step, output.name)

    def _checkpoint_size(self) -> int:
        return checkpoints.size_estimate(self.loaded.model, self.config.train.optimizer)

    def _save_final(self, output: Path) -> None:
        def fill(directory: Path) -> None:
            if output == self.run.model_path:
                checkpoints.save_model(self.loaded.model, directory)
            else:
                checkpoints.save_adapter(self.loaded.model, directory)
            self.loaded.tokenizer.save_pretrained(directory)
            if self.template is not None:
                (directory / "chat_template.jinja").write_text(self.template, encoding="utf-8")

        try:
            checkpoints.write_directory(output, fill)
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
            self.recorder.memory("cpu", predicted_bytes=predicted)
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
