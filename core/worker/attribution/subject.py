"""The subject of an attribution: a run's model and rows, and the row gradients at its checkpoints."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import numpy as np
import torch

from core.attribution.job import refuse
from core.config.schema import Config
from core.data.conversation import Example, Message, RowError
from core.directories import Progress
from core.errors import UserError
from core.hardware.cpu import memory
from core.memory.batching import TOKEN_BUDGETS
from core.models.fingerprint import BaseFingerprint
from core.runs.record.store import Run
from core.template.settings import MaskSettings
from core.worker.attribution.gradients import SEED, SIZE, Projection, Sketches, TokenParts, metric_of
from core.worker.attribution.scores import FloatRows
from core.worker.checkpoint.checkpoint import Checkpoint, checkpoint_name, newest_valid, restore, verify_checkpoint
from core.worker.data.batches import collate
from core.worker.data.dataset import TrainedExample
from core.worker.data.encode import Encoder, TokenizedRow, stop_token_ids
from core.worker.distributed.strategy import single
from core.worker.fused.lora import factors_to
from core.worker.generate.generate import generate_batch
from core.worker.loss.loss import SupervisedLoss
from core.worker.model.adapters import parameter_groups, switched_off
from core.worker.model.model import decoder_layers, set_gradient_checkpointing, trainable_parameters
from core.worker.model.support import load_generation_config, resolve_base
from core.worker.oom.retry import NoGradBatches
from core.worker.optim.optim import make_optimizer
from core.worker.optim.paged import load_states
from core.worker.process.control import Controls
from core.worker.process.recorder import Recorder
from core.worker.setup.build import settle_device, with_usable_optimizer
from core.worker.setup.preparation import Prepared, prepare
from core.worker.setup.ready_model import ReadyModel, make_ready

#: First factor of the loss in fp16, whose gradients are too small for it at the end of training; halved until all
#: gradients are finite.
_FP16_SCALE = 2.0**14

#: Share of the free host memory that kept copies of 4-bit weights may take.
_SHARE = 0.5
#: Least length of a gradient, so that a row without one can be divided by it.
_NO_LENGTH = 1e-30

_Receiver = TypeVar("_Receiver", Sketches, TokenParts)


class Subject:
    """A run's model with its rows, at one of its checkpoints at a time.

    Args:
        run: The run.
        config: Its configuration.
        prepared: Its inputs.
        model: Its model, ready for training.
        progress: Called with each stage; may raise to stop.
        fingerprint: Of the base.
        token_budget: Tokens of a batch, padding included; None for that of a training on the device.
    """

    def __init__(
        self,
        run: Run,
        config: Config,
        prepared: Prepared,
        model: ReadyModel,
        progress: Progress,
        fingerprint: BaseFingerprint,
        token_budget: int | None = None,
    ) -> None:
        self.run, self.config, self.prepared, self.progress = run, config, prepared, progress
        self.loaded = model.loaded
        self.examples = prepared.dataset.trained_examples()
        self.checkpoint: Checkpoint | None = None
        self.projection: Projection | None = None
        self._autocast = model.accelerator.autocast
        self._fingerprint = fingerprint
        self._loss = SupervisedLoss(self.loaded.model)
        self._optimizer = make_optimizer(
            parameter_groups(self.loaded.model, config.method.loraplus_ratio), config.train
        )
        budget = token_budget or TOKEN_BUDGETS[self.loaded.device.type]
        self._batches = NoGradBatches(budget, lambda _rows, _now: None, self._refusal)
        _refuse_unfused(model)

    # Checkpoints.

    def restore(self, step: int, *, size: int = SIZE, seed: int = SEED) -> Checkpoint:
        """Take the adapters of a checkpoint, and the metric of its optimizer states.

        Args:
            step: Its step.
            size: Numbers of a sketch.
            seed: Seed of the projection.

        Raises:
            UserError: If it is damaged, or rows or base have changed since.
        """
        self.projection = None
        found = verify_checkpoint(self.run.checkpoints_path / checkpoint_name(step))
        if found.manifest["data_sha256"] != self.prepared.data_fingerprint:
            raise UserError(
                f"The training rows have changed since {found.path.name}, so that no answer can be traced to them.",
                "Put the data files back as they were, or train a new run.",
            )
        if not self._fingerprint.matches(str(found.manifest["base_sha256"])):
            raise UserError(
                f"The base model {self.config.model.base} has changed since {found.path.name}.",
                "Put it back, or train a new run.",
            )
        model = self.loaded.model
        restore(found, model=model, optimizer=SimpleNamespace(load_state_dict=partial(load_states, self._optimizer)))
        self.projection = Projection(metric_of(self._optimizer), size=size, seed=seed)
        # The metric is all that is needed of the states.
        self._optimizer.state.clear()
        model.eval()
        recomputes = bool(found.manifest.get("gradient_checkpointing", False))
        set_gradient_checkpointing(model, recomputes)
        for layer in decoder_layers(model):
            # Layers recompute activations in training only; the modules in them, dropout too, stay in evaluation mode.
            layer.training = recomputes
        self.checkpoint = found
        return found

    # Gradients.

    def sketch(self, examples: Sequence[TrainedExample], progress: Callable[[int], None] = lambda _: None) -> FloatRows:
        """Sketches of the gradients of some examples' summed losses, divided by the lengths of the gradients:
        ``(examples, size)``.

        Args:
            examples: The examples.
            progress: Called with the rows done.
        """
        sums, norms = self._sketch_rows([row for example in examples for row in example.rows], progress)
        found, at = np.zeros((len(examples), sums.shape[1]), dtype=np.float32), 0
        for place, example in enumerate(examples):
            count = len(example.rows)
            total = sums[at : at + count].sum(axis=0)
            # The norm of a single row is known; that of a sum of several is estimated by its sketch.
            found[place] = total / max(float(norms[at] if count == 1 else np.linalg.norm(total)), _NO_LENGTH)
            at += count
        return found

    def sketch_rows(self, rows: Sequence[TokenizedRow]) -> FloatRows:
        """Sketches of the gradients of rows, ``(rows, size)``, of their full length."""
        return self._sketch_rows(rows, lambda _: None)[0]

    def _sketch_rows(
        self, rows: Sequence[TokenizedRow], progress: Callable[[int], None]
    ) -> tuple[FloatRows, FloatRows]:
        """Sketches of rows, and the norms of their gradients."""
        projection = self._ready_projection()
        sums = np.zeros((len(rows), projection.size), dtype=np.float32)
        norms = np.zeros(len(rows), dtype=np.float32)

        def work(batch: list[int]) -> Sketches:
            return self._backward(
                [rows[at] for at in batch], lambda width: Sketches(projection, len(batch), width, self.loaded.device)
            )

        done = 0
        for batch, found in self._batches.run([len(row) for row in rows], work):
            sums[batch], norms[batch] = found.sums.cpu().numpy(), found.squares.cpu().sqrt().numpy()
            done += len(batch)
            progress(done)
        return sums, norms

    def token_parts(self, rows: Sequence[TokenizedRow], direction: FloatRows) -> list[FloatRows]:
        """The dot products of rows' sketches with a direction, split among the tokens: for each row ``(length,)``. The
        part of a token is that of the position that predicts it; a first token has none.

        Args:
            rows: The rows.
            direction: ``(size,)``.
        """
        projection = self._ready_projection()
        on_device = torch.from_numpy(direction).to(self.loaded.device)
        parts: dict[int, FloatRows] = {}

        def work(batch: list[int]) -> TokenParts:
            return self._backward(
                [rows[at] for at in batch], lambda width: TokenParts(projection, on_device, len(batch), width)
            )

        for batch, found in self._batches.run([len(row) for row in rows], work):
            for at, own in zip(batch, found.sums.cpu().numpy(), strict=True):
                parts[at] = np.concatenate([np.zeros(1, dtype=np.float32), own[: len(rows[at]) - 1]])
        return [parts[at] for at in range(len(rows))]

    def _backward(self, rows: Sequence[TokenizedRow], make: Callable[[int], _Receiver]) -> _Receiver:
        """Run a padded batch forward and backward.

        Rows never share a computed prefix here: its gradient would belong to all of them at once.

        Args:
            rows: The rows.
            make: Makes the receiver of the factors, from the width of the batch.

        Raises:
            UserError: If a gradient is not finite.
        """
        ids, supervised = collate(rows, self.loaded.pad_id, self.loaded.device)
        scale = _FP16_SCALE if self.loaded.dtype == torch.float16 else 1.0
        while True:
            receiver = make(ids.shape[1])
            with factors_to(receiver):
                with self._autocast():
                    loss = self._loss(ids, supervised)
                torch.autograd.backward(loss * scale)
            if bool(torch.isfinite(receiver.sums).all()):
                receiver.unscale(scale)
                return receiver
            if scale <= 1:
                raise UserError(
                    f"At step {self.checkpoint.step if self.checkpoint else 0} the gradient of a row is not finite: "
                    "the run has diverged, and its answers cannot be traced to rows.",
                    "Ask an earlier checkpoint, RUN@STEP.",
                )
            scale /= 2

    def _ready_projection(self) -> Projection:
        if self.projection is None:
            raise ValueError("no checkpoint is restored")
        return self.projection

    # Hidden states and answers.

    @torch.no_grad()
    def hidden(self, rows: Sequence[TokenizedRow], progress: Callable[[int], None] = lambda _: None) -> FloatRows:
        """Hidden states of the last layer, mean over the positions that predict supervised tokens: ``(rows, hidden)``.

        Args:
            rows: The rows.
            progress: Called with the rows done.
        """
        found: dict[int, FloatRows] = {}

        def work(batch: list[int]) -> list[FloatRows]:
            ids, supervised = collate([rows[at] for at in batch], self.loaded.pad_id, self.loaded.device)
            with self._autocast():
                states = self._loss.hidden(ids, supervised)
            counts = supervised[:, 1:].sum(dim=1).tolist()
            return [own.float().mean(dim=0).cpu().numpy() for own in torch.split(states, counts)]

        for batch, means in self._batches.run([len(row) for row in rows], work):
            found.update(zip(batch, means, strict=True))
            progress(len(found))
        return np.stack([found[at] for at in range(len(rows))])

    def answer(self, messages: Sequence[Mapping[str, str]], *, base: bool = False) -> str:
        """The likeliest answer to a conversation, of the present checkpoint or of the base.

        Args:
            messages: ``role`` and ``content`` each.
            base: Whether the base answers.
        """
        model = self.loaded.model
        with switched_off(model) if base else contextlib.nullcontext(), self._autocast():
            (found,) = generate_batch(
                model,
                self.loaded.tokenizer,
                [[dict(message) for message in messages]],
                self.config.chat.max_new_tokens,
                lambda _done, _total: self.progress("answering", None, None),
                template=self.prepared.template,
            )
        return found

    def encode(self, messages: Sequence[Mapping[str, str]], answer: str) -> TokenizedRow:
        """A question and an answer as a training row, of which the answer alone is learned.

        Raises:
            UserError: If the chat template cannot render it.
        """
        base, template = self.prepared.base, self.prepared.template
        stops = stop_token_ids(load_generation_config(base), self.prepared.tokenizer, template)
        settings = MaskSettings(str(base), supervise="last", allow_special=True, end_answers=True)
        encoder = Encoder(self.prepared.tokenizer, stops, template, settings=settings, now=self.run.created)
        turns = (*(Message(each["role"], each["content"]) for each in messages), Message("assistant", answer))
        (row,) = encoder.encode([Example(messages=turns)])
        if isinstance(row, RowError):
            raise UserError(f"The question cannot be read as a row: {row.message}", "Ask it another way.")
        return row

    def _refusal(self, _row: int) -> tuple[str, str]:
        return "Memory ran out with the gradient of a single row", "Close other programs that use the device."


def _refuse_unfused(model: ReadyModel) -> None:
    """Refuse adapters whose row gradients the fused function does not see.

    Raises:
        UserError: If there are any.
    """
    seen = {id(parameter) for layer in model.fused.lora for parameter in layer.parameters()}
    unseen = [parameter for parameter in trainable_parameters(model.loaded.model) if id(parameter) not in seen]
    if unseen:
        raise UserError(
            f"{len(unseen)} matrices of the adapters are on layers of a kind whose row gradients are not computed, so "
            "that an answer cannot be traced to rows.",
            "Restrict method.target_modules to linear layers.",
        )


def _keep_dequantized(model: ReadyModel, recorder: Recorder) -> None:
    """Dequantize 4-bit weights once on a CPU with room for it, where it takes longer than the products."""
    loaded = model.loaded
    used, total = memory()
    needed = sum(math.prod(layer.weight.shape) for layer in model.fused.lora) * loaded.dtype.itemsize
    if loaded.device.type == "cpu" and needed < _SHARE * (total - used):
        model.keep_dequantized(recorder)


@contextlib.contextmanager
def opened(run: Run, progress: Progress, token_budget: int | None = None) -> Iterator[Subject]:
    """The subject of a run, at no checkpoint yet.

    Args:
        run: The run, which is over; it is only read.
        progress: Called with each stage; may raise to stop.
        token_budget: As for :class:`Subject`.

    Raises:
        UserError: If its answers cannot be traced to rows, its inputs have changed, or memory is short.
    """
    config = run.config()
    refuse(config)
    config = config.with_options(
        train={"fused_layers": True, "compile": False}, method={"dropout": 0.0, "neftune_alpha": None}
    )
    found, _ = newest_valid(run.checkpoints_path)
    with tempfile.TemporaryDirectory() as work:
        # Templates may write the date of the run, which is in its name.
        copy = Run(Path(work) / run.id)
        copy.path.mkdir()
        recorder, controls = Recorder(copy, keeps=False), Controls()
        settle_device(config, recorder)
        progress("reading the rows", None, None)
        base = resolve_base(config.model.base, progress)
        prepared = prepare(config, base, recorder, lambda: None, run.created, is_resumed=True)
        fingerprint = BaseFingerprint(base)
        progress("loading the model", None, None)
        model = make_ready(config, prepared, recorder, controls, found, single(), host_experts=False)
        fingerprint.settle()
        _keep_dequantized(model, recorder)
        config = with_usable_optimizer(config, model.loaded.device, recorder)
        yield Subject(run, config, prepared, model, progress, fingerprint, token_budget)
