"""Collectives of FSDP2, counted, so that a pass that failed on one process can be ended without the others noticing.

Every process issues the same collectives in the same order: the layers' all-gathers and, where they are trained, the
reduce-scatters of their gradients. One that runs out of memory in the middle of a pass has issued some of them, and
the others wait in the next. It then runs the pass once more with a single token, leaves out as many collectives as it
has issued already, and takes part in the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter

from core.errors import UserError


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
