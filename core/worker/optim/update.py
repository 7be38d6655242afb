"""Updates: clipped gradients of an optimizer step become new values of adapters or weights.

:class:`AdapterUpdate` has one optimizer for all adapters, which are fp32. :class:`WeightUpdate` updates the model's own
weights tensor by tensor, each with its own optimizer: after the window, or inside backward as soon as a tensor's
gradient exists, so the gradients of a whole model never exist at once (as in LOMO, arXiv 2306.09782, but with any
optimizer).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from accelerate import Accelerator

from core.worker.oom.retry import Retry
from core.worker.optim.optim import allocates, forget_state, is_blockwise, set_learning_rate, step_parameter
from core.worker.optim.paged import load_states, settle
from core.worker.optim.retryable_step import HINT, WHAT, RetryableStep, keep_state
from core.worker.optim.rounding import Kernels, add_slices

#: State key for the fp32 copy of a 16-bit weight, written by other optimizers; not used here.
MASTER = "master"
#: Creates an optimizer, without weight decay, over the given parameters.
OptimizerMaker = Callable[[list[torch.nn.Parameter]], Any]


class Update(Protocol):
    """Update, as used by the recipe."""

    in_backward: bool
    """True if weights change during backward, so that a window must be one micro-batch."""

    def begin(self, learning_rate: float) -> None:
        """Begin an optimizer step, before its gradients exist; sets the learning rate."""

    def clip(self) -> float:
        """Clip the gradients of a window to ``train.max_grad_norm``; returns their norm before clipping."""

    def step(self) -> None:
        """Do the optimizer step, then drop the gradients."""

    def drop(self) -> None:
        """Drop the gradients without a step. Updates already made inside backward stay."""

    @property
    def partial(self) -> bool:
        """True if the current window has already changed weights, so it cannot run again."""

    def rehearsal(self) -> contextlib.AbstractContextManager[None]:
        """Context in which gradients change nothing but take the memory of a real step."""

    def state_dict(self) -> dict[str, Any]:
        """Optimizer states; plain values and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""


class AdapterUpdate:
    """Clipping by the norm of all gradients, and one step of one optimizer.

    If memory runs out in either, the current part is retried; see :mod:`core.worker.optim.retryable_step`.

    Args:
        accelerator: Holds the gradient scaler, if fp16 needs one.
        optimizer: Optimizer over the parameters.
        parameters: Trainable parameters.
        max_grad_norm: Norm to clip gradients to; 0 for no clipping.
        retry: Retries parts that run out of memory.
    """

    in_backward = False
    partial = False

    def __init__(
        self,
        accelerator: Accelerator,
        optimizer: Any,
        parameters: list[torch.nn.Parameter],
        max_grad_norm: float,
        retry: Retry,
    ) -> None:
        self._accelerator = accelerator
        self._retry = retry
        self._states = optimizer
        # Set on the optimizer itself, because the gradient scaler calls it there.
        optimizer.step = RetryableStep(optimizer, retry)
        self._optimizer = accelerator.prepare_optimizer(optimizer)
        self._parameters = parameters
        self._limit = max_grad_norm or math.inf

    def begin(self, learning_rate: float) -> None:
        """Set the learning rate of each group, by its own ratio."""
        set_learning_rate(self._optimizer, learning_rate)

    def clip(self) -> float:
        """Clip all gradients by their common norm, which is returned."""
        self._accelerator.unscale_gradients()
        # It allocates only for the norms, then scales in place: a failed attempt has changed nothing.
        return self._retry.run(
            lambda: float(torch.nn.utils.clip_grad_norm_(self._parameters, self._limit)),
            "in clipping the gradients",
            HINT,
        )

    def step(self) -> None:
        """Step the optimizer and drop the gradients."""
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def drop(self) -> None:
        """Drop the gradients. The scaler saw any overflow during clipping, and backs off."""
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.update()
        self._optimizer.zero_grad(set_to_none=True)

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Context without effect: the caller drops the gradients."""
        yield

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's states."""
        settle(self._states)
        state: dict[str, Any] = self._optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the optimizer's states."""
        load_states(self._states, state)


class WeightUpdate:
    """Tensor-by-tensor update of a model's weights.

    Args:
        parameters: Trainable parameters by name; bf16 or fp32.
        make_optimizer: Creates the optimizer of a tensor.
        states_in_fp32: The optimizer keeps its states in the dtype of its parameter, so it must get fp32; bitsandbytes
            does not.
        weight_decay: Decoupled weight decay; norms and biases have none.
        max_grad_norm: Norm to clip gradients to; 0 for no clipping. Inside backward the norm is only known at the end,
            and nothing is clipped.
        in_backward: Update inside backward.
        retry: Retries parts that run out of memory.
        kernels: GPU kernels that add updates, and skip non-finite gradients without a device sync; None for plain
            torch.
        square_sum: Sums the squared norms over processes with different shards.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        make_optimizer: OptimizerMaker,
        *,
        states_in_fp32: bool,
        weight_decay: float,
        max_grad_norm: float,
        in_backward: bool,
        retry: Retry | None = None,
        kernels: Kernels | None = None,
        square_sum: Callable[[float], float] = float,
    ) -> None:
        retry = retry or Retry()
        self._sum_parts = square_sum
        self._retry = retry
        self.in_backward = in_backward
        self._limit = max_grad_norm or math.inf
        self._learning_rate = 0.0
        self._norms: list[torch.Tensor] = []
        self._scale = 1.0
        self._done = 0
        self._rehearsing = False
        self._kernels = kernels
        self._steppers = {
            name: _TensorStepper(parameter, make_optimizer, states_in_fp32, weight_decay, retry, kernels)
            for name, parameter in parameters.items()
        }
        if in_backward:
            for stepper in self._steppers.values():
                parameter: Any = stepper.parameter  # torch has no types for this
                parameter.register_post_accumulate_grad_hook(self._hook(stepper))

    @property
    def partial(self) -> bool:
        """True if a tensor has been updated since :meth:`begin`."""
        return self._done > 0

    def begin(self, learning_rate: float) -> None:
        """Set the learning rate, and forget the previous window."""
        self._learning_rate = learning_rate
        self._norms = []
        self._done = 0

    def clip(self) -> float:
        """The norm of all gradients, including updates made inside backward. The step scales them tensor by tensor in
        the optimizer's dtype, because a second set of gradients would not fit."""
        if not self.in_backward:
            gradients = [stepper.parameter.grad for stepper in self._steppers.values()]
            self._norms = self._retry.run(
                lambda: [_norm(gradient) for gradient in gradients if gradient is not None],
                "in taking the norm of the gradients",
                HINT,
            )
        # Read from the device at once.
        norms: list[float] = torch.stack(self._norms).tolist() if self._norms else []
        norm = math.sqrt(self._sum_parts(sum(value**2 for value in norms)))
        self._scale = min(1.0, self._limit / (norm + 1e-6))
        return norm

    def step(self) -> None:
        """Step each tensor's optimizer; inside backward all have stepped by now."""
        for stepper in self._steppers.values():
            if stepper.parameter.grad is not None:
                stepper.step(self._learning_rate, self._scale)
        self.drop()

    def drop(self) -> None:
        """Drop the remaining gradients."""
        for stepper in self._steppers.values():
            stepper.parameter.grad = None
        self._done = 0

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Context in which the optimizers run with zero learning rate, to allocate their states. New states are dropped
        afterwards."""
        self._rehearsing = True
        try:
            yield
        finally:
            self._rehearsing = False
            for stepper in self._steppers.values():
                stepper.end_rehearsal()

    def state_dict(self) -> dict[str, Any]:
        """States of every tensor's optimizer, by name."""
        for stepper in self._steppers.values():
            settle(stepper.optimizer)
            break  # there is one device, and one kind of optimizer
        return {name: stepper.optimizer.state_dict() for name, stepper in self._steppers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the states of every tensor's optimizer."""
        for name, stepper in self._steppers.items():
            stepper.load(state[name])

    def _hook(self, stepper: _TensorStepper) -> Callable[[torch.Tensor], None]:
        def update(parameter: torch.Tensor) -> None:
            if self._rehearsing:
                stepper.rehearse()
            else:
                gradient = parameter.grad
                if gradient is None:
                    raise ValueError("The tensor has no gradient.")
                norm = _norm(gradient)
                self._norms.append(norm)
                if self._kernels is not None:
                    self._done += 1
                    stepper.step(self._learning_rate, finite=norm.isfinite())
                elif math.isfinite(float(norm)):
                    self._done += 1
                    stepper.step(self._learning_rate)
            parameter.grad = None

        return update


def _norm(gradient: torch.Tensor) -> torch.Tensor:
    """Norm of a gradient, summed in fp32 on the device."""
    norm: torch.Tensor = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32)
    return norm


class _TensorStepper:
    """A tensor and its optimizer.

    The optimizer works on a zero stand-in, so the stand-in's value after the step is the update alone, which is then
    added to the tensor with the rounding it needs. Optimizers whose step depends on the parameter's value, other than
    by weight decay, cannot be used.

    If memory runs out, the optimizer part is retried with its states restored. Only small states need a copy: those as
    large as the tensor change in the optimizer's last call, after all allocations. Adding the update continues at the
    slice that failed. The result is the same except for the draws of stochastic rounding.
    """

    def __init__(
        self,
        parameter: torch.nn.Parameter,
        make_optimizer: OptimizerMaker,
        fp32: bool,
        weight_decay: float,
        retry: Retry,
        kernels: Kernels | None,
    ) -> None:
        self.parameter = parameter
        self._retry = retry
        self._kernels = kernels
        self._dtype = torch.float32 if fp32 else parameter.dtype
        self._make = make_optimizer
        self._decay = weight_decay if parameter.dim() > 1 else 0.0
        self._fresh = True
        self._renew()

    def _renew(self) -> None:
        self._stand_in = torch.nn.Parameter(self._nothing())
        self.optimizer = self._make([self._stand_in])

    def _nothing(self) -> torch.Tensor:
        return torch.empty(0, dtype=self._dtype, device=self.parameter.device)

    def step(self, learning_rate: float, scale: float = 1.0, finite: torch.Tensor | None = None) -> None:
        """Update the tensor by its gradient times ``scale``.

        Args:
            learning_rate: The rate.
            scale: Factor on the gradient.
            finite: Flag on the device: if False, the tensor stays unchanged. None for True.
        """
        self._fresh = False
        wanted = None if finite is None else finite.to(torch.int32)
        update = self._run_to_the_end(learning_rate, scale, wanted)
        keep, done, kernels, weights = 1.0 - learning_rate * self._decay, 0, self._kernels, self.parameter.data
        # Drawn on the host, from the generator that checkpoints save, without a device sync.
        seed = 0 if kernels is None else int(torch.randint(1 << 31, ()))

        def add() -> None:
            nonlocal done
            if kernels is not None:
                kernels.add_update(weights, update, keep=keep, seed=seed, wanted=wanted)
                return
            for end in add_slices(weights, update, keep=keep, begin=done):
                done = end

        self._retry.run(add, WHAT, HINT)

    def _run_to_the_end(self, learning_rate: float, scale: float, wanted: torch.Tensor | None) -> torch.Tensor:
        kept: list[Callable[[], None]] = []

        def run() -> torch.Tensor:
            state = self.optimizer.state.get(self._stand_in)
            if state:
                in_place = not allocates(self.optimizer, self.parameter.device)
                kept.append(keep_state(state, plain_only=in_place, smaller_than=self.parameter.numel()))
            else:
                kept.append(lambda: forget_state(self.optimizer, self._stand_in))
            return self._run(learning_rate, scale, wanted)

        def undo() -> None:
            self._stand_in.grad = None
            self._stand_in.data = self._nothing()
            while kept:
                kept.pop()()

        return self._retry.run(run, WHAT, HINT, undo)

    def rehearse(self) -> None:
        """Allocate the memory of a step."""
        if self._fresh:
            self._run(0.0, 0.0)

    def end_rehearsal(self) -> None:
        """Drop states that only the rehearsal created."""
        if self._fresh:
            forget_state(self.optimizer, self._stand_in)
            self._renew()

    def load(self, state: dict[str, Any]) -> None:
        """Replace the optimizer's state; paged states become paged again."""
        self._fresh = not state["state"]
        own = {at: {key: value for key, value in kept.items() if key != MASTER} for at, kept in state["state"].items()}
        load_states(self.optimizer, {**state, "state": own}, lambda _: self.parameter)

    @torch.no_grad()
    def _run(self, learning_rate: float, scale: float, wanted: torch.Tensor | None = None) -> torch.Tensor:
        gradient = self.parameter.grad
        if gradient is None:
            raise ValueError("The tensor has no gradient.")
        self._stand_in.data = torch.zeros(self.parameter.shape, dtype=self._dtype, device=self.parameter.device)
        self._stand_in.grad = gradient.to(self._dtype) if scale == 1.0 else gradient.to(self._dtype) * scale
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if wanted is not None:
            self._leave_out_unless(wanted, self._stand_in.grad)
        if is_blockwise(self.optimizer):
            step_parameter(self.optimizer, self.optimizer.param_groups[0], self._stand_in)
        else:
            self.optimizer.step()
        update = self._stand_in.data
        self._stand_in.grad = None
        self._stand_in.data = self._nothing()
        return update

    def _leave_out_unless(self, wanted: torch.Tensor, gradient: torch.Tensor) -> None:
        """Keep a non-finite gradient out of the states. Fused AdamW skips it through ``found_inf``, as with the fp16
        gradient scaler; for other optimizers it becomes zero, so their moments decay by a step."""
        if isinstance(self.optimizer, torch.optim.AdamW):
            self.optimizer.found_inf = (1 - wanted).float()  # type: ignore[attr-defined]
        elif self._kernels is not None and gradient.is_contiguous():
            self._kernels.clear_unless(wanted, gradient)
        else:
            gradient.masked_fill_(wanted == 0, 0.0)
