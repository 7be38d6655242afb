"""Trial of a fast path: forward and backward on the device that it is for, compared with the plain way."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

#: Largest allowed difference by dtype, as a share of a tensor's largest value: the last two bits of 16, and the noise
#: of sums in fp32.
ALLOWED = {torch.bfloat16: 2**-6, torch.float16: 2**-9, torch.float32: 1e-5}

#: A way to compute something: tensors to a tensor, or several.
Way = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Trial:
    """The result of a trial.

    Args:
        name: The fast path.
        dtype: The dtype of the arithmetic.
        worst: Largest relative difference of outputs and gradients; infinite where they could not be compared.
        allowed: Limit of ``worst``.
        reason: Cause of the failure in words; None for a trial that passed.
    """

    name: str
    dtype: torch.dtype
    worst: float
    allowed: float
    reason: str | None = None

    @property
    def passed(self) -> bool:
        """True if the fast path computes the same."""
        return self.reason is None and self.worst <= self.allowed


def compare(name: str, fast: Way, plain: Way, inputs: Sequence[torch.Tensor], allowed: float | None = None) -> Trial:
    """Run a fast path and its plain form, forward and backward, and compare outputs and gradients.

    Nothing is raised: an exception of either is a failed trial. Both start from the same random state; the caller's is
    restored.

    Args:
        name: The fast path.
        fast: The fast path; it may change its inputs, which are copies.
        plain: The plain form.
        inputs: Arguments of both, on the device; gradients are compared for inputs that require them.
        allowed: Largest relative difference; by default that of :data:`ALLOWED` for the dtype of the first input.
    """
    dtype, device = inputs[0].dtype, inputs[0].device
    limit = ALLOWED[dtype] if allowed is None else allowed
    worst = math.inf
    try:
        with _random_state_kept(device):
            wanted = _outputs_and_gradients(plain, inputs)
            found = _outputs_and_gradients(fast, inputs)
        worst = _worst(found, wanted)
    except Exception as error:  # kernels, compilers and drivers can raise anything
        first = (str(error).splitlines() or [""])[0]
        return Trial(name, dtype, math.inf, limit, f"{type(error).__name__}: {first}")
    return Trial(name, dtype, worst, limit, None if worst <= limit else f"differs by {worst:.2g}, {limit:.2g} allowed")


def _outputs_and_gradients(way: Way, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(inputs[0].device.type, enabled=False):
        # Not torch.manual_seed, which seeds every card.
        torch.default_generator.manual_seed(0)
        if inputs[0].device.type == "cuda":
            torch.cuda.manual_seed(0)
        # Copies keep the strides: non-contiguous inputs are a part of the trial.
        copies = [_copy(tensor) for tensor in inputs]
        # An in-place path would fail on a leaf, and meets none in a model.
        made = way(*(tensor.view_as(tensor) for tensor in copies))
        outputs = [made] if isinstance(made, torch.Tensor) else list(made)
        kept = [output.detach().clone() for output in outputs]
        learned = [tensor for tensor in copies if tensor.requires_grad]
        if not learned:
            return kept
        seen = [output for output in outputs if output.requires_grad]
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(output.shape, generator=generator).to(output) for output in seen]
        return [*kept, *torch.autograd.grad(seen, learned, weights)]


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return copy.copy_(tensor.detach()).requires_grad_(tensor.requires_grad)


def _worst(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    if len(found) != len(wanted):
        raise ValueError(f"{len(found)} tensors instead of {len(wanted)}")
    worst = 0.0
    for ours, theirs in zip(found, wanted, strict=True):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise ValueError(f"{ours.dtype} {list(ours.shape)} instead of {theirs.dtype} {list(theirs.shape)}")
        largest = float(theirs.float().abs().max())
        difference = float((ours.float() - theirs.float()).abs().max())
        if not math.isfinite(difference) or not math.isfinite(largest):
            return math.inf
        if difference:
            worst = max(worst, difference / largest if largest else math.inf)
    return worst


@contextlib.contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    state = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    where = torch.cuda.device(device) if cuda is not None else contextlib.nullcontext()
    try:
        with where:
            yield
    finally:
        torch.set_rng_state(state)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
