"""Experts in host memory: the 4-bit experts of a mixture that a GPU has no room for, brought in layer by layer.

While the model is loaded, each matrix of experts is quantized on the GPU and copied to the host before the next one, so
that never more than one is there. What stays of it on the GPU are its small tables. Afterwards a :class:`WeightMover`
has the experts of the layer at work and of the next one on the GPU.

A layer asks for its experts when it begins, so that the next ones travel while all of it is computed, and each product
asks again, in backward too. So the experts are right with activations recomputed or kept, in training, evaluation and
answers, and the numbers are those of experts on the GPU, to the last bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.errors import UserError
from core.memory.sizes import Arithmetic
from core.memory.weights import experts_on_host, weight_parts
from core.models.architecture.load import load_architecture
from core.units import format_bytes
from core.worker.model.activation_mover import CudaLanes, Lanes
from core.worker.model.expert_weights import ExpertsParams4bit
from core.worker.model.experts import experts_of, matrix_names
from core.worker.model.weight_mover import HostStore, HostWeights, WeightMover

#: Room beside the weights that a model that answers must have on a GPU: for keys, values and the workspace of products.
_ANSWER_ROOM = 1 << 30


@dataclass(frozen=True)
class _Source:
    """Gives packed weights of the experts of a layer, and the scales of their blocks, in place of the parameter."""

    read: Callable[[], tuple[torch.Tensor, ...]]

    def __deepcopy__(self, memo: dict[int, Any]) -> _Source:
        return self

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        data, absmax = self.read()
        return data, absmax


class ExpertOffload:
    """The experts of one model in host memory.

    Args:
        lanes: Of the device.
        device: The device.
    """

    def __init__(self, lanes: Lanes, device: torch.device) -> None:
        self._lanes = lanes
        self._device = device
        self.store = HostStore(lanes)
        self.mover: WeightMover | None = None
        self._kept: dict[str, HostWeights] = {}

    def take(self, name: str, parameter: ExpertsParams4bit) -> None:
        """Move the weights of a parameter to the host.

        Args:
            name: Its name in the model.
            parameter: The parameter, which keeps its shapes.
        """
        state = parameter.quant_state
        kept = self._kept[name] = self.store.keep([parameter.data, state.absmax])
        state.source = _Source(lambda: tuple(tensor.to(self._device) for tensor in kept.tensors()))
        parameter.data, state.absmax = _stand_in(parameter.data), _stand_in(state.absmax)

    def install(self, model: Any, layers: list[Any]) -> None:
        """Bring the experts in layer by layer from now on.

        Args:
            model: The model of transformers, loaded.
            layers: Its decoder layers in order.

        Raises:
            torch.OutOfMemoryError: If the GPU has no room for the buffers.
        """
        found = [(layer, list(self._parameters_of(model, layer))) for layer in layers]
        found = [(layer, parameters) for layer, parameters in found if parameters]
        if not found:
            return
        weights = [HostWeights.joined([self._kept[name] for name, _ in parameters]) for _, parameters in found]
        mover = self.mover = WeightMover(self._lanes, weights, self._device)
        for number, (layer, parameters) in enumerate(found):
            layer.register_forward_pre_hook(functools.partial(_begin, mover, number))
            for place, (_, parameter) in enumerate(parameters):
                parameter.quant_state.source = _Source(functools.partial(_fetch, mover, number, 2 * place))

    def _parameters_of(self, model: Any, layer: Any) -> Iterator[tuple[str, ExpertsParams4bit]]:
        inside = set(layer.modules())
        for path, module in experts_of(model):
            for matrix in matrix_names(module) if module in inside else ():
                if (name := f"{path}.{matrix}") in self._kept:
                    yield name, getattr(module, matrix)

    def tell(self) -> tuple[str, str]:
        """Where the experts are, in a sentence, and what to do about it where it is slow; else an empty one."""
        size = format_bytes(self.store.bytes)
        if self.store.unpinned:
            return (
                f"{format_bytes(self.store.unpinned)} of {size} of experts are in ordinary memory of the machine, as "
                "no more could be pinned.",
                "Copies to the card take longer; raise the limit of locked memory (ulimit -l) or close other programs.",
            )
        return f"The experts are in {size} of the machine's memory, and are brought to the card layer by layer.", ""


def _stand_in(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape that takes a single element."""
    return tensor.new_zeros(()).expand(tensor.shape)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # copies beside what is computed
def _begin(mover: WeightMover, number: int, *_: Any) -> None:
    """A layer begins; without gradients no backward pass follows."""
    mover.fetch(number, returns=torch.is_grad_enabled())


def _fetch(mover: WeightMover, number: int, place: int) -> tuple[torch.Tensor, ...]:
    return mover.fetch(number, returns=True)[place : place + 2]


def needs_host_experts(base: Path, device: torch.device, width: int, keep: Sequence[str] = ()) -> bool:
    """Whether a 4-bit model that is only to answer has no room for its experts on a GPU.

    Args:
        base: Its directory.
        device: The device.
        width: Bytes of an element of its arithmetic.
        keep: Names and patterns of layers that stay in 16 bit, as ``model.keep_16bit``.
    """
    if device.type != "cuda":
        return False
    try:
        model = load_architecture(base)
    except UserError:
        return False
    how = Arithmetic(width, autocast=True, private_inputs=False, quantized=True, cuda=True)
    free, _ = torch.cuda.mem_get_info(device)
    needed = sum(part.bytes for part in weight_parts(model, how, 0, keep)) + _ANSWER_ROOM
    return bool(experts_on_host(model, keep).layers) and needed > free


def cuda_offload(device: torch.device) -> ExpertOffload | None:
    """Offload of experts from a device; None where it has no memory of its own.

    Args:
        device: The device.
    """
    return ExpertOffload(CudaLanes(), device) if device.type == "cuda" else None
