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
    """A strategy as the recipe uses it; the same calls in the same order in every process.

    Where a call has to be made by all of them at the same moment, it says "together".
    """

    @property
    def ranks(self) -> Ranks:
        """The processes."""

    @property
    def orders(self) -> Orders:
        """Orders of the first process to the others."""

    @property
    def is_sharded(self) -> bool:
        """True if a process has a share of the weights only, so that a pass of the model needs all of them."""

    @property
    def fetches_modules(self) -> bool:
        """True if weights are there only while their own module is called, so that layers cannot be fused."""

    @property
    def gathers(self) -> bool:
        """True if optimizer states, or weights, are brought together for a checkpoint, which needs all processes."""

    def place(self, model: Any) -> None:
        """Share a model out: its adapters are attached, its layers are not fused yet. On the host it has been until now
        only this process's share is left.

        Args:
            model: A ``transformers`` model, or a ``PeftModel`` around one.

        Raises:
            UserError: If it has weights that cannot be shared out.
        """

    def prepare(self, model: Any) -> Any:
        """The model as it is trained, once it is placed everywhere. Together where :attr:`is_sharded`."""

    def begin(self, trained: Mapping[str, torch.Tensor]) -> None:
        """Before the first step: what is trained becomes that of the first process in all of them. Together.

        Args:
            trained: What is trained, by name.
        """

    def share(self, window: Sequence[int], costs: Sequence[int]) -> list[int]:
        """The rows of a window that this process works on.

        Args:
            window: Row indices.
            costs: Tokens of each row of the data.
        """

    def passes(self, micro_batches: Sequence[list[int]]) -> Iterator[list[int]]:
        """The micro-batches of this process's rows, one by one. Together where :attr:`is_sharded`."""

    def failures(self, failed: list[list[int]] | None) -> list[list[int]] | None:
        """The end of an attempt at a window: the micro-batches of one for which there was no memory, so that it is to
        be run again: by all together where :attr:`is_sharded`, else by each process for itself.

        Args:
            failed: Those of this process; None where there was memory.

        Returns:
            Those of all processes that had none; None where all had.
        """

    def reduce(self, parameters: Sequence[torch.nn.Parameter], sums: Sequence[float]) -> list[float]:
        """The end of a window: gradients become their sum over all processes. Together.

        Args:
            parameters: What is trained, in the same order everywhere; some without a gradient.
            sums: Numbers of this process.

        Returns:
            The numbers, summed.
        """

    def clip(self, parameters: Sequence[torch.nn.Parameter], limit: float) -> float:
        """Clip gradients by the norm of all of them; returns it."""

    def leading(self) -> AbstractContextManager[None]:
        """A context in which the first process runs the model alone, between two steps, while the others wait."""

    def lend(self) -> None:
        """In another process: take part in a pass that the first one does alone."""

    def trained(self, usual: Mapping[str, torch.nn.Parameter]) -> Mapping[str, torch.nn.Parameter]:
        """The tensors that the optimizer of this process updates.

        Args:
            usual: What is trained, by name.
        """

    def square_sum(self, value: float) -> float:
        """The sum of a number over processes that update different things. Together where :attr:`is_sharded`."""

    def own_update(self, model: Any) -> Update | None:
        """The update of a strategy that has an optimizer of its own; None where the recipe's is used. Together.

        Args:
            model: The model, ready to be trained.
        """

    def whole_update(self, update: WeightUpdate) -> Update:
        """An update whose states are saved and loaded as those of a run of one process."""

    def whole_weights(self, usual: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Trained tensors as in a run of one process, for a checkpoint; in the first process. Together where
        :attr:`is_sharded`.

        Args:
            usual: What is trained, by name.
        """

    def read_weights(self, path: Path, usual: Mapping[str, torch.Tensor]) -> None:
        """Read what is trained from a checkpoint's file.

        Raises:
            UserError: If it does not fit.
        """

    def whole_model(self, model: Any) -> dict[str, torch.Tensor] | None:
        """All weights of a model, by name, in the first process; None where the model has them. Together where
        :attr:`is_sharded`."""


def make_update(
    strategy: Strategy,
    config: Config,
    loaded: LoadedModel,
    accelerator: Accelerator,
    state: TrainState,
    warn: Callable[[str, str, str], None],
) -> Update:
    """The update of a run: one optimizer over all adapters, one for each tensor of the model's own weights, or that of
    the strategy. Together where it shares optimizer states out.

    Args:
        strategy: Of the run.
        config: With the optimizer that this machine can use.
        loaded: The model, ready to be trained.
        accelerator: Of the model.
        state: Of the training.
        warn: Called where memory runs out, and where kernels cannot be used: ``warn(code, message, hint)``.
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
    """The rows of a window that this process works on. Inside, the random draws of several processes differ; afterwards
    all of them, and the checkpoints, have the same state of the generators.

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
    """Sum the gradients of a window, its loss and its rewards over all processes. Together.

    Args:
        strategy: Of the run.
        model: The model, with the gradients of this process.
        loss: The loss of this process's rows.
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
    """The token, ``(1, 1)``."""
    return torch.zeros((1, 1), dtype=torch.int64, device=device)


def run_token(causal: Any, device: torch.device) -> None:
    """Run it forward and backward: the gradients of all that is trained are zero, and there.

    Args:
        causal: A causal language model of transformers.
        device: Where it runs.
    """
    states = decoder_of(causal)(input_ids=token(device), use_cache=False).last_hidden_state
    head = causal.get_output_embeddings()
    trained = any(parameter.requires_grad for parameter in head.parameters())
    (0.0 * (head(states) if trained else states).float().sum()).backward()
