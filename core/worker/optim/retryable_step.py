"""Retryable optimizer step: each part of it is done once, however often memory runs out.

The step is done part by part. A part is a group of parameters for torch's fused AdamW, which makes all states first
and then updates a group in one call that allocates nothing; and one parameter for all other optimizers, which go from
one to the next by themselves. What a part changes is kept before it, put back when it fails, and the part is done
again; parts that are done stay done.

What is exact: weights and states after a step that failed and was done again are, bit for bit, those of one that did
not fail. Of fused AdamW the counters alone are kept, as nothing else can have changed when memory runs out: keeping its
weights and moments would take three times the adapters' size for every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from core.worker.oom.retry import Retry

WHAT = "in the optimizer's step"
HINT = (
    "The newest checkpoint is whole: free memory, or set train.optimizer = adamw_8bit or lower method.rank, and start "
    "again."
)


class RetryableStep:
    """Steps an optimizer in parts that can be done again.

    Args:
        optimizer: Any torch optimizer whose update of a parameter depends on that parameter, its gradient and state.
        retry: Does parts again.
    """

    def __init__(self, optimizer: Any, retry: Retry) -> None:
        self._optimizer = optimizer
        self._retry = retry
        self._step = optimizer.step
        self._fused = isinstance(optimizer, torch.optim.AdamW)

    def __call__(self, _closure: None = None) -> None:
        """One step; there is no closure.

        Raises:
            MemoryShortageError: If a part does not fit; those before it are done.
        """
        for group, parameters in self._parts():
            kept: list[_Kept] = []

            def work(group: Any = group, parameters: Any = parameters, kept: list[_Kept] = kept) -> None:
                kept.append(_Kept(self._optimizer, parameters, counters_only=self._fused))
                self._step_part(group, parameters)

            def undo(kept: list[_Kept] = kept) -> None:
                while kept:
                    kept.pop().put_back()

            self._retry.run(work, undo, WHAT, HINT)

    def _parts(self) -> Iterator[tuple[dict[str, Any], list[torch.nn.Parameter]]]:
        for group in list(self._optimizer.param_groups):
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not self._fused:
                yield from ((group, [parameter]) for parameter in trained)
            elif trained:
                yield group, trained

    def _step_part(self, group: dict[str, Any], parameters: list[torch.nn.Parameter]) -> None:
        groups = self._optimizer.param_groups
        self._optimizer.param_groups = [{**group, "params": parameters}]
        try:
            self._step()
        finally:
            self._optimizer.param_groups = groups


class _Kept:
    """Weights and states that a part of a step may change, as they were before."""

    def __init__(self, optimizer: Any, parameters: list[torch.nn.Parameter], *, counters_only: bool) -> None:
        self._states = optimizer.state
        self._parameters = parameters
        self._values = [] if counters_only else [parameter.detach().clone() for parameter in parameters]
        self._before = [
            None
            if not self._states.get(parameter)
            else keep_state(self._states[parameter], counters_only=counters_only)
            for parameter in parameters
        ]

    @torch.no_grad()
    def put_back(self) -> None:
        for parameter, value in zip(self._parameters, self._values, strict=False):
            parameter.copy_(value)
        for parameter, before in zip(self._parameters, self._before, strict=True):
            if before is None:
                self._states.pop(parameter, None)
            else:
                before()


def keep_state(
    state: dict[str, Any], *, counters_only: bool = False, smaller_than: int | None = None
) -> Callable[[], None]:
    """Keep a parameter's optimizer state.

    Args:
        state: Names to tensors and plain values.
        counters_only: Keep tensors of one element and plain values only.
        smaller_than: Keep tensors of fewer elements, and plain values, only.

    Returns:
        What puts it back, in place.
    """
    limit = 2 if counters_only else smaller_than
    tensors = {
        name: (value, value.clone())
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and (limit is None or value.numel() < limit)
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
