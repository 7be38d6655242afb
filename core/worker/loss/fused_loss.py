"""Fused loss: Liger's kernel, or the engine's own code, sums the loss of the supervised positions.

Liger's (arXiv 2410.10989) goes from hidden states to loss and gradient in one pass over chunks, as ours does, with the
cross-entropy of a chunk as one Triton kernel. It is taken on a GPU, where the package is installed and gives the
same: a sum in fp32 whose gradient goes to the hidden states, and none to a frozen head.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from core import liger
from core.config.choices import Objective
from core.config.schema import Config
from core.errors import UserError
from core.memory.batching import chunk_positions
from core.text import one_line
from core.worker.loss.loss import Head, SummedLoss, chunked_cross_entropy
from core.worker.process.log import log

#: Liger's function is here.
MODULE, FUNCTION = "liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy"
#: Positions that both are compared on before Liger's is taken.
TRIED = 16
#: How far loss and gradient may differ then, relative to their size. Both sum in fp32; in 16 bit the gradient of the
#: logits is rounded before the product with the head.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class LossChoice:
    """The way to sum losses.

    Args:
        function: Sums them.
        liger: The version of Liger's package, where it is its function; else None.
        why_not: Why it is not, as a sentence; empty where it is.
        failed: Whether Liger's was tried and did not do.
    """

    function: SummedLoss
    liger: str | None = None
    why_not: str = ""
    failed: bool = False

    @property
    def notice(self) -> tuple[str, str, str, str] | None:
        """Level, code, message and hint of what is to be told of it; None where ours was to be expected."""
        if self.liger is not None:
            message = f"The loss is summed by Liger's fused kernel ({liger.PACKAGE} {self.liger})."
            return "info", "loss_kernel", message, ""
        if self.failed:
            message = f"The loss is summed by the engine's own code, not by Liger's kernel: {self.why_not}"
            return "warning", "loss_kernel", message, "It is the same; memory.liger = off leaves the other out."
        return None


class LigerLoss:
    """Liger's function in the place of :func:`~core.worker.loss.loss.chunked_cross_entropy`.

    Its chunks grow with the positions: as many of them as make their logits as large as the hidden states. So it gets
    no more positions at once than keep its chunks within ours, and takes no more memory than the plan has for the loss.

    Args:
        function: ``liger_fused_linear_cross_entropy``.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, head: Head, hidden: torch.Tensor, targets: torch.Tensor, chunk: int) -> torch.Tensor:
        """See :func:`~core.worker.loss.loss.chunked_cross_entropy`; where no gradient is wanted, it is that."""
        if not hidden.requires_grad or not len(targets):
            return chunked_cross_entropy(head, hidden, targets, chunk)
        weight = head.linear.weight
        at_once = chunk * math.ceil(weight.shape[0] / weight.shape[1])
        total = hidden.new_zeros((), dtype=torch.float32)
        # Split, so that the gradients of the pieces are put together once.
        parts = torch.split(hidden, at_once), torch.split(targets, at_once)
        for part, wanted in zip(*parts, strict=True):
            total = total + self._function(part, weight, wanted, reduction="sum", softcap=head.softcap or None)
        return total


def choose_loss(head: Head, device: torch.device, wanted: str, objective: Objective = "sft") -> LossChoice:
    """Liger's function where it can be used, ours otherwise. Liger is imported on a GPU only.

    Args:
        head: Of the model that is trained.
        device: Where it is trained.
        wanted: ``auto`` or ``off``.
        objective: What is learned.
    """
    if (reason := _obstacle(head, device, wanted, objective)) or (version := liger.installed_version()) is None:
        return LossChoice(chunked_cross_entropy, why_not=reason or f"{liger.PACKAGE} is not installed.")
    name = f"{liger.PACKAGE} {version}"
    if liger.is_too_old(version):
        return LossChoice(chunked_cross_entropy, why_not=f"{name} is older than {liger.OLDEST}.", failed=True)
    try:
        function = LigerLoss(getattr(importlib.import_module(MODULE), FUNCTION))
        difference = compare(function, head)
    except Exception as error:  # whatever an optional kernel fails by, there is another way
        log(f"Liger's loss: {error!r}")
        first = one_line((str(error).strip().splitlines() or [""])[0], 200)
        return LossChoice(chunked_cross_entropy, why_not=f"{name} failed: {type(error).__name__}: {first}", failed=True)
    if not difference <= TOLERANCE.get(head.linear.weight.dtype, 0.0):
        reason = f"{name} gave another result on a trial (by {difference:.1g})."
        return LossChoice(chunked_cross_entropy, why_not=reason, failed=True)
    return LossChoice(function, liger=version)


def _obstacle(head: Head, device: torch.device, wanted: str, objective: Objective) -> str:
    """The obstacle to Liger's function, whether it is installed or not; empty where there is none."""
    if wanted == "off":
        return "memory.liger is off."
    if device.type != "cuda":
        return "Liger's kernels run on GPUs."
    if objective != "sft":
        return f"train.objective = {objective} needs the loss of each row."
    linear = head.linear
    if type(linear) is not torch.nn.Linear or getattr(linear, "bias", None) is not None:
        return "The output head is not a plain linear layer."
    if linear.weight.requires_grad:
        return "The output head is trained."
    if head.scale != 1.0:
        return "The logits are scaled."
    return ""


def compare(function: SummedLoss, head: Head) -> float:
    """Error of another way to sum losses, on a few positions: the larger relative difference of loss and gradient.

    The head's own rows are the hidden states, which needs no random numbers. It runs the kernels for the first time, so
    that one that cannot be compiled here is known before the training.
    """
    weight = head.linear.weight.detach()
    states = weight[:TRIED]
    targets = torch.arange(len(states), device=weight.device).roll(1)
    results = []
    for way in (function, chunked_cross_entropy):
        hidden = states.clone().requires_grad_()
        loss = way(head, hidden, targets, chunk_positions(head.vocabulary))
        # As the mean over a window makes it; it is not one for a reason: a factor of one has a way of its own.
        (gradient,) = torch.autograd.grad(loss * 0.5, hidden)
        results.append((loss.detach().float(), gradient.float()))
    (loss, gradient), (our_loss, our_gradient) = results
    of_loss = float((loss - our_loss).abs() / our_loss.abs())
    return max(of_loss, float((gradient - our_gradient).norm() / our_gradient.norm()))


def choose_for_run(
    config: Config, head: Head, device: torch.device, manifest: Mapping[str, Any] | None = None
) -> LossChoice:
    """The way of a run; one that goes on keeps the way that it had, as the two differ in the last digits.

    Args:
        config: Of the run.
        head: Of its model.
        device: Where it is trained.
        manifest: Of the checkpoint that it goes on from; None at its beginning.

    Raises:
        UserError: If it had Liger's, which cannot be used now and has not been turned off.
    """
    wanted = config.memory.liger
    had = manifest is not None and bool(manifest.get("liger"))
    if manifest is not None and not had:
        wanted = "off"
    choice = choose_loss(head, device, wanted, config.train.objective)
    if not had or choice.liger is not None:
        return choice
    if wanted == "off":
        return replace(choice, failed=True)
    raise UserError(
        f"The run's loss was summed by Liger's kernel, which cannot be used now: {choice.why_not}",
        f"{liger.INSTALL}; or set memory.liger = off in its run.toml, with which it goes on a little differently.",
    )
