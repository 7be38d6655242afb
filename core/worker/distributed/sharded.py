"""A model whose decoder layers are shared out among the processes by FSDP2, ``torch.distributed.fsdp.fully_shard``.

What is shared out: the matrices of the decoder layers, 4-bit ones as they are packed; and, where the model's own
weights are trained, all that is trained, with its gradients and optimizer states. What every process has whole:
adapters, which are small and whose gradients are added up once a step; embeddings, head and norms where they are
frozen, as their memory would have to be there during a whole pass anyway; and the scales of 4-bit weights, a thirtieth
of these.

``fully_shard`` is called directly: accelerate makes DDP of it on a CPU, without a word.

Its collectives are counted, so that a pass that failed on one process can be ended without the others noticing. Every
process issues the same collectives in the same order: the layers' all-gathers and, where they are trained, the
reduce-scatters of their gradients. A process that runs out of memory in the middle of a pass has issued some of them,
and the others wait in the next. It then runs the pass once more with a single token, leaves out as many collectives as
it has issued already, and takes part in the rest.

Source: Zhao et al., PyTorch FSDP (arXiv 2304.11277).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import bitsandbytes as bnb
import torch
import torch.distributed as dist
from peft import PeftModel
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter

from core.errors import UserError
from core.worker.distributed.strategy import run_token, token
from core.worker.model.adapters import INITIAL
from core.worker.model.experts import ExpertsParams4bit
from core.worker.model.model import decoder_layers, decoder_of, evaluation_mode


class Collectives:
    """Counts what a pass has issued.

    Args:
        before: Called before each collective is issued; tests fail there.
    """

    def __init__(self, before: Callable[[int], None] = lambda _: None) -> None:
        self.issued = 0
        self.before = before
        self._left_out = 0

    def begin(self) -> None:
        """Begin a pass."""
        self.issued = self._left_out = 0

    def repeat(self) -> None:
        """Begin the same pass again, in which those that are issued already are left out."""
        self._left_out, self.issued = self.issued, 0

    def take(self) -> bool:
        """Count one; returns whether it is to be issued."""
        if not self._left_out:
            self.before(self.issued)
        wanted = self.issued >= self._left_out
        self.issued += 1
        return wanted

    def install(self, module: FSDPModule) -> None:
        """Count those of a module that is sharded.

        Raises:
            UserError: If this version of torch has no way to.
        """
        if not hasattr(FSDPModule, "reset_iter_state") or not hasattr(FSDPModule, "set_custom_reduce_scatter"):
            raise UserError(
                f"distributed.strategy = fsdp2 needs torch 2.13 or newer, and this is {torch.__version__}.",
                "Upgrade torch, or set distributed.strategy = replicate.",
            )
        module.set_custom_all_gather(_CountedAllGather(self))
        module.set_custom_reduce_scatter(_CountedReduceScatter(self))


class _CountedAllGather(AllGather):
    def __init__(self, collectives: Collectives) -> None:
        self._collectives = collectives
        self._usual = DefaultAllGather()

    def allocate(self, size: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return self._usual.allocate(size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        async_op: bool = False,
    ) -> dist.Work | None:
        return self._usual(output_tensor, input_tensor, group, async_op) if self._collectives.take() else None


class _CountedReduceScatter(ReduceScatter):
    def __init__(self, collectives: Collectives) -> None:
        self._collectives = collectives
        self._usual = DefaultReduceScatter()

    def allocate(self, size: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return self._usual.allocate(size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> dist.Work | None:
        return self._usual(output_tensor, input_tensor, group, op, async_op) if self._collectives.take() else None


class ShardedModel:
    """A model that is shared out, and the passes in which all processes have to take part.

    Args:
        model: A causal language model of transformers, or a ``PeftModel`` around one; on the host or the device.
        mesh: The processes, one dimension.
        device: That of this process.
        offload: Whether what is shared out lives in the machine's memory.

    Raises:
        UserError: If it has weights that cannot be shared out.
    """

    def __init__(
        self,
        model: Any,
        mesh: DeviceMesh,
        device: torch.device,
        *,
        offload: bool = False,
    ) -> None:
        self.model = model
        self.device = device
        self.collectives = Collectives()
        self._causal = model.get_base_model() if isinstance(model, PeftModel) else model
        self._decoder = decoder_of(self._causal)
        _refuse_experts(self._causal)
        _keep_scales(self._causal, device)
        self.trained = {} if isinstance(model, PeftModel) else _trained(model)
        _shard(self._causal, mesh, device, self.collectives, trains=bool(self.trained), offload=offload)
        # As DTensors; a module has them in its attributes only while it is not in use.
        names = dict(model.named_parameters())
        self.trained = {name: names[name] for name in self.trained}
        self._root: FSDPModule = self._causal
        self._forward_collectives = 0

    def begin(self) -> None:
        """Run a first pass, once all processes have shared the model out. Together."""
        with torch.no_grad(), evaluation_mode(self._causal):
            # The module that runs first becomes the root.
            self._causal(input_ids=token(self.device), use_cache=False)
        self.lend()
        self._forward_collectives = self.collectives.issued
        self.release()

    # Passes of training.

    def begin_pass(self) -> None:
        """Begin a forward pass with its backward, once what came before is given back."""
        self.release()
        self.collectives.begin()
        self._root.unshard()

    def release(self) -> None:
        """Give back what a pass has brought together. Passes without gradients leave it, and change which layer is
        fetched early, and so the order of collectives."""
        self._root.reset_iter_state()

    def idle_pass(self) -> None:
        """Take part in a forward and a backward pass of the others, with a token that has no weight."""
        self.begin_pass()
        run_token(self._causal, self.device)

    def end_failed_pass(self) -> None:
        """Take part in what is left of a pass that has failed here. Its gradients are good for nothing, on every
        process."""
        self.release()
        self.collectives.repeat()
        self._root.unshard()
        run_token(self._causal, self.device)

    # Forwards that one process does alone: an evaluation, samples, a chat. The others lend it their shares.

    @contextlib.contextmanager
    def leading(self, announce: Callable[[], None]) -> Iterator[None]:
        """Inside, this process runs forward passes of its own, without gradients.

        Args:
            announce: Called before each of them: tells all others to :meth:`lend`.
        """

        entered: list[Any] = []

        def begin(module: Any, _inputs: Any) -> None:
            # Answers go through the whole model, the loss through the decoder alone.
            if not entered:
                entered.append(module)
                announce()
                self.begin_pass()

        def end(module: Any, _inputs: Any, _output: Any) -> None:
            if entered == [module]:
                entered.clear()
                self._complete()

        handles = []
        for module in (self._causal, self._decoder):
            handles.append(module.register_forward_pre_hook(begin, prepend=True))
            handles.append(module.register_forward_hook(end, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.release()

    @torch.no_grad()
    def lend(self) -> None:
        """Take part in a forward pass of the process that is :meth:`leading`."""
        self.begin_pass()
        # Without dropout: nothing is drawn.
        with evaluation_mode(self._causal):
            self._decoder(input_ids=token(self.device), use_cache=False)

    def _complete(self) -> None:
        """End a forward pass for the others that has failed here."""
        if self.collectives.issued >= self._forward_collectives:
            return
        self.release()
        self.collectives.repeat()
        for module in (self._root, *decoder_layers(self._causal)):
            module.unshard()
            module.reshard()


def _shard(
    causal: Any,
    mesh: DeviceMesh,
    device: torch.device,
    collectives: Collectives,
    *,
    trains: bool,
    offload: bool,
) -> None:
    """Share a model out layer by layer: a layer on the host goes to the device whole, and leaves its share there."""
    whole = set(_kept_whole(causal, trains=trains))
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    policy = CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy()
    # Weights have the dtype of the arithmetic already; sums over processes are in fp32.
    mixed = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    layers = decoder_layers(causal)
    for module in (*layers, causal):
        family = type(module).__module__
        fully_shard(module, mesh=mesh, mp_policy=mixed, offload_policy=policy, ignored_params=whole)
        # The class of a sharded module is one of torch's making; others look for the family's code in its module.
        type(module).__module__ = family
        collectives.install(module)
        # The loss is divided by the weight of the whole window: gradients are added, not averaged.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        module.set_reduce_scatter_unused_params(True, recurse=False)
    # Layers are not run through the model's own forward, which would have one fetched while another computes.
    for layer, following in itertools.pairwise(layers):
        layer.set_modules_to_forward_prefetch([following])


def _kept_whole(causal: Any, *, trains: bool) -> Iterator[torch.nn.Parameter]:
    """Parameters that every process has whole."""
    in_layers = {id(parameter) for layer in decoder_layers(causal) for parameter in layer.parameters()}
    for name, parameter in causal.named_parameters():
        if parameter.requires_grad:
            if not trains:
                yield parameter
        elif parameter.dim() < 2 or id(parameter) not in in_layers or f".{INITIAL}." in name:
            # What was taken out of the base is frozen, and saved with the adapter.
            yield parameter


def _trained(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _keep_scales(causal: Any, device: torch.device) -> None:
    """Hang the scales of 4-bit weights on their layers, where bitsandbytes looks for them as well: a shared-out
    parameter is a plain one when it is brought together."""
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
