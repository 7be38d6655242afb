"""Adam's metric from an optimizer's states, in whatever precision and form they are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import bitsandbytes.functional as bnb
import torch

from core.worker.optim.paged import settle


def metric_of(optimizer: Any) -> dict[torch.nn.Parameter, torch.Tensor]:
    """Factor of each number of a gradient, ``1 / sqrt(sqrt(v) + eps)`` with the bias-corrected second moment ``v``.

    Adafactor's ``v`` is the product of its row and column means (arXiv 1804.04235). An optimizer without a second
    moment, Lion, has the factor 1.

    Args:
        optimizer: An optimizer of :func:`core.worker.optim.optim.make_optimizer`, its states restored.

    Returns:
        fp32 tensors in the shapes of the parameters.
    """
    settle(optimizer)
    found: dict[torch.nn.Parameter, torch.Tensor] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            moment = _second_moment(optimizer.state.get(parameter, {}), group, parameter)
            eps = group.get("eps", 0.0)
            # Adafactor has a pair: of the squared gradient, and of the step relative to the weight.
            eps = eps[0] ** 0.5 if isinstance(eps, tuple | list) else eps
            found[parameter] = (
                torch.ones_like(parameter, dtype=torch.float32) if moment is None else _factor(moment, eps)
            )
    return found


def _factor(moment: torch.Tensor, eps: float) -> torch.Tensor:
    # Numbers that have never had a gradient have no step either.
    return torch.where(moment > 0, moment.sqrt().add(eps).rsqrt(), 0.0)


def _second_moment(
    state: Mapping[str, Any], group: Mapping[str, Any], parameter: torch.nn.Parameter
) -> torch.Tensor | None:
    """The bias-corrected second moment in fp32; None if the optimizer keeps none."""
    if "exp_avg_sq_row" in state:
        rows, columns = state["exp_avg_sq_row"].float(), state["exp_avg_sq_col"].float()
        product: torch.Tensor = rows[:, None] * columns[None, :] / rows.mean().clamp_min(1e-30)
        return product
    moment = state.get("exp_avg_sq", state.get("state2"))
    if moment is None:
        return None
    if moment.dtype == torch.uint8:
        moment = _dequantized(moment, state)
    moment = moment.to(parameter.device).float().view(parameter.shape)
    beta = group["betas"][1] if "betas" in group else 0.0
    corrected: torch.Tensor = moment / (1 - beta ** float(state["step"]))
    return corrected


def _dequantized(moment: torch.Tensor, state: Mapping[str, Any]) -> torch.Tensor:
    """A second moment of 8 bits. Zero stands for all that is smaller than half the smallest code of a block: such
    numbers get half that code, as their true size is unknown, and a factor from zero would outweigh all others."""
    scales, codes = state["absmax2"], state["qmap2"]
    values = bnb.dequantize_blockwise(moment, absmax=scales, code=codes, blocksize=256)
    least = float(codes[codes > 0].min()) / 2
    floors = scales.repeat_interleave(256)[: values.numel()].view(values.shape) * least
    return torch.maximum(values, floors)
