"""Updates by DeepSpeed's optimizer, whose states are saved and loaded as in a run of one process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from core.worker.distributed.zero import MOMENTS, Zero
from core.worker.oom.retry import shortage_explained
from core.worker.optim.optim import set_learning_rate
from core.worker.optim.update import MASTER

_HINT = (
    "DeepSpeed cannot do it again; the newest checkpoint is whole. Set distributed.offload = optimizer, or "
    "distributed.strategy = fsdp2, and continue the run."
)


class ZeroUpdate:
    """Clipping by the norm of all gradients, and one step of DeepSpeed's optimizer.

    Args:
        zero: The sharded training state.
        names: Names of the trainable parameters, in the order of the optimizer's groups.
        groups: Parameter groups of a run of one process: of all adapters, or of each tensor by itself.
        by_name: Each tensor has its own optimizer in a run of one process.
        stepped: Called after a step, and after gradients were dropped.
    """

    in_backward = False
    partial = False

    def __init__(
        self,
        zero: Zero,
        names: Sequence[str],
        groups: list[dict[str, Any]],
        *,
        by_name: bool,
        stepped: Callable[[], None],
    ) -> None:
        self._zero = zero
        self._names = list(names)
        self._groups = groups
        self._by_name = by_name
        self._stepped = stepped

    def begin(self, learning_rate: float) -> None:
        """Set the learning rate of each group, by its own ratio."""
        set_learning_rate(self._zero.optimizer, learning_rate)

    def clip(self) -> float:
        """Gradient norm over all processes, by which DeepSpeed clips in its step. Together."""
        with shortage_explained("in taking the norm of the gradients", _HINT):
            return self._zero.norm()

    def step(self) -> None:
        """Step by the clipped gradients. Together."""
        with shortage_explained("in DeepSpeed's step", _HINT):
            self._zero.step()
        self._stepped()

    def drop(self) -> None:
        """Drop the gradients without a step."""
        self._zero.drop()
        self._stepped()

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Context for gradients that no step follows."""
        yield
        self.drop()

    def state_dict(self) -> dict[str, Any]:
        """States as in a run of one process, in rank 0; empty elsewhere. Together."""
        steps = self._zero.steps
        states = {name: self._state(name, steps) for name in self._names} if steps else {}
        if not self._zero.is_first:
            return {}
        if self._by_name:
            return {name: self._alone(states.get(name)) for name in self._names}
        return {"state": dict(enumerate(states.values())), "param_groups": self._groups}

    def _alone(self, state: dict[str, torch.Tensor] | None) -> dict[str, Any]:
        return {"state": {} if state is None else {0: state}, "param_groups": self._groups}

    def _state(self, name: str, steps: int) -> dict[str, torch.Tensor]:
        found = {moment: self._zero.gather(name, moment) for moment in MOMENTS}
        if self._zero.has_master(name):
            found[MASTER] = self._zero.gather(name)
        return {"step": torch.tensor(float(steps)), **{key: value for key, value in found.items() if value is not None}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore states of a run of any number of processes, once the weights are restored. Together."""
        self._zero.take_weights()
        self._zero.is_restored = True
        states = {name: self._saved(state, at, name) for at, name in enumerate(self._names)}
        steps = max((int(values["step"]) for values in states.values() if values), default=0)
        if not steps:
            return
        self._zero.set_steps(steps)
        for name, values in states.items():
            for moment in MOMENTS:
                if values:
                    self._zero.put(name, values[moment], moment)
            if values and MASTER in values and self._zero.has_master(name):
                self._zero.put(name, values[MASTER])

    def _saved(self, state: dict[str, Any], at: int, name: str) -> dict[str, Any]:
        found: dict[str, Any] = state[name]["state"].get(0, {}) if self._by_name else state["state"].get(at, {})
        return found
