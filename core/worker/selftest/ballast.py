"""Ballast: memory taken away from a run on purpose, so that it really runs out of memory.

On a card ballast tensors take the free memory, except for a margin for other programs; the allocator's own limit keeps
this process out of the margin. On a CPU the operating system's limit on the address space is set to the current size,
and ballast tensors fill malloc's reserves. The error is then torch's own.
"""

from __future__ import annotations

import contextlib
import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from core.atomic import write_atomic
from core.worker.selftest.check import RECORD

#: Memory of a card left to other programs.
MARGIN = 256 << 20
#: Slack on a CPU for everything except tensors: Python's objects, messages, threads.
SLACK = 4 << 20
#: Sizes of ballast tensors, from the largest: halved until the smallest does not fit.
_LARGEST, _SMALLEST = 1 << 30, 256 << 10
#: Passes with gradients, counted from 1, in which memory runs out; not the first, which a rehearsal may be.
FORWARD_PASS, BACKWARD_PASS = 2, 4
#: Decoder layer, counted from 0 in the order of the pass, before or after which it runs out.
_LAYER = 1


class CpuBallast:
    """Ballast on a CPU."""

    def __init__(self) -> None:
        self._tensors: list[torch.Tensor] = []
        self._limit: tuple[int, int] | None = None

    def take(self) -> int:
        """Set the limit to the current size, and fill malloc's reserves."""
        self._limit = self._limit or resource.getrlimit(resource.RLIMIT_AS)
        _, hard = self._limit
        resource.setrlimit(resource.RLIMIT_AS, (_address_space(), hard))
        taken = _fill(self._tensors, torch.device("cpu"))
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + SLACK, hard))
        return taken

    def release(self) -> None:
        """Restore the limit first: freeing may itself allocate."""
        if self._limit is not None:
            resource.setrlimit(resource.RLIMIT_AS, self._limit)
            self._limit = None
        self._tensors.clear()


class CudaBallast:
    """Ballast on a card.

    Args:
        device: The card.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tensors: list[torch.Tensor] = []
        self._share: float | None = None

    def take(self) -> int:
        """Take the free memory except for a margin, bar this process from the rest, and fill the allocator's cache."""
        device = self._device
        free, total = torch.cuda.mem_get_info(device)
        taken = 0
        if free > MARGIN:
            with contextlib.suppress(torch.OutOfMemoryError):
                self._tensors.append(torch.empty(free - MARGIN, dtype=torch.uint8, device=device))
                taken += free - MARGIN
        ask = getattr(torch.cuda, "get_per_process_memory_fraction", None)
        self._share = float(ask(device)) if ask is not None else 1.0
        torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved(device) / total, device)
        return taken + _fill(self._tensors, device)

    def release(self) -> None:
        """Free the ballast, to the card as well."""
        self._tensors.clear()
        if self._share is not None:
            torch.cuda.set_per_process_memory_fraction(self._share, self._device)
            self._share = None
            torch.cuda.empty_cache()


class Shortage:
    """Memory runs out in the forward pass of one micro-batch and in the backward pass of another; it is back when the
    next pass begins.

    Args:
        run: The run directory, for the record of the ballast.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._ballast: CpuBallast | CudaBallast | None = None
        self._passes = self._layers = 0
        self._is_held = False
        self._done: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Inside, every module of this process is hooked."""
        hooks = torch.nn.modules.module
        before = hooks.register_module_forward_pre_hook(self._before)
        after = hooks.register_module_forward_hook(self._after)
        try:
            yield
        finally:
            before.remove()
            after.remove()
            self._release()
            write_atomic(self._run / RECORD, json.dumps(self._done))

    def _before(self, module: Any, _: tuple[Any, ...]) -> None:
        if not torch.is_grad_enabled():
            return
        if isinstance(module, torch.nn.Embedding):
            self._release()
            self._passes += 1
            self._layers = 0
            if self._ballast is None:
                device = module.weight.device
                self._ballast = CudaBallast(device) if device.type == "cuda" else CpuBallast()
        elif isinstance(module, GradientCheckpointingLayer):
            if self._passes == FORWARD_PASS and self._layers == _LAYER:
                self._take("forward")
            self._layers += 1

    def _after(self, module: Any, _: tuple[Any, ...], output: Any) -> None:
        due = self._passes == BACKWARD_PASS and self._layers == _LAYER + 1
        if not due or not torch.is_grad_enabled() or not isinstance(module, GradientCheckpointingLayer):
            return
        tensor = output[0] if isinstance(output, tuple) else output
        if tensor.requires_grad:
            tensor.register_hook(lambda _: self._take("backward"))

    def _take(self, where: str) -> None:
        if self._ballast is not None and not self._is_held:
            self._is_held = True
            self._done.append({"where": where, "bytes": self._ballast.take()})

    def _release(self) -> None:
        if self._ballast is not None and self._is_held:
            self._ballast.release()
            self._is_held = False


def _fill(tensors: list[torch.Tensor], device: torch.device) -> int:
    """Fill the available memory with tensors; returns the number of bytes."""
    taken, size = 0, _LARGEST
    while size >= _SMALLEST:
        try:
            tensors.append(torch.empty(size, dtype=torch.uint8, device=device))
            taken += size
        except (torch.OutOfMemoryError, RuntimeError, MemoryError):
            size //= 2
    return taken


def _address_space() -> int:
    """Size of this process's address space."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()
