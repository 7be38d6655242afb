"""Activation offloading: inputs of checkpointed layers live in pinned host memory between forward and backward.

With activations recomputed, each layer's input is what stays of the forward pass: layers x tokens x features numbers.
Torch's non-reentrant checkpoint keeps it as a saved tensor, so that a pair of saved-tensor hooks around the call of a
layer gets hold of it, and of nothing that the layer, the last norm or the loss saves.

On a GPU :mod:`core.worker.model.activation_mover` makes the copies, beside what is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from core.hardware.drivers import is_wsl
from core.memory.sizes import OFFLOAD_SMALLEST
from core.worker.model.activation_mover import ActivationMover, CudaLanes, Moved


def is_large_activation(tensor: torch.Tensor) -> bool:
    """Whether a saved tensor is worth moving: an activation on a GPU, of a megabyte or more.

    Masks and tables of positions need no gradient, and are the same for many layers; parameters and their views are on
    the device anyway.
    """
    return tensor.is_cuda and tensor.nbytes >= OFFLOAD_SMALLEST and is_activation(tensor)


def is_activation(tensor: torch.Tensor) -> bool:
    """Whether it comes of what is trained, is not itself trained, and holds anything.

    Checkpointing before torch 2.11 saves an empty tensor beside a layer's inputs.
    """
    own = tensor if tensor._base is None else tensor._base
    is_made = tensor.is_floating_point() and tensor.requires_grad and not isinstance(own, torch.nn.Parameter)
    return is_made and tensor.numel() > 0


def cpu_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in memory of the host."""
    return tensor.to("cpu", copy=True)


@dataclass(frozen=True)
class ActivationOffload:
    """Moves layers' inputs away and back.

    Args:
        wanted: Which of the tensors that a layer is called with are moved.
        store: Makes the copy that is kept, without gradient, where nothing moves it.
        mover: Moves it beside what is computed; None for ``store``.
    """

    wanted: Callable[[torch.Tensor], bool] = is_large_activation
    store: Callable[[torch.Tensor], torch.Tensor] = cpu_copy
    mover: ActivationMover | None = field(default=None, compare=False)

    def around(self, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        """A checkpoint function whose saved inputs are moved.

        Args:
            checkpoint: ``torch.utils.checkpoint.checkpoint``, non-reentrant, or a partial of it. What runs inside of it
                has hooks of its own, which come before these.
        """

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                with saved_tensors_hooks(self._pack, self._unpack):
                    return checkpoint(*args, **kwargs)
            finally:
                if self.mover is not None:
                    self.mover.settle()

        return call

    def install(self, model: torch.nn.Module) -> None:
        """Move the inputs of all layers that are recomputed.

        Args:
            model: A ``transformers`` model with activation checkpointing on; turning that on or off again takes this
                away.

        Raises:
            ValueError: If it has no such layer.
        """
        layers: list[Any] = [module for module in model.modules() if hasattr(module, "_gradient_checkpointing_func")]
        if not layers:
            raise ValueError("The model has no layers that are recomputed.")
        for layer in layers:
            layer._gradient_checkpointing_func = self.around(layer._gradient_checkpointing_func)

    def _pack(self, tensor: torch.Tensor) -> Moved | tuple[torch.Tensor, torch.device]:
        # Without the graph that made it, which would hold itself alive.
        plain = tensor.detach()
        if not self.wanted(tensor):
            return plain, tensor.device
        with torch.no_grad():
            return (self.store(plain), tensor.device) if self.mover is None else self.mover.away(plain)

    def _unpack(self, packed: Moved | tuple[torch.Tensor, torch.device]) -> torch.Tensor:
        if isinstance(packed, tuple):
            kept, device = packed
            return kept.to(device)
        if self.mover is None:
            raise ValueError("It was moved by another.")
        with torch.no_grad():
            return self.mover.back(packed)


def available_offload(choice: str, device: torch.device) -> ActivationOffload | None:
    """The way to move activations off a device; None where ``memory.activation_offload`` or the device has none.

    Under WSL 2 memory that cannot be paged is short, so that it must be asked for.
    """
    wanted = choice == "on" or (choice == "auto" and not is_wsl())
    return ActivationOffload(mover=ActivationMover(CudaLanes())) if device.type == "cuda" and wanted else None
