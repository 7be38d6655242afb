"""The step of the recipe with the parts that it needs, and no run around it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from core.config.schema import Config, MethodSection
from core.worker.data.dataset import Dataset
from core.worker.data.encode import TokenizedRow
from core.worker.distributed.strategy import single
from core.worker.loss.loss import SupervisedLoss
from core.worker.loss.objectives import Objective, SupervisedObjective
from core.worker.model.activation_offload import ActivationOffload
from core.worker.model.adapters import attach_adapters
from core.worker.model.model import LoadedModel, load_model, make_accelerator, trainable_parameters
from core.worker.optim.update import AdapterUpdate
from core.worker.process.control import Controls
from core.worker.process.governor import Governor, Throttle
from core.worker.progress.health import FiniteCheck
from core.worker.progress.state import BestStep, TrainState
from core.worker.steps import EmbeddingNoise, GradientCheckpointing, MicroBatches, first_budget
from core.worker.train import FinetuneRecipe, Gradients
from tests.core.worker.process.told_recorder import ToldRecorder


def make_state(token_budget: int = 100) -> TrainState:
    """The state of a run that has done nothing."""
    return TrainState(1, token_budget, BestStep(), FiniteCheck(lambda *_: None, []))


def adapted(
    directory: Path, *, std: float = 0.05, seed: int | None = None, precision: str = "fp32", **method: Any
) -> LoadedModel:
    """A tiny model with adapters that do something."""
    loaded = load_model(directory, method="lora", precision=precision, device="cpu")
    model = attach_adapters(loaded.model, MethodSection(**{"rank": 4, **method}), seed=0)
    if seed is not None:
        torch.manual_seed(seed)
    for parameter in trainable_parameters(model):
        torch.nn.init.normal_(parameter, std=std)
    return replace(loaded, model=model)


class NoUpdate(AdapterUpdate):
    """An update that is never made."""

    def __init__(self, *, in_backward: bool) -> None:
        self.in_backward = in_backward


class NoGovernor(Governor):
    """A governor that lets a run go at its full speed."""

    def __init__(self) -> None:
        self.throttle, self.pause, self._wants_checkpoint = Throttle(Controls()), None, False


class Stepper:
    """Gradients of windows, as the recipe makes them.

    Args:
        loaded: The model.
        loss: Of the model.
        rows: The training rows.
        objective: Objective; the supervised tokens by default.
        noise: On the embeddings; None for none.
        offload: Offloads the inputs of recomputed layers; None if unavailable.
        whole: Whether a window must be one micro-batch.
        notice: Receives notices; None to keep their codes in :attr:`notices`.
        options: As for :class:`MicroBatches`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        loss: SupervisedLoss,
        rows: Sequence[TokenizedRow],
        *,
        objective: Objective | None = None,
        noise: EmbeddingNoise | None = None,
        offload: ActivationOffload | None = None,
        whole: bool = False,
        notice: Callable[[str, str, str], None] | None = None,
        **options: Any,
    ) -> None:
        self.model, self.notices = loaded.model, list[str]()
        objective = objective or SupervisedObjective(loss, rows)
        self.state = make_state(first_budget(loaded.device, whole=whole))
        self.checkpointing = GradientCheckpointing(loaded.model, self.state, offload)
        self.micro_batches = MicroBatches(
            loaded,
            loss,
            [row.longest for row in rows],
            objective,
            self.state,
            self.checkpointing,
            max_rows=None,
            notice=notice or (lambda code, *_: self.notices.append(code)),
            whole=whole,
            **options,
        )
        # The parts of a run that gradients need; each is real, or a subclass of the real one.
        parts: Any = SimpleNamespace(
            loaded=loaded,
            dataset=Dataset(rows=list(rows)),
            state=self.state,
            objective=objective,
            noise=noise or EmbeddingNoise(loaded.model, None),
            accelerator=make_accelerator(loaded),
            update=NoUpdate(in_backward=whole),
            governor=NoGovernor(),
            strategy=single(),
        )
        # No gradient depends on an option.
        config = Config.model_validate({"data": {"train": "rows.jsonl"}})
        self.recipe = FinetuneRecipe(config, ToldRecorder(), Controls(), parts)

    def run(self, window: Sequence[int], *, where: str = "step 1") -> Gradients:
        """The gradients of a window, cut finer until it fits."""
        for attempt in self.micro_batches.attempts(window, where=where):
            with attempt:
                result = self.recipe.accumulate(attempt.micro_batches)
        return replace(result, rewards=self.recipe.parts.objective.rewards())

    def gradient(self) -> torch.Tensor:
        """All gradients in one row."""
        grads = [parameter.grad for parameter in trainable_parameters(self.model)]
        return torch.cat([grad.flatten() for grad in grads if grad is not None])

    def run_anew(self, window: Sequence[int]) -> tuple[float, torch.Tensor]:
        """Loss and gradient of a window, without the gradients of earlier ones."""
        self.model.zero_grad()
        return self.run(window).loss, self.gradient()

    def rehearse(self, batch_size: int) -> tuple[int, int]:
        """Rows and length of the largest micro-batch that fits."""
        return self.micro_batches.rehearse(batch_size, self.recipe.accumulate)


class FailingLoss(SupervisedLoss):
    """Raises torch's own out-of-memory error at chosen calls, or for every batch beyond so many tokens."""

    def __init__(self, model: Any, fail_at: Collection[int], max_tokens: int = 10_000) -> None:
        super().__init__(model)
        self.calls, self.fail_at, self.max_tokens, self.sizes = 0, fail_at, max_tokens, list[int]()

    def hidden(self, input_ids: torch.Tensor, supervised: torch.Tensor, **options: Any) -> torch.Tensor:
        self.calls += 1
        if self.calls in self.fail_at or input_ids.numel() > self.max_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.sizes.append(input_ids.numel())
        return super().hidden(input_ids, supervised, **options)
