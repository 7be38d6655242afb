"""Job that measures the cost of four bits; refused beside a run on the same device where memory is short."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from core.config.schema import Config
from core.config.targets import kept_patterns
from core.errors import UserError
from core.jobs.process import Answers
from core.memory.batching import TOKEN_BUDGETS
from core.models.check import by_layer
from core.models.tensors import Tensor, read_decoded
from core.units import format_bytes
from core.worker.generate.room import free_bytes, runs_on
from core.worker.model.device import choose_device, choose_dtype
from core.worker.model.model import load_tokenizer
from core.worker.model.support import resolve_base
from core.worker.oom.retry import is_out_of_memory, shortage_reason
from core.worker.process import environment
from core.worker.process.openmp import SpinControl
from core.worker.quantization.measure import Settings, measure_cost
from core.worker.quantization.sample import read_sample

#: Bytes for activations, logits and code on the device, for any model.
_AROUND = 2 << 30


def measure(job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Measure the cost of four bits.

    Args:
        job: ``config``; ``rows``, their largest number; ``free_bytes`` for layers in 16 bits, null where unknown.
        answers: Receives the progress.

    Returns:
        A :class:`~core.quantization.result.QuantizationCost`.
    """
    config = Config.model_validate(job["config"])
    if config.hardware.device != "cpu":
        environment.choose_gpu(config.hardware.gpu)
    SpinControl().start()
    base = resolve_base(config.model.base, answers.progress)
    tokenizer = load_tokenizer(base)
    device = choose_device(config.hardware.device)
    refuse_beside_run(base, device, choose_dtype(config.train.precision, device))
    sample = read_sample(config, base, tokenizer, int(job["rows"]), TOKEN_BUDGETS[device.type], answers.progress)
    settings = Settings(config.train.precision, config.hardware.device, kept_patterns(config.model.keep_16bit))
    try:
        cost = measure_cost(base, sample, settings, answers.progress, free_bytes=job["free_bytes"], tokenizer=tokenizer)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"There is not enough memory on {device} to measure: {shortage_reason(error)}",
            "Close what else holds its memory, or lower --rows.",
        ) from error
    return cost.to_dict()


def needed_bytes(tensors: Mapping[str, Tensor], width: int) -> int:
    """Peak bytes of a measurement: the weights outside the layers, and the largest layer twice, as its parts exist
    beside their merged tensor.

    Args:
        tensors: Tensors of the model's files.
        width: Bytes of an element in 16 or 32 bits.
    """
    layers = [sum(tensor.elements for tensor in layer.values()) for layer in by_layer(tensors).values()]
    outside = sum(tensor.elements for tensor in tensors.values()) - sum(layers)
    return width * (outside + 2 * max(layers, default=0)) + _AROUND


def refuse_beside_run(base: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Check that a measurement fits beside the runs on its device.

    Raises:
        UserError: If a run trains there and the measurement does not fit.
    """
    needed, free = needed_bytes(read_decoded(base).tensors, dtype.itemsize), free_bytes(device)
    if needed <= free:
        return
    if runs := runs_on(device):
        raise UserError(
            f"Run {runs[0]} trains on the same device, where {format_bytes(free)} are free, and the measurement takes "
            f"up to {format_bytes(needed)}.",
            "Wait until the run is over.",
        )
