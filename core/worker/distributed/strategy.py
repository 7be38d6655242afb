"""Strategies: how the processes of a run share the model and the work of a step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator

from core.config.derived import FP32_STATES, updates_in_backward
from core.config.schema import WEIGHT_METHODS, Config
from core.worker.distributed.orders import Orders
from core.worker.distributed.ranks import Ranks
from core.worker.loss.objectives import Objective, Rewards
from core.worker.model.adapters import parameter_groups
from core.worker.model.full_weights import trained_tensors
from core.worker.model.model import LoadedModel, decoder_of, trainable_parameters
from core.worker.oom.retry import Retry
from core.worker.optim.optim import make_optimizer
from core.worker.optim.paged import PagedBuffers
from core.worker.optim.rounding import choose_kernels
from core.worker.optim.update import AdapterUpdate, Update, WeightUpdate
from core.worker.process.rng import own_draws
from core.worker.progress.state import TrainState


class Strategy(Protocol):
    """Strategy, as used by the recipe; the same calls in the same order in every process.

    "Together" marks calls that all processes must make at the same moment.
    """

    @property
    def ranks(self) -> Ranks:
        """The processes."""

    @property
    def orders(self) -> Orders:
        """Orders of rank 0."""

    @property
    def is_sharded(self) -> bool:
        """True if a process has only a shard of the weights, so that a pass needs all processes."""

    @property
    def fetches_modules(self) -> bool:
        """True if weights exist only while their own module is called, so that layers cannot be fused."""

    @property
    def gathers(self) -> bool:
        """True if checkpoints gather optimizer states or weights, which needs all processes."""

    def place(self, model: Any) -> None:
        """Shard a model with its adapters, before its layers are fused. Only this process's shard remains on the host.

        Args:
            model: A ``transformers`` model, or a ``PeftModel`` around one.

        Raises:
            UserError: If it has weights that cannot be sharded.
        """

    def prepare(self, model: Any) -> Any:
        """The model for training, once it is placed everywhere. Together if :attr:`is_sharded`."""

    def begin(self, trained: Mapping[str, torch.Tensor]) -> None:
        """Before the first step: copy the trained tensors of rank 0 to all processes. Together.

        Args:
            trained: Trainable tensors by name.
        """

    def share(self, window: Sequence[int], costs: Sequence[int]) -> list[int]:
        """The rows of a window that this process works on.

        Args:
            window: Row indices.
            costs: Tokens of each row of the data.
        """

    def passes(self, micro_batches: Sequence[list[int]]) -> Iterator[list[int]]:
        """Micro-batches of this process's rows, one by one. Together if :attr:`is_sharded`."""

    def failures(self, failed: list[list[int]] | None) -> list[list[int]] | None:
        """End an attempt at a window. Returned micro-batches ran out of memory, and the window must run again: in all
        processes if :attr:`is_sharded` (together), else in this one.

        Args:
            failed: Micro-batches of this process that ran out of memory, or None.

        Returns:
            Failed micro-batches of all processes, or None.
        """

    def reduce(self, parameters: Sequence[torch.nn.Parameter], sums: Sequence[float]) -> list[float]:
        """End a window: reduce gradients over all processes. Together.

        Args:
            parameters: Trainable parameters, in the same order everywhere; some without a gradient.
            sums: Numbers to sum over processes.

        Returns:
            The numbers, summed.
        """

    def clip(self, parameters: Sequence[torch.nn.Parameter], limit: float) -> float:
        """Clip gradients by their common norm, which is returned."""

    def leading(self) -> AbstractContextManager[None]:
        """Context in which rank 0 runs the model alone, between two steps, while the others wait."""

    def lend(self) -> None:
        """In other ranks: take part in a pass of rank 0."""

    def trained(self, usual: Mapping[str, torch.nn.Parameter]) -> Mapping[str, torch.nn.Parameter]:
        """The tensors that the optimizer of this process updates.

        Args:
            usual: Trainable tensors by name.
        """

    def square_sum(self, value: float) -> float:
        """Sum of a number over processes with different shards. Together if :attr:`is_sharded`."""

    def own_update(self, model: Any) -> Update | None:
        """Update of a strategy with its own optimizer; None for the recipe's. Together.

        Args:
            model: The model, ready for training.
        """

    def whole_update(self, update: WeightUpdate) -> Update:
        """Update whose states are saved and loaded as in a run of one process."""

    def whole_weights(self, usual: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Trained tensors as in a run of one process, for a checkpoint; in rank 0. Together if :attr:`is_sharded`.

        Args:
            usual: Trainable tensors by name.
        """

    def read_weights(self, path: Path, usual: Mapping[str, torch.Tensor]) -> None:
        """Read the trained weights of a checkpoint's file.

        Raises:
            UserError: If it does not fit.
        """

    def whole_model(self, model: Any) -> dict[str, torch.Tensor] | None:
        """All weights of a model by name, in rank 0; None if the model has them. Together if :attr:`is_sharded`."""


def make_update(
    strategy: Strategy,
    config: Config,
    loaded: LoadedModel,
    accelerator: Accelerator,
    state: TrainState,
    warn: Callable[[str, str, str], None],
) -> Update:
    """Update of a run: one optimizer over all adapters, one per tensor of the model's own weights, or the strategy's.
    Together if optimizer states are sharded.

    Args:
        strategy: Of the run.
        config: The configuration, with an optimizer that works on this machine.
        loaded: The model, ready for training.
        accelerator: Of the model.
        state: Of the training.
        warn: Called if memory runs out or kernels cannot be used: ``warn(code, message, hint)``.
    """
    train, retry = config.train, Retry(lambda: f"step {state.step + 1}", warn)
    if (own := strategy.own_update(loaded.model)) is not None:
        return own
    if config.method.name not in WEIGHT_METHODS:
        parameters = trainable_parameters(loaded.model)
        optimizer = make_optimizer(parameter_groups(loaded.model, config.method.loraplus_ratio), train)
        return AdapterUpdate(accelerator, optimizer, parameters, train.max_grad_norm, retry, strategy.clip)
    buffers = PagedBuffers()
    trained = strategy.trained(trained_tensors(loaded.model))
    update = WeightUpdate(
        trained,
        lambda parameters: make_optimizer(parameters, train, weight_decay=0.0, buffers=buffers),
        states_in_fp32=train.optimizer in FP32_STATES,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        in_backward=updates_in_backward(config),
        retry=retry,
        kernels=choose_kernels(next(iter(trained.values())).device, warn),
        square_sum=strategy.square_sum,
    )
    return strategy.whole_update(update)


@contextlib.contextmanager
def share_window(
    strategy: Strategy, window: Sequence[int], costs: Sequence[int], *, seed: int, step: int
) -> Iterator[list[int]]:
    """This process's rows of a window. Inside, random draws differ between processes; afterwards all generators have
    the same state.

    Args:
        strategy: Of the run.
        window: Row indices.
        costs: Tokens of each row of the data.
        seed: Of the run.
        step: Steps done.
    """
    rows = strategy.share(window, costs)
    if strategy.ranks.is_single:
        yield rows
        return
    with own_draws(seed, step, strategy.ranks.rank):
        yield rows


def reduce_window(strategy: Strategy, model: Any, loss: float, objective: Objective) -> tuple[float, Rewards]:
    """Reduce the gradients of a window, its loss and its rewards over all processes. Together.

    Args:
        strategy: Of the run.
        model: The model, with the gradients of this process.
        loss: Loss of this process's rows.
        objective: The objective, with the rewards of these rows.

    Returns:
        Loss and rewards of the whole window.
    """
    if strategy.ranks.is_single:
        return loss, objective.rewards()
    parameters = list(trained_tensors(model).values())
    total, *sums = strategy.reduce(parameters, [loss, *objective.reward_sums()])
    return total, objective.rewards_of(sums)


def token(device: torch.device) -> torch.Tensor:
    """Input of an idle pass, ``(1, 1)``, int64."""
    return torch.zeros((1, 1), dtype=torch.int64, device=device)


def run_token(causal: Any, device: torch.device) -> None:
    """Run an idle pass forward and backward, so that all trainable parameters get zero gradients.

    Args:
        causal: A causal language model of transformers.
        device: Where it runs.
    """
    states = decoder_of(causal)(input_ids=token(device), use_cache=False).last_hidden_state
    head = causal.get_output_embeddings()
    trained = any(parameter.requires_grad for parameter in head.parameters())
    (0.0 * (head(states) if trained else states).float().sum()).backward()
