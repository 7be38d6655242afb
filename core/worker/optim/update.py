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
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from accelerate import Accelerator

from core.worker.oom.retry import Retry
from core.worker.optim.adamw import Step, fits, make_states
from core.worker.optim.optim import allocates, forget_state, is_blockwise, set_learning_rate, step_parameter
from core.worker.optim.paged import is_paged, load_states, settle
from core.worker.optim.rounding import Kernels, add_slices

WHAT = "in the optimizer's step"
HINT = (
    "The newest checkpoint is whole: free memory, or set train.optimizer = adamw_8bit or lower method.rank, and start "
    "again."
)

#: Restores saved values.
PutBack = Callable[[], None]
#: A part of a step: its work, and the function that saves the values it may change.
_Part = tuple[Callable[[], None], Callable[[], PutBack]]


@dataclass(eq=False)
class RetryableStep:
    """Step of an optimizer, in parts that can be retried: each part takes effect once, however often memory runs out.

    With torch's fused AdamW a part is a parameter group: it creates all states first and then updates the group in one
    call without allocations. With every other optimizer a part is one parameter. The values that a part changes are
    saved before it, and restored if it fails; then it runs again. Finished parts stay finished.

    Weights and states after a retried step are bit for bit those of a step that did not fail. If an update does not
    allocate, only counters can have changed when memory runs out, and only they are saved: for fused AdamW, whose
    weights and moments would be three times the adapters' size at every step, and for bitsandbytes on a card. Paged
    states are never saved, because copying would move their pages to the host.

    Args:
        optimizer: Any torch optimizer whose update of a parameter depends on that parameter, its gradient and state.
        retry: Retries parts.
        in_place: bitsandbytes updates do not allocate; None to decide by the parameter's device.
    """

    optimizer: Any
    retry: Retry
    _: KW_ONLY
    in_place: bool | None = None

    def __post_init__(self) -> None:
        self._step = self.optimizer.step

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

            self.retry.run(work, WHAT, HINT, undo)

    def _parts(self) -> Iterator[_Part]:
        optimizer = self.optimizer
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
        groups = self.optimizer.param_groups
        self.optimizer.param_groups = [{**group, "params": parameters}]
        try:
            self._step()
        finally:
            self.optimizer.param_groups = groups

    def _keep(self, parameter: torch.nn.Parameter) -> PutBack:
        optimizer = self.optimizer
        in_place = not allocates(optimizer, parameter.device) if self.in_place is None else self.in_place
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


@dataclass(eq=False)
class AdapterUpdate:
    """Clipping by the norm of all gradients, and one step of one optimizer.

    If memory runs out in either, the current part is retried; see :class:`RetryableStep`.

    Args:
        accelerator: Holds the gradient scaler, if fp16 needs one.
        optimizer: Optimizer over the parameters.
        parameters: Trainable parameters.
        max_grad_norm: Norm to clip gradients to; 0 for no clipping.
        retry: Retries parts that run out of memory.
    """

    in_backward = False
    partial = False
    accelerator: Accelerator
    optimizer: Any
    parameters: list[torch.nn.Parameter]
    max_grad_norm: float
    retry: Retry

    def __post_init__(self) -> None:
        # Set on the optimizer itself, because the gradient scaler calls it there.
        self.optimizer.step = RetryableStep(self.optimizer, self.retry)
        self._prepared = self.accelerator.prepare_optimizer(self.optimizer)

    def begin(self, learning_rate: float) -> None:
        """Set the learning rate of each group, by its own ratio."""
        set_learning_rate(self._prepared, learning_rate)

    def clip(self) -> float:
        """Clip all gradients by their common norm, which is returned."""
        self.accelerator.unscale_gradients()
        # It allocates only for the norms, then scales in place: a failed attempt has changed nothing.
        return self.retry.run(
            lambda: float(torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm or math.inf)),
            "in clipping the gradients",
            HINT,
        )

    def step(self) -> None:
        """Step the optimizer and drop the gradients."""
        self._prepared.step()
        self._prepared.zero_grad(set_to_none=True)

    def drop(self) -> None:
        """Drop the gradients. The scaler saw any overflow during clipping, and backs off."""
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.update()
        self._prepared.zero_grad(set_to_none=True)

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Context without effect: the caller drops the gradients."""
        yield

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's states."""
        settle(self.optimizer)
        state: dict[str, Any] = self._prepared.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the optimizer's states."""
        load_states(self.optimizer, state)


@dataclass
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
        fused_step: GPU kernel that does the whole update of AdamW with 8-bit states; None for the optimizer's own.
        square_sum: Sums the squared norms over processes with different shards.
    """

    parameters: Mapping[str, torch.nn.Parameter]
    make_optimizer: OptimizerMaker
    states_in_fp32: bool
    weight_decay: float
    max_grad_norm: float
    in_backward: bool
    retry: Retry = field(default_factory=Retry)
    kernels: Kernels | None = None
    fused_step: Step | None = None
    square_sum: Callable[[float], float] = float
    _learning_rate: float = field(default=0.0, init=False)
    _norms: list[torch.Tensor] = field(default_factory=list, init=False)
    _scale: float = field(default=1.0, init=False)
    _done: int = field(default=0, init=False)
    _rehearsing: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._limit = self.max_grad_norm or math.inf
        self._steppers = {
            name: _TensorStepper(
                parameter,
                self.make_optimizer,
                self.states_in_fp32,
                self.weight_decay,
                self.retry,
                self.kernels,
                self.fused_step,
            )
            for name, parameter in self.parameters.items()
        }
        if self.in_backward:
            for stepper in self._steppers.values():
                hooked: Any = stepper.parameter  # torch has no types for this
                hooked.register_post_accumulate_grad_hook(self._hook(stepper))

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
            self._norms = self.retry.run(
                lambda: [_norm(gradient) for gradient in gradients if gradient is not None],
                "in taking the norm of the gradients",
                HINT,
            )
        # Read from the device at once.
        norms: list[float] = torch.stack(self._norms).tolist() if self._norms else []
        norm = math.sqrt(self.square_sum(sum(value**2 for value in norms)))
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
                if self.kernels is not None:
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


@dataclass
class _TensorStepper:
    """A tensor and its optimizer.

    The optimizer works on a zero stand-in, so the stand-in's value after the step is the update alone, which is then
    added to the tensor with the rounding it needs. Optimizers whose step depends on the parameter's value, other than
    by weight decay, cannot be used. Where there is a kernel for all of it, the stand-in stays empty.

    If memory runs out, the optimizer part is retried with its states restored. Only small states need a copy: those as
    large as the tensor change in the optimizer's last call, after all allocations. Adding the update continues at the
    slice that failed. The result is the same except for the draws of stochastic rounding.
    """

    parameter: torch.nn.Parameter
    make_optimizer: OptimizerMaker
    fp32: bool
    weight_decay: float
    retry: Retry
    kernels: Kernels | None
    fused_step: Step | None
    _fresh: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        self._dtype = torch.float32 if self.fp32 else self.parameter.dtype
        self.weight_decay = self.weight_decay if self.parameter.dim() > 1 else 0.0
        self._renew()

    def _renew(self) -> None:
        self._stand_in = torch.nn.Parameter(self._nothing())
        self.optimizer = self.make_optimizer([self._stand_in])
        self._fused = self.fused_step if fits(self.optimizer, self.parameter) else None

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
        keep, done, kernels, weights = 1.0 - learning_rate * self.weight_decay, 0, self.kernels, self.parameter.data
        # Drawn on the host, from the generator that checkpoints save, without a device sync.
        seed = 0 if kernels is None and self._fused is None else int(torch.randint(1 << 31, ()))
        if self._fused is not None:
            self._step_fused(self._fused, learning_rate, keep=keep, scale=scale, seed=seed, wanted=wanted)
            return
        update = self._run_to_the_end(learning_rate, scale, wanted)

        def add() -> None:
            nonlocal done
            if kernels is not None:
                kernels.add_update(weights, update, keep=keep, seed=seed, wanted=wanted)
                return
            for end in add_slices(weights, update, keep=keep, begin=done):
                done = end

        self.retry.run(add, WHAT, HINT)

    def _step_fused(
        self, fused: Step, learning_rate: float, *, keep: float, scale: float, seed: int, wanted: torch.Tensor | None
    ) -> None:
        """Do the step by the kernel: nothing has changed if creating states or starting it fails."""
        (group,), fresh = self.optimizer.param_groups, not self.optimizer.state.get(self._stand_in)
        group["lr"] = learning_rate

        def run() -> None:
            gradient = self.parameter.grad
            if gradient is None:
                raise ValueError("The tensor has no gradient.")
            state = make_states(self.optimizer, self._stand_in, self.parameter.data)
            number = state["step"] + 1
            options: dict[str, Any] = {"keep": keep, "scale": scale, "seed": seed, "wanted": wanted}
            fused(self.parameter.data, gradient.contiguous(), {**state, "step": number}, group, **options)
            state["step"] = number

        def undo() -> None:
            if fresh:
                forget_state(self.optimizer, self._stand_in)

        self.retry.run(run, WHAT, HINT, undo)

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

        return self.retry.run(run, WHAT, HINT, undo)

    def rehearse(self) -> None:
        """Allocate the memory of a step."""
        if self._fresh and self._fused is not None:
            make_states(self.optimizer, self._stand_in, self.parameter.data)
        elif self._fresh:
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
        elif self.kernels is not None and gradient.is_contiguous():
            self.kernels.clear_unless(wanted, gradient)
        else:
            gradient.masked_fill_(wanted == 0, 0.0)
