"""Optimizer step in parts that can be retried: each part takes effect once, however often memory runs out.

With torch's fused AdamW a part is a parameter group: it creates all states first and then updates the group in one call
without allocations. With every other optimizer a part is one parameter. The values that a part changes are saved before
it, and restored if it fails; then it runs again. Finished parts stay finished.

Weights and states after a retried step are bit for bit those of a step that did not fail. If an update does not
allocate, only counters can have changed when memory runs out, and only they are saved: for fused AdamW, whose weights
and moments would be three times the adapters' size at every step, and for bitsandbytes on a card. Paged states are
never saved, because copying would move their pages to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from core.worker.oom.retry import Retry
from core.worker.optim.optim import allocates, forget_state, is_blockwise, step_parameter
from core.worker.optim.paged import is_paged

WHAT = "in the optimizer's step"
HINT = (
    "The newest checkpoint is whole: free memory, or set train.optimizer = adamw_8bit or lower method.rank, and start "
    "again."
)

#: Restores saved values.
PutBack = Callable[[], None]
#: A part of a step: its work, and the function that saves the values it may change.
_Part = tuple[Callable[[], None], Callable[[], PutBack]]


class RetryableStep:
    """Step of an optimizer, in parts that can be retried.

    Args:
        optimizer: Any torch optimizer whose update of a parameter depends on that parameter, its gradient and state.
        retry: Retries parts.
        in_place: bitsandbytes updates do not allocate; None to decide by the parameter's device.
    """

    def __init__(self, optimizer: Any, retry: Retry, *, in_place: bool | None = None) -> None:
        self._optimizer = optimizer
        self._retry = retry
        self._in_place = in_place
        self._step = optimizer.step

    def __call__(self, _closure: None = None) -> None:
        """Do one step, without a closure.

        Raises:
            MemoryShortageError: If a part does not fit; earlier parts are done.
        """
        for part in self._parts():
            kept: list[PutBack] = []

            def work(part: _Part = part, kept: list[PutBack] = kept) -> None:
                do, keep = part
                kept.append(keep())
                do()

            def undo(kept: list[PutBack] = kept) -> None:
                while kept:
                    kept.pop()()

            self._retry.run(work, WHAT, HINT, undo)

    def _parts(self) -> Iterator[_Part]:
        optimizer = self._optimizer
        for index, group in enumerate(list(optimizer.param_groups)):
            trained = [(at, parameter) for at, parameter in enumerate(group["params"]) if parameter.grad is not None]
            if isinstance(optimizer, torch.optim.AdamW):
                parameters = [parameter for _, parameter in trained]
                if parameters:
                    yield partial(self._step_part, group, parameters), partial(keep_counters, optimizer, parameters)
                continue
            for at, parameter in trained:
                if not is_blockwise(optimizer):
                    work = partial(self._step_part, group, [parameter])
                else:
                    work = partial(step_parameter, optimizer, group, parameter, (index, at))
                yield work, partial(self._keep, parameter)

    def _step_part(self, group: dict[str, Any], parameters: list[torch.nn.Parameter]) -> None:
        groups = self._optimizer.param_groups
        self._optimizer.param_groups = [{**group, "params": parameters}]
        try:
            self._step()
        finally:
            self._optimizer.param_groups = groups

    def _keep(self, parameter: torch.nn.Parameter) -> PutBack:
        optimizer = self._optimizer
        in_place = not allocates(optimizer, parameter.device) if self._in_place is None else self._in_place
        state = optimizer.state.get(parameter)
        put_states = keep_state(state, plain_only=in_place) if state else partial(forget_state, optimizer, parameter)
        if in_place:
            return put_states
        value = parameter.detach().clone()

        @torch.no_grad()
        def put_back() -> None:
            parameter.copy_(value)
            put_states()

        return put_back


def keep_state(state: dict[str, Any], *, plain_only: bool = False, smaller_than: int | None = None) -> PutBack:
    """Save a parameter's optimizer state, except paged tensors.

    Args:
        state: Names to tensors and plain values.
        plain_only: Save only plain values.
        smaller_than: Save only plain values and tensors with fewer elements.

    Returns:
        A function that restores it in place.
    """
    limit = 0 if plain_only else smaller_than
    tensors = {
        name: (value, value.clone())
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and not is_paged(value) and (limit is None or value.numel() < limit)
    }
    plain = {name: value for name, value in state.items() if not isinstance(value, torch.Tensor)}
    names = set(state)

    @torch.no_grad()
    def put_back() -> None:
        for name in set(state) - names:
            del state[name]
        state.update(plain)
        for name, (tensor, value) in tensors.items():
            state[name] = tensor.copy_(value)

    return put_back


def keep_counters(optimizer: torch.optim.AdamW, parameters: list[torch.nn.Parameter]) -> PutBack:
    """Save the step counters of parameters that fused AdamW updates in one call.

    One call increments all counters of a device and dtype, before the update that may fail. So the first counter shows
    whether that happened, even if counters differ because some experts had no gradient in earlier steps.
    """
    states = optimizer.state
    fresh = [parameter for parameter in parameters if not states.get(parameter)]
    counters: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for parameter in parameters:
        if states.get(parameter):
            counters.setdefault((parameter.device, parameter.dtype), []).append(states[parameter]["step"])
    before = {kind: counted[0].clone() for kind, counted in counters.items()}

    @torch.no_grad()
    def put_back() -> None:
        for parameter in fresh:
            states.pop(parameter, None)
        for kind, counted in counters.items():
            added = float(counted[0] - before[kind])
            if added:
                torch._foreach_sub_(counted, added)

    return put_back
