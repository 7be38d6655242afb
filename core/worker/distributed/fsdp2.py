"""The strategy ``fsdp2``: weights are sharded over the processes, and each process works on its rows.

A forward pass needs all processes, because each has a shard of every layer. In a step they cut their rows into equally
many micro-batches, filling up with idle passes of a single token. If one runs out of memory, an idle pass completes its
failed one, and all run the window again. Between steps rank 0 runs the model alone for evaluations and answers, and
announces each pass so that the others contribute their shards.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
import torch.distributed as dist
from peft import PeftModel
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter
from torch.distributed.tensor import DTensor

from core.errors import UserError
from core.worker.distributed.strategy import Strategy, around_passes, run_token, token
from core.worker.model.adapters import INITIAL
from core.worker.model.experts import ExpertsParams4bit
from core.worker.model.model import decoder_layers, decoder_of, evaluation_mode
from core.worker.model.safetensors_io import read_tensors
from core.worker.oom.retry import release
from core.worker.optim.update import Update, WeightUpdate

# A model whose decoder layers are sharded over the processes by FSDP2.


class Collectives:
    """Counter of the collectives issued by a pass, so that one that failed in a process can be completed without the
    others noticing.

    Every process issues the same collectives in the same order: the layers' all-gathers and, for trained layers,
    reduce-scatters. A process that runs out of memory has issued some of them, and the others wait in the next one. It
    repeats the pass with a single token, skips the collectives already issued, and takes part in the rest.

    Args:
        before: Called before each collective is issued; tests inject failures there.
    """

    def __init__(self, before: Callable[[int], None] = lambda _: None) -> None:
        self.issued = 0
        self.before = before
        self._left_out = 0

    def begin(self) -> None:
        """Begin a pass."""
        self.issued = self._left_out = 0

    def repeat(self) -> None:
        """Begin the same pass again, skipping the collectives already issued."""
        self._left_out, self.issued = self.issued, 0

    def take(self) -> bool:
        """Count a collective; returns True if it should be issued."""
        if not self._left_out:
            self.before(self.issued)
        wanted = self.issued >= self._left_out
        self.issued += 1
        return wanted

    def install(self, module: FSDPModule) -> None:
        """Count the collectives of a sharded module.

        Raises:
            UserError: If this version of torch does not support it.
        """
        if not hasattr(FSDPModule, "reset_iter_state") or not hasattr(FSDPModule, "set_custom_reduce_scatter"):
            raise UserError(
                f"distributed.strategy = fsdp2 needs torch 2.13 or newer, and this is {torch.__version__}.",
                "Upgrade torch, or set distributed.strategy = replicate.",
            )
        gather, scatter = _Counted(self, DefaultAllGather()), _Counted(self, DefaultReduceScatter())
        module.set_custom_all_gather(gather)  # type: ignore[arg-type]
        module.set_custom_reduce_scatter(scatter)  # type: ignore[arg-type]


class _Counted:
    """A collective of FSDP that is counted, and left out where it was issued already."""

    def __init__(self, collectives: Collectives, usual: Any) -> None:
        self._collectives = collectives
        self._usual = usual
        self.allocate = usual.allocate

    def __call__(self, *args: Any, **options: Any) -> dist.Work | None:
        return self._usual(*args, **options) if self._collectives.take() else None


class ShardedModel:
    """A sharded model, and the passes that need all processes.

    Sharded are the matrices of the decoder layers, including packed 4-bit ones, and all trained weights with their
    gradients and optimizer states if the model's own weights are trained. Every process keeps whole: adapters, which
    are small and reduced once a step; frozen embeddings, head and norms, which a pass needs from start to end anyway;
    and the scales of 4-bit weights, a thirtieth of their size.

    ``fully_shard`` is called directly, because accelerate silently replaces it by DDP on a CPU. Source: Zhao et al.,
    PyTorch FSDP (arXiv 2304.11277).

    Args:
        model: A causal language model of transformers, or a ``PeftModel`` around one; on the host or the device.
        mesh: The processes, one dimension.
        device: Device of this process.
        offload: Keep shards in host memory.

    Raises:
        UserError: If it has weights that cannot be sharded.
    """

    def __init__(self, model: Any, mesh: DeviceMesh, device: torch.device, *, offload: bool = False) -> None:
        self.model = model
        self.device = device
        self.collectives = Collectives()
        self._causal = model.get_base_model() if isinstance(model, PeftModel) else model
        self._decoder = decoder_of(self._causal)
        _refuse_experts(self._causal)
        _keep_scales(self._causal, device)
        named = {} if isinstance(model, PeftModel) else dict(model.named_parameters())
        self.trained = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        _shard(self._causal, mesh, device, self.collectives, trains=bool(self.trained), offload=offload)
        # As DTensors, which a module only exposes while it is not in use.
        names = dict(model.named_parameters())
        self.trained = {name: names[name] for name in self.trained}
        self._root: FSDPModule = self._causal
        self._forward_collectives = 0

    def begin(self) -> None:
        """Run a first pass, once all processes have sharded the model. Together."""
        with torch.no_grad(), evaluation_mode(self._causal):
            # The first module to run becomes the root.
            self._causal(input_ids=token(self.device), use_cache=False)
        self.lend()
        self._forward_collectives = self.collectives.issued
        self.release()

    # Passes of training.

    def begin_pass(self) -> None:
        """Begin a forward pass with its backward, after releasing the previous one."""
        self.release()
        self.collectives.begin()
        self._root.unshard()

    def release(self) -> None:
        """Release the weights gathered by a pass. Passes without gradients keep them, and change which layer is
        prefetched, and so the order of collectives."""
        self._root.reset_iter_state()

    def idle_pass(self) -> None:
        """Take part in a forward and backward pass of the others, with a token of zero weight."""
        self.begin_pass()
        run_token(self._causal, self.device)

    def end_failed_pass(self) -> None:
        """Complete a pass that failed here. Its gradients are invalid in every process."""
        self.release()
        self.collectives.repeat()
        self._root.unshard()
        run_token(self._causal, self.device)

    # Forward passes of one process alone (evaluation, samples, chat), to which the others contribute shards.

    @contextlib.contextmanager
    def leading(self, announce: Callable[[], None]) -> Iterator[None]:
        """Context in which this process runs forward passes of its own, without gradients.

        Args:
            announce: Called before each pass, to make all others :meth:`lend`.
        """

        def begin() -> None:
            announce()
            self.begin_pass()

        try:
            with around_passes((self._causal, self._decoder), begin, self._complete):
                yield
        finally:
            self.release()

    @torch.no_grad()
    def lend(self) -> None:
        """Take part in a forward pass of the :meth:`leading` process."""
        self.begin_pass()
        # Without dropout, so that nothing is drawn.
        with evaluation_mode(self._causal):
            self._decoder(input_ids=token(self.device), use_cache=False)

    def _complete(self) -> None:
        """Complete a forward pass that failed here, for the others."""
        if self.collectives.issued >= self._forward_collectives:
            return
        self.release()
        self.collectives.repeat()
        for module in (self._root, *decoder_layers(self._causal)):
            module.unshard()
            module.reshard()


def _shard(
    causal: Any, mesh: DeviceMesh, device: torch.device, collectives: Collectives, *, trains: bool, offload: bool
) -> None:
    """Shard a model layer by layer: a layer on the host moves to the device whole, and only its shard stays there."""
    whole = set(_kept_whole(causal, trains=trains))
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    policy = CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy()
    # Weights already have the compute dtype; reductions are in fp32.
    mixed = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    layers = decoder_layers(causal)
    for module in (*layers, causal):
        family = type(module).__module__
        fully_shard(module, mesh=mesh, mp_policy=mixed, offload_policy=policy, ignored_params=whole)
        # fully_shard replaces the class; other code looks up the family's code by its module.
        type(module).__module__ = family
        collectives.install(module)
        # The loss is divided by the weight of the whole window, so gradients are added, not averaged.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        module.set_reduce_scatter_unused_params(True, recurse=False)
    # Prefetching is explicit, because layers are not run through the model's own forward.
    for layer, following in itertools.pairwise(layers):
        layer.set_modules_to_forward_prefetch([following])


def _kept_whole(causal: Any, *, trains: bool) -> Iterator[torch.nn.Parameter]:
    """Parameters that every process keeps whole."""
    in_layers = {id(parameter) for layer in decoder_layers(causal) for parameter in layer.parameters()}
    for name, parameter in causal.named_parameters():
        if parameter.requires_grad:
            if not trains:
                yield parameter
        elif parameter.dim() < 2 or id(parameter) not in in_layers or f".{INITIAL}." in name:
            # Initial adapter weights, taken out of the base, are frozen and saved with the adapter.
            yield parameter


def _keep_scales(causal: Any, device: torch.device) -> None:
    """Attach the scales of 4-bit weights to their layers, where bitsandbytes also looks for them: a gathered parameter
    is a plain one."""
    for module in causal.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.quant_state = module.weight.quant_state
            module.quant_state.to(device)


def _refuse_experts(causal: Any) -> None:
    if any(isinstance(parameter, ExpertsParams4bit) for parameter in causal.parameters()):
        raise UserError(
            "distributed.strategy = fsdp2 cannot share out experts in 4 bits.",
            "Set distributed.strategy = replicate, or method.name = lora, which has them in 16 bit.",
        )


# Shards of trained tensors. FSDP2 splits a tensor along its first dimension into equal parts, one per process; the
# last ones may have fewer rows or none.


class Shards:
    """This process's shards of trained tensors, as plain parameters for any optimizer.

    Args:
        trained: FSDP2's parameters by name.
    """

    def __init__(self, trained: Mapping[str, Any]) -> None:
        self._trained = dict(trained)
        self.parameters = {
            name: torch.nn.Parameter(parameter.to_local().detach()) for name, parameter in self._trained.items()
        }

    def take_gradients(self) -> None:
        """Move the gradients of a window, reduced by FSDP2, to the parameters."""
        for name, parameter in self._trained.items():
            gradient, parameter.grad = parameter.grad, None
            self.parameters[name].grad = None if gradient is None else gradient.to_local()

    def rows(self, name: str) -> int:
        """Number of rows of the whole tensor."""
        return int(self._trained[name].shape[0])

    def gather(self, name: str, local: torch.Tensor) -> torch.Tensor | None:
        """A whole tensor, on the host of rank 0; None elsewhere.

        Args:
            name: Name of the sharded parameter.
            local: This process's rows of the parameter, or of its optimizer state.
        """
        return gather_rows(local, self.rows(name))

    def weights(self) -> dict[str, torch.Tensor]:
        """All trained tensors, whole, on the host of rank 0; empty elsewhere. Together."""
        found = {name: self.gather(name, parameter.detach()) for name, parameter in self.parameters.items()}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def own_rows(self, name: str) -> slice:
        """The rows of a tensor that belong to this process."""
        return own_rows(self.rows(name))


@dataclass
class ShardedUpdate:
    """Update of shards, whose states are saved and loaded whole.

    Args:
        update: Updates the shards, with one optimizer per name.
        shards: The shares.
    """

    in_backward = False
    partial = False

    update: Update
    shards: Shards

    def __post_init__(self) -> None:
        update = self.update
        self.begin, self.step, self.rehearsal = update.begin, update.step, update.rehearsal

    def clip(self) -> float:
        """Clip by the gradient norm over all processes, which is returned. Together."""
        self.shards.take_gradients()
        return self.update.clip()

    def drop(self) -> None:
        """Drop the gradients, including those not taken yet."""
        self.shards.take_gradients()
        self.update.drop()

    def state_dict(self) -> dict[str, Any]:
        """Optimizer states of every whole tensor by name, in rank 0; empty elsewhere. Together."""
        found = {name: self._gathered(name, state) for name, state in self.update.state_dict().items()}
        return found if dist.get_rank() == 0 else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore this process's rows of :meth:`state_dict`."""
        self.update.load_state_dict({name: self._cut(name, saved) for name, saved in state.items()})

    def _gathered(self, name: str, state: dict[str, Any]) -> dict[str, Any]:
        shape = self.shards.parameters[name].shape

        def whole(value: Any) -> Any:
            is_cut = isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape == shape
            return self.shards.gather(name, value) if is_cut else value

        return {**state, "state": {at: _mapped(values, whole) for at, values in state["state"].items()}}

    def _cut(self, name: str, state: dict[str, Any]) -> dict[str, Any]:
        rows = self.shards.rows(name)

        def part(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            # Copied, because loaded tensors may be memory-mapped.
            return (value[own_rows(rows)] if value.dim() and len(value) == rows else value).clone()

        return {**state, "state": {at: _mapped(values, part) for at, values in state["state"].items()}}


def _mapped(values: dict[str, Any], change: Any) -> dict[str, Any]:
    return {key: change(value) for key, value in values.items()}


def own_rows(rows: int) -> slice:
    """The rows of a tensor that belong to this process."""
    share = -(-rows // dist.get_world_size())
    begin = min(rows, dist.get_rank() * share)
    return slice(begin, min(rows, begin + share))


@torch.no_grad()
def gather_rows(local: torch.Tensor, rows: int) -> torch.Tensor | None:
    """A whole tensor, on the host of rank 0; None elsewhere. Together.

    Args:
        local: This process's rows, see :func:`own_rows`.
        rows: Number of rows of the whole tensor.
    """
    count, rank = dist.get_world_size(), dist.get_rank()
    share = -(-rows // count)
    # Shorter shards are padded; the padding is cut off below.
    sent = torch.zeros((share, *local.shape[1:]), dtype=local.dtype)
    sent[: len(local)].copy_(local)
    # As bytes, because gloo does not support every dtype.
    flat = sent.view(-1).view(torch.uint8)
    if rank:
        dist.gather(flat, None, 0)
        return None
    whole = torch.empty((count * share, *local.shape[1:]), dtype=local.dtype)
    dist.gather(flat, list(whole.view(-1).view(torch.uint8).chunk(count)), 0)
    return whole[:rows]


def whole_state(model: Any) -> dict[str, torch.Tensor]:
    """All parameters of a model, whole, on the host of rank 0; empty elsewhere. Together, with no layer in use."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            whole = gather_rows(parameter.to_local().detach(), int(parameter.shape[0]))
        else:
            whole = parameter.detach().cpu() if dist.get_rank() == 0 else None
        if whole is not None:
            found[name] = whole
    return found


@dataclass
class Fsdp2(Strategy):
    """Weights sharded by ``torch.distributed.fsdp.fully_shard``.

    Args:
        offload: Keep shards in host memory.
    """

    offload: bool = False
    is_sharded = True
    gathers = True
    sharded: ShardedModel = field(init=False)
    """The sharded model, once it is placed."""
    _shards: Shards | None = field(default=None, init=False)
    _passes: int = field(default=0, init=False)
    """Remaining passes of the current window, including the current one."""

    def place(self, model: Any) -> None:
        """Shard the model layer by layer. Local."""
        mesh = init_device_mesh(self.ranks.device.type, (self.ranks.count,))
        self.sharded = ShardedModel(model, mesh, self.ranks.device, offload=self.offload)

    def prepare(self, model: Any) -> Any:
        """Run the first pass through the model. Together."""
        self.sharded.begin()
        if self.sharded.trained:
            self._shards = Shards(self.sharded.trained)
        return model

    def begin(self, trained: Mapping[str, torch.Tensor]) -> None:
        """Copy the adapters of rank 0; full weights were read by each process and are equal."""
        if self._shards is None:
            super().begin(trained)

    # A step.

    def passes(self, micro_batches: Sequence[list[int]]) -> Iterator[list[int]]:
        """Micro-batches of this process, plus idle passes if other processes have more. Together."""
        self._passes = self.ranks.largest(len(micro_batches))
        for number in range(self._passes):
            if number < len(micro_batches):
                self.sharded.begin_pass()
                yield micro_batches[number]
            else:
                self.sharded.idle_pass()
            self._passes -= 1

    def failures(self, failed: list[list[int]] | None) -> list[list[int]] | None:
        """Failed micro-batches of all processes, once each has finished all passes of the window. Together."""
        if failed is not None and self._passes:
            release()
            self.sharded.end_failed_pass()
            for _ in range(self._passes - 1):
                self.sharded.idle_pass()
        self._passes = 0
        self.sharded.release()
        (any_failed,) = self.ranks.any([failed is not None])
        return self._gathered(failed or []) if any_failed else None

    def _gathered(self, batches: list[list[int]]) -> list[list[int]]:
        """Micro-batches of all processes."""
        # Rows in sequence, counted from 1; zero ends a batch.
        sent = [number for batch in batches for number in (*(row + 1 for row in batch), 0)]
        numbers = torch.zeros((self.ranks.count, self.ranks.largest(len(sent))), dtype=torch.int64)
        numbers[self.ranks.rank, : len(sent)] = torch.tensor(sent, dtype=torch.int64)
        self.ranks.sum(numbers)
        found: list[list[int]] = [[]]
        for number in numbers.flatten().tolist():
            if number:
                found[-1].append(number - 1)
            elif found[-1]:
                found.append([])
        return [batch for batch in found if batch]

    def reduce(self, parameters: Sequence[torch.nn.Parameter], sums: Sequence[float]) -> list[float]:
        """As :meth:`Strategy.reduce`; gradients of sharded tensors are reduced already."""
        return super().reduce(parameters if self._shards is None else [], sums)

    # Between two steps.

    def leading(self) -> AbstractContextManager[None]:
        """Context in which rank 0 runs the model alone, without gradients; may be nested."""
        return self.orders.leading(self.sharded.leading)

    def lend(self) -> None:
        """In other ranks: take part in a pass of rank 0."""
        self.sharded.lend()

    # Trained tensors.

    def trained(self, usual: Mapping[str, torch.nn.Parameter]) -> Mapping[str, torch.nn.Parameter]:
        """The shards, or the adapters."""
        return usual if self._shards is None else self._shards.parameters

    def square_sum(self, value: float) -> float:
        """Sum of a number over all processes. Together."""
        sums = torch.tensor([value], dtype=torch.float64)
        self.ranks.sum(sums)
        return float(sums)

    def whole_update(self, update: WeightUpdate) -> Update:
        """Update whose states are saved and loaded whole."""
        return update if self._shards is None else ShardedUpdate(update, self._shards)

    def whole_weights(self, usual: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Whole trained tensors; only in rank 0 if they are sharded. Together."""
        return usual if self._shards is None else self._shards.weights()

    def read_weights(self, path: Path, usual: Mapping[str, torch.Tensor]) -> None:
        """Read this process's rows of each tensor."""
        if self._shards is None:
            read_tensors(path, usual)
        else:
            read_tensors(path, self._shards.parameters, rows=self._shards.own_rows)

    def whole_model(self, model: Any) -> dict[str, torch.Tensor] | None:
        """All weights of the model, on the host of rank 0. Together."""
        self.sharded.release()
        return whole_state(model)
