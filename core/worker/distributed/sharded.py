"""A model whose decoder layers are sharded over the processes by FSDP2, ``torch.distributed.fsdp.fully_shard``.

Sharded are the matrices of the decoder layers, including packed 4-bit ones, and all trained weights with their
gradients and optimizer states if the model's own weights are trained. Every process keeps whole: adapters, which are
small and reduced once a step; frozen embeddings, head and norms, which a pass needs from start to end anyway; and the
scales of 4-bit weights, a thirtieth of their size.

``fully_shard`` is called directly, because accelerate silently replaces it by DDP on a CPU.

Collectives are counted, so that a pass that failed in one process can be completed without the others noticing. Every
process issues the same collectives in the same order: the layers' all-gathers and, for trained layers, reduce-scatters.
A process that runs out of memory has issued some of them, and the others wait in the next one. It repeats the pass with
a single token, skips the collectives already issued, and takes part in the rest.

Source: Zhao et al., PyTorch FSDP (arXiv 2304.11277).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import bitsandbytes as bnb
import torch
import torch.distributed as dist
from peft import PeftModel
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter

from core.errors import UserError
from core.worker.distributed.strategy import around_passes, run_token, token
from core.worker.model.adapters import INITIAL
from core.worker.model.experts import ExpertsParams4bit
from core.worker.model.model import decoder_layers, decoder_of, evaluation_mode


class Collectives:
    """Counter of the collectives issued by a pass.

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
