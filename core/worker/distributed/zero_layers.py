"""A model whose weights are sharded by ZeRO stage 3, and the passes that need all processes.

DeepSpeed gathers the weights of a module when it is called, and drops them afterwards. It gets the decoder layers, and
trained modules outside of them; frozen embeddings, head and norms stay whole in every process, because a pass needs
them from start to end.

Weights that must be whole between passes are pinned: adapters, which are small, and trained weights outside of the
layers, since the head is called within the loss.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import bitsandbytes as bnb
import torch
from peft import PeftModel
from peft.tuners.lora.layer import ParamWrapper

from core.errors import UserError
from core.text import one_line
from core.worker.distributed.strategy import around_passes, token
from core.worker.distributed.zero import is_whole
from core.worker.model.experts import ExpertsParams4bit
from core.worker.model.full_weights import trained_tensors
from core.worker.model.model import decoder_layers, decoder_of, evaluation_mode
from core.worker.oom.retry import is_out_of_memory

#: Communication libraries, by name in their errors.
_LIBRARIES = ("gloo", "nccl")
#: Pseudo module id that keeps a weight in use.
_PIN = -1


class ZeroLayers:
    """The sharded parts of a model.

    Args:
        model: A causal language model of transformers, or a ``PeftModel`` around one; on the host or the device.
        device: Device of this process.

    Raises:
        UserError: If it has weights that cannot be sharded.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        self.device = device
        self._causal = model.get_base_model() if isinstance(model, PeftModel) else model
        self._decoder = decoder_of(self._causal)
        _refuse_experts(self._causal)
        layers = decoder_layers(self._causal)
        inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
        trained = trained_tensors(model).values()
        outside = {id(parameter) for parameter in trained} - inside
        owners = [module for module in self._causal.modules() if _owns(module, outside)]
        self.module = torch.nn.ModuleList([*layers, *owners])
        self.pinned = [one for one in trained if id(one) in outside or isinstance(model, PeftModel)]
        self._order: list[Any] = []
        """Modules called by a pass, in order."""
        self._coordinator: Any = None
        _move_others(self._causal, {id(parameter) for parameter in self.module.parameters()}, device)

    def pin(self) -> None:
        """Gather the pinned weights where necessary, and keep them. Together."""
        missing = [parameter for parameter in self.pinned if not is_whole(parameter)]
        if missing:
            missing[0].all_gather(missing)  # type: ignore[attr-defined]
        for parameter in self.pinned:
            parameter.ds_active_sub_modules.add(_PIN)  # type: ignore[attr-defined]

    def begin(self, coordinator: Any) -> None:
        """Run a first pass, once all processes have sharded the model. Together.

        Args:
            coordinator: DeepSpeed's coordinator, which gathers weights.

        Raises:
            UserError: If the model uses weights outside of their own module's call.
        """
        self._coordinator = coordinator
        self.pin()
        try:
            with self._noting(self._order):
                self.lend()
        except RuntimeError as error:
            first = (str(error).splitlines() or [""])[0]
            if is_out_of_memory(error) or any(library in first.lower() for library in _LIBRARIES):
                raise
            raise UserError(
                f"distributed.zero_stage = 3 cannot share this model out, whose layers use weights from outside of the "
                f"modules that have them ({one_line(first, 120)}).",
                "Set distributed.strategy = fsdp2, which brings whole layers together.",
            ) from error

    @contextlib.contextmanager
    def leading(self, announce: Callable[[], None]) -> Iterator[None]:
        """Context in which this process runs forward passes of its own, without gradients.

        Args:
            announce: Called before each pass, to make all others :meth:`lend`.
        """
        called: list[Any] = []

        def begin() -> None:
            called.clear()
            announce()

        with (
            around_passes((self._causal, self._decoder), begin, lambda: self._complete(len(called))),
            self._noting(called),
        ):
            yield

    @torch.no_grad()
    def lend(self) -> None:
        """Take part in a forward pass of the :meth:`leading` process."""
        # Without dropout, so that nothing is drawn.
        with evaluation_mode(self._causal):
            self._decoder(input_ids=token(self.device), use_cache=False)

    @contextlib.contextmanager
    def _noting(self, called: list[Any]) -> Iterator[None]:
        """Context that records calls of modules with gathered weights. Pinned weights do not count, because answers
        without adapters skip them."""

        def note(module: Any, _inputs: Any) -> None:
            called.append(module)

        pinned = {id(parameter) for parameter in self.pinned}
        fetched = {id(parameter) for parameter in self.module.parameters()} - pinned
        handles = [module.register_forward_pre_hook(note) for module in self.module.modules() if _owns(module, fetched)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _complete(self, called: int) -> None:
        """Complete a forward pass that failed here, for the others.

        Args:
            called: Number of modules called in it.
        """
        if called >= len(self._order):
            return
        if all(is_whole(parameter) for parameter in self._order[called].parameters(recurse=False)):
            called += 1  # its weights were gathered when it failed
        for parameter in self.module.parameters():
            if _PIN not in parameter.ds_active_sub_modules:  # type: ignore[attr-defined]
                parameter.ds_active_sub_modules.clear()  # type: ignore[attr-defined]
                parameter.partition()  # type: ignore[attr-defined]
        for module in self._order[called:]:
            self._coordinator.fetch_sub_module(module, forward=True)
            self._coordinator.release_sub_module(module, forward=True)


def _owns(module: torch.nn.Module, wanted: set[int]) -> bool:
    return any(id(parameter) in wanted for parameter in module.parameters(recurse=False))


def _move_others(causal: Any, shared: set[int], device: torch.device) -> None:
    """Move everything that is not sharded to the device: other weights, buffers, and scales of 4-bit weights."""
    for module in causal.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in shared:
                parameter.data = parameter.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
        if isinstance(module, bnb.nn.Linear4bit):
            module.weight.quant_state.to(device)


def _refuse_experts(causal: Any) -> None:
    if any(isinstance(parameter, ExpertsParams4bit) for parameter in causal.parameters()):
        raise UserError(
            "distributed.zero_stage = 3 cannot share out experts in 4 bits.",
            "Set distributed.zero_stage = 2, or method.name = lora, which has them in 16 bit.",
        )
    if any(isinstance(module, ParamWrapper) for module in causal.modules()):
        raise UserError(
            "distributed.zero_stage = 3 cannot share out experts with adapters, which use their weights from outside.",
            "Set distributed.zero_stage = 2, or method.target_experts = off.",
        )
