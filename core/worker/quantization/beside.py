"""A measurement beside a run on the same device: it is refused where it would take the run's memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from core.errors import UserError
from core.models.quantized_weights import read_decoded
from core.models.shapes import by_layer
from core.models.tensors import Tensor
from core.runs.control.devices import runs_on_card, runs_on_cpu
from core.units import format_bytes
from core.worker.generate.room import free_bytes

#: Bytes for activations, logits and the code on the device, whatever the model.
_AROUND = 2 << 30


def needed_bytes(tensors: Mapping[str, Tensor], width: int) -> int:
    """Bytes that a measurement takes at most: what is outside the layers, and the largest layer twice, as its parts
    are there beside what they are merged into.

    Args:
        tensors: Of the model's files.
        width: Bytes of an element in 16 or 32 bit.
    """
    layers = [sum(tensor.elements for tensor in layer.values()) for layer in by_layer(tensors).values()]
    outside = sum(tensor.elements for tensor in tensors.values()) - sum(layers)
    return width * (outside + 2 * max(layers, default=0)) + _AROUND


def refuse_beside_run(base: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Check that a measurement fits beside the runs on its device.

    Raises:
        UserError: If a run trains there, and it does not fit.
    """
    needed, free = needed_bytes(read_decoded(base).tensors, dtype.itemsize), free_bytes(device)
    if needed <= free:
        return
    if device.type == "cuda":
        runs = runs_on_card(f"GPU-{getattr(torch.cuda.get_device_properties(device), 'uuid', '')}")
    else:
        runs = runs_on_cpu()
    if runs:
        raise UserError(
            f"Run {runs[0]} trains on the same device, where {format_bytes(free)} are free, and the measurement takes "
            f"up to {format_bytes(needed)}.",
            "Wait until the run is over.",
        )
