"""Strategies: how the processes of a run share the model and the work of a step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from core.config.derived import FP32_STATES, updates_in_backward
from core.config.schema import WEIGHT_METHODS, Config
from core.memory.cards import BUCKET
from core.worker.distributed.orders import Orders
from core.worker.distributed.ranks import Ranks
from core.worker.model.adapters import parameter_groups
from core.worker.model.full_weights import trained_tensors
from core.worker.model.model import LoadedModel, decoder_of, trainable_parameters
from core.worker.model.safetensors_io import read_tensors
from core.worker.oom.retry import Retry
from core.worker.optim.adamw import choose_step
from core.worker.optim.optim import make_optimizer
from core.worker.optim.paged import PagedBuffers
from core.worker.optim.rounding import choose_kernels
from core.worker.optim.update import AdapterUpdate, Update, WeightUpdate
from core.worker.progress.state import TrainState


@dataclass
class Strategy:
    """Replicated training: every process has the whole model and works on its rows; gradients are reduced once a step.
    In a run of one process it does nothing. Other strategies override the methods that differ.

    There is no wrapper around the model, so each process may cut its window, and run it again after memory ran out,
    independently. The recipe makes the same calls in the same order in every process; "together" marks calls that all
    processes must make at the same moment.

    Args:
        orders: Orders of rank 0.
    """

    orders: Orders
    is_sharded = False
    """True if a process has only a shard of the weights, so that a pass needs all processes."""
    fetches_modules = False
    """True if weights exist only while their own module is called, so that layers cannot be fused."""
    gathers = False
    """True if checkpoints gather optimizer states or weights, which needs all processes."""

    @property
    def ranks(self) -> Ranks:
        """The processes."""
        return self.orders.ranks

    def place(self, model: Any) -> None:
        """Shard a model with its adapters, before its layers are fused. Only this process's shard remains on the host.

        Args:
            model: A ``transformers`` model, or a ``PeftModel`` around one.

        Raises:
            UserError: If it has weights that cannot be sharded.
        """

    def prepare(self, model: Any) -> Any:
        """The model for training, once it is placed everywhere. Together if :attr:`is_sharded`."""
        return model

    def begin(self, trained: Mapping[str, torch.Tensor]) -> None:
        """Before the first step: copy the trained tensors of rank 0 to all processes. Together.

        Args:
            trained: Trainable tensors by name.
        """
        if self.ranks.is_single:
            return
        for bucket in _buckets(list(trained.values())):
            flat = _flat([tensor.detach() for tensor in bucket])
            self.ranks.spread(flat)
            with torch.no_grad():
                _put_back(flat, bucket)

    # A step.

    def share(self, window: Sequence[int], costs: Sequence[int]) -> list[int]:
        """The rows of a window that this process works on, with about as many tokens as those of the other processes.

        Args:
            window: Row indices.
            costs: Tokens of each row of the data.
        """
        if self.ranks.is_single:
            return list(window)
        return split_rows(window, costs, self.ranks.count)[self.ranks.rank]

    def passes(self, micro_batches: Sequence[list[int]]) -> Iterator[list[int]]:
        """Micro-batches of this process's rows, one by one. Together if :attr:`is_sharded`."""
        yield from micro_batches

    def failures(self, failed: list[list[int]] | None) -> list[list[int]] | None:
        """End an attempt at a window. Returned micro-batches ran out of memory, and the window must run again: in all
        processes if :attr:`is_sharded` (together), else in this one.

        Args:
            failed: Micro-batches of this process that ran out of memory, or None.

        Returns:
            Failed micro-batches of all processes, or None.
        """
        return failed

    def reduce(self, parameters: Sequence[torch.nn.Parameter], sums: Sequence[float]) -> list[float]:
        """End a window: reduce gradients and numbers over all processes, in one message if all fit into
        :data:`BUCKET`. Together.

        Args:
            parameters: Trainable parameters, in the same order everywhere; some without a gradient.
            sums: Numbers to sum over processes.

        Returns:
            The numbers, summed.
        """
        if self.ranks.is_single:
            return list(sums)
        # A parameter without a gradient in any process keeps none, because the optimizer skips it.
        extra = torch.tensor([*sums, *(float(parameter.grad is not None) for parameter in parameters)])
        extra = extra.to(self.ranks.device)
        gradients = [
            (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).contiguous()
            for parameter in parameters
        ]
        first = True
        for bucket in _buckets(gradients):
            flat = _flat([*bucket, extra] if first else bucket)
            self.ranks.sum(flat)
            if first:
                extra, first = flat[flat.numel() - extra.numel() :].clone(), False
            _put_back(flat, bucket)
        numbers: list[float] = extra.tolist()
        for parameter, gradient, present in zip(parameters, gradients, numbers[len(sums) :], strict=True):
            parameter.grad = gradient if present else None
        return numbers[: len(sums)]

    # Between two steps.

    def leading(self) -> AbstractContextManager[None]:
        """Context in which rank 0 runs the model alone, without gradients, while the others wait; may be nested."""
        return self.orders.leading()

    def lend(self) -> None:
        """In other ranks: take part in a pass of rank 0."""
        raise ValueError("Every process has the whole model.")

    # Trained tensors.

    def trained(self, usual: Mapping[str, torch.nn.Parameter]) -> Mapping[str, torch.nn.Parameter]:
        """The tensors that the optimizer of this process updates.

        Args:
            usual: Trainable tensors by name.
        """
        return usual

    def square_sum(self, value: float) -> float:
        """Sum of a number over processes with different shards. Together if :attr:`is_sharded`."""
        return value

    def own_update(self, model: Any) -> Update | None:  # noqa: ARG002
        """Update of a strategy with its own optimizer; None for the recipe's. Together.

        Args:
            model: The model, ready for training.
        """
        return None

    def whole_update(self, update: WeightUpdate) -> Update:
        """Update whose states are saved and loaded as in a run of one process."""
        return update

    def whole_weights(self, usual: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Trained tensors as in a run of one process, for a checkpoint; in rank 0. Together if :attr:`is_sharded`.

        Args:
            usual: Trainable tensors by name.
        """
        return usual

    def read_weights(self, path: Path, usual: Mapping[str, torch.Tensor]) -> None:
        """Read the trained weights of a checkpoint's file.

        Raises:
            UserError: If it does not fit.
        """
        read_tensors(path, usual)

    def whole_model(self, model: Any) -> dict[str, torch.Tensor] | None:  # noqa: ARG002
        """All weights of a model by name, in rank 0; None if the model has them. Together if :attr:`is_sharded`."""
        return None


def single() -> Strategy:
    """Strategy of a run of one process."""
    return Strategy(Orders(Ranks.single()))


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
        return AdapterUpdate(accelerator, optimizer, parameters, train.max_grad_norm, retry)
    buffers = PagedBuffers()
    trained = strategy.trained(trained_tensors(loaded.model))
    device = next(iter(trained.values())).device
    kernels = choose_kernels(device, warn)

    def make(parameters: list[torch.nn.Parameter]) -> Any:
        return make_optimizer(parameters, train, weight_decay=0.0, buffers=buffers)

    update = WeightUpdate(
        trained,
        make,
        states_in_fp32=train.optimizer in FP32_STATES,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        in_backward=updates_in_backward(config),
        retry=retry,
        kernels=kernels,
        fused_step=None if kernels is None else choose_step(device, make, warn),
        square_sum=strategy.square_sum,
    )
    return strategy.whole_update(update)


@contextlib.contextmanager
def around_passes(
    modules: Sequence[torch.nn.Module], begin: Callable[[], None], end: Callable[[], None]
) -> Iterator[None]:
    """Context that calls ``begin`` before and ``end`` after each forward pass, also of a pass that fails.

    Args:
        modules: The whole model, for answers, and its decoder, for the loss; the outermost one called is the pass.
        begin: Called before each pass.
        end: Called after each pass.
    """
    entered: list[torch.nn.Module] = []

    def enter(module: torch.nn.Module, _inputs: Any) -> None:
        if not entered:
            entered.append(module)
            begin()

    def leave(module: torch.nn.Module, _inputs: Any, _output: Any) -> None:
        if entered == [module]:
            entered.clear()
            end()

    handles = []
    for module in modules:
        handles.append(module.register_forward_pre_hook(enter, prepend=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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


def split_rows(window: Sequence[int], costs: Sequence[int], count: int) -> list[list[int]]:
    """Split the rows of a step among processes.

    Longest first, each row goes to the process with the fewest tokens so far (Graham's rule: at most 4/3 of the optimal
    maximum). It depends only on rows and lengths, so every process computes the same split.

    Args:
        window: Row indices.
        costs: Tokens of each row of the data.
        count: Number of processes.

    Returns:
        Rows of each process, in the order of the window; empty lists if there are fewer rows than processes.
    """
    loads = [0] * count
    owner: dict[int, int] = {}
    for place in sorted(range(len(window)), key=lambda place: (-costs[window[place]], place)):
        lightest = min(range(count), key=lambda rank: (loads[rank], rank))
        owner[place] = lightest
        loads[lightest] += costs[window[place]]
    return [[window[place] for place in range(len(window)) if owner[place] == rank] for rank in range(count)]


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Tensors in order, grouped into buckets of at most :data:`BUCKET` elements; larger ones are split into views. At
    least one bucket."""
    bucket: list[torch.Tensor] = []
    size = 0
    for tensor in (piece for whole in tensors for piece in _pieces(whole)):
        if bucket and size + tensor.numel() > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    yield bucket


def _pieces(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    return [tensor] if tensor.numel() <= BUCKET else torch.split(tensor.detach().view(-1), BUCKET)


def _flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Values of tensors concatenated in fp32."""
    return torch.cat([tensor.reshape(-1).to(torch.float32) for tensor in tensors])


def _put_back(flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    begin = 0
    for tensor in tensors:
        tensor.copy_(flat[begin : begin + tensor.numel()].view_as(tensor))
        begin += tensor.numel()
