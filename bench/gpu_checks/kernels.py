"""Checks of the fast paths: the fused functions in a model, and attention without a mask."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench.gpu_checks.models import WIDE, WINDOWED, ModelShape
from bench.gpu_checks.profiles import attention_kernels
from bench.gpu_checks.subjects import Found
from bench.gpu_checks.trainer import Stand, trainer
from core.errors import UserError
from core.worker.fused.attention import capability_of, is_rocm, trial_inputs, try_kernel
from core.worker.fused.attention_kernels import (
    Kernel,
    Sequences,
    attend_lower_right,
    attend_sequences,
    find_varlen,
    kernels_for,
    repeated,
)
from core.worker.fused.install import fuse
from core.worker.loss.loss import SupervisedLoss
from core.worker.model.adapters import TRAINED, attach_adapters
from core.worker.model.model import load_model, set_gradient_checkpointing, trainable_parameters
from core.worker.selftest import fast_paths
from core.worker.selftest.speed import best_seconds

#: Largest difference of the gradients, as a share of their norm, that rounding explains.
ALLOWED = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-4}
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
#: Tokens of a shared beginning, in front of rows of 2,048.
_PREFIX = 200

#: A model's loss and its gradients.
Passed = tuple[float, list[torch.Tensor]]


def check_3(stand: Stand) -> Found:
    """Every fused function by itself, and all of them in two layers of a model."""
    outcome = fast_paths.check(stand.bench(WIDE))
    device = torch.device("cuda" if stand.is_cuda else "cpu")
    figures: dict[str, Any] = {"trials": outcome.detail}
    wrong = [] if outcome.result != "fail" else [outcome.detail]
    for dtype in fast_paths.dtypes(device):
        if dtype == torch.float32 and stand.is_cuda:
            continue
        for case, apart in _in_model(stand, device, dtype).items():
            name = f"{NAMES[dtype]}, {case}"
            figures[name] = apart
            if not apart <= ALLOWED[dtype]:
                wrong.append(f"{name}: {apart:.1g} off where {ALLOWED[dtype]:.1g} is allowed")
    if wrong:
        return Found("fail", "; ".join(wrong), figures)
    return Found("pass", f"{outcome.detail} In two layers of a model, {len(figures) - 1} ways: the same.", figures)


def _in_model(stand: Stand, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """How far gradients of fused layers are from those of PEFT's and transformers' own, case by case."""
    from core.config.schema import MethodSection

    base = stand.model(WIDE)
    loaded = load_model(base, method="qlora", precision=NAMES[dtype], device=device.type, for_training=True)
    model = attach_adapters(loaded.model, MethodSection(), seed=1, base=base)
    model.train()
    for parameter in trainable_parameters(model):
        if not parameter.any():  # the second matrices begin as zeros, which would hide the first ones
            torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator(device).manual_seed(2))
    length = min(stand.length, 256)
    ids = torch.randint(100, 5000, (2, length), generator=torch.Generator().manual_seed(3)).to(device)
    cases = [(autocast, recomputed) for autocast in (True, False) for recomputed in (False, True)]
    if any(parameter.dtype != dtype for parameter in trainable_parameters(model)):
        # Adapters in fp32 on a base in 16 bits are what autocast is for.
        cases = [case for case in cases if case[0] or dtype == torch.float32]
    run = functools.partial(_pass, model, ids, dtype)
    plain = [run(*case) for case in cases]
    fuse(model, TRAINED)
    apart = {}
    for (autocast, recomputed), wanted in zip(cases, plain, strict=True):
        name = ("autocast" if autocast else "no autocast") + (", recomputed" if recomputed else "")
        apart[name] = difference(run(autocast, recomputed), wanted)
    return apart


def _pass(model: Any, ids: torch.Tensor, dtype: torch.dtype, autocast: bool, recomputed: bool) -> Passed:
    set_gradient_checkpointing(model, recomputed)
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.autocast(ids.device.type, dtype=dtype, enabled=autocast and dtype != torch.float32):
        loss = SupervisedLoss(model)(ids, mask)
    parameters = trainable_parameters(model)
    # The sum, since the gradients of a mean are too small for fp16.
    gradients = torch.autograd.grad(loss, parameters)
    return float(loss.detach()), [gradient.detach() for gradient in gradients]


def difference(found: Passed, wanted: Passed) -> float:
    """The difference of losses and gradients, as a share: of gradients by their common norm."""
    loss = abs(found[0] - wanted[0]) / max(abs(wanted[0]), 1e-12)
    apart = sum(
        float((one.float() - other.float()).square().sum()) for one, other in zip(found[1], wanted[1], strict=True)
    )
    whole = sum(float(other.float().square().sum()) for other in wanted[1])
    return max(loss, math.sqrt(apart / max(whole, 1e-30)))


# Kernels that batches meet.


def check_4(stand: Stand) -> Found:
    """Profile one step of each kind of batch."""
    long, short = stand.length, stand.length * 3 // 4
    prefix = stand.length // 3
    cases: dict[str, tuple[ModelShape, list[int], int, dict[str, Any]]] = {
        "padded": (WIDE, [long, short], 0, {"train.share_prefix": False}),
        "shared": (WIDE, [long, short], prefix, {}),
        "packed": (WIDE, [long, short], 0, {"train.packing": True}),
        "sliding": (WINDOWED, [long, short], 0, {"train.share_prefix": False}),
    }
    if stand.is_cuda:  # by masks windows cannot be packed
        cases["sliding, packed"] = (WINDOWED, [long, short], 0, {"train.packing": True})
    figures: dict[str, list[str]] = {}
    for name, (shape, lengths, shared, options) in cases.items():
        config = stand.config(shape, stand.rows(lengths * 2, shared=shared), {"train.batch_size": 2, **options})
        try:
            with trainer(stand, config) as made:
                made.step()
                with profiled(stand.is_cuda) as kernels:
                    made.step()
        except UserError as error:
            figures[name] = [f"refused: {error.message}"]
            continue
        figures[name] = attention_kernels(kernels)
    said = "; ".join(f"{name}: {', '.join(found[:3]) or 'none by its name'}" for name, found in figures.items())
    if not stand.is_cuda:
        return Found("measured", f"{said}.", figures)
    fine = any("flash" in name for name in figures["padded"])
    return Found("pass" if fine else "fail", f"{said}.", figures)


@contextlib.contextmanager
def profiled(cuda: bool) -> Iterator[list[tuple[str, float]]]:
    """Names and seconds of all that runs within the context, filled in at its end: kernels of a card, operations of a
    CPU."""
    from torch.profiler import ProfilerActivity, profile

    found: list[tuple[str, float]] = []
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        yield found
        if cuda:
            torch.cuda.synchronize()
    for event in profiler.key_averages():
        seconds = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
        if seconds > 0:
            found.append((event.key, seconds))


# Attention by itself.


def check_5(stand: Stand) -> Found:
    """Kernels without a mask against the mask: the same, and how fast."""
    device = torch.device("cuda" if stand.is_cuda else "cpu")
    dtype = torch.bfloat16 if stand.is_cuda else torch.float32
    trials = [
        try_kernel(kernel, trial_inputs(device, dtype, 8, 2, 128, 128), window=window)
        for window in (False, True)
        for kernel in kernels_for(capability_of(device), dtype, 128, 128, window=window, rocm=is_rocm(device))
        if kernel is not Kernel.MASKED
    ]
    wrong = [f"{trial.name}: {trial.reason}" for trial in trials if not trial.passed]
    seconds: dict[str, float] = {}
    apart: dict[str, float] = {}
    wanted: list[torch.Tensor] | None = None
    for name, way in _ways(stand, device).items():
        inputs = _inputs(stand, device, dtype)

        def work(way: Callable[..., torch.Tensor] = way, inputs: list[torch.Tensor] = inputs) -> list[torch.Tensor]:
            out = way(*inputs)
            return [out.detach(), *torch.autograd.grad(out.float().square().sum(), inputs)]

        try:
            found = work()
            seconds[name] = best_seconds(work, torch.cuda.synchronize if stand.is_cuda else lambda: None)
        except (RuntimeError, NotImplementedError) as error:
            wrong.append(f"{name}: {(str(error).splitlines() or [''])[0]}")
            continue
        wanted = wanted or found
        apart[name] = max(
            float((one.float() - other.float()).norm() / other.float().norm())
            for one, other in zip(found, wanted, strict=True)
        )
        if not apart[name] <= 1e-2:
            wrong.append(f"{name}: {apart[name]:.1g} off where 0.01 is allowed")
    fastest = min((taken for name, taken in seconds.items() if name != _MASK), default=None)
    speedup = seconds[_MASK] / fastest if fastest and _MASK in seconds else None
    figures = {
        "seconds": seconds,
        "apart": apart,
        "speedup": speedup,
        "trials": {trial.name: trial.worst for trial in trials},
    }
    if wrong:
        return Found("fail", "; ".join(wrong), figures)
    said = f"The same as by a mask: {', '.join(apart)}"
    if not stand.is_cuda:
        return Found("measured", f"{said}. On a CPU the mask is the way that is used.", figures)
    fine = speedup is not None and speedup > 1
    return Found("pass" if fine else "fail", f"{said}; the fastest takes 1/{speedup or 0:.1f} of its time.", figures)


_MASK = "mask"


def _inputs(stand: Stand, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """Queries, keys and values of a row behind a shared beginning: heads of an 8B model."""
    heads, key_heads, head = (4, 2, 16) if stand.tiny else (32, 8, 128)
    queries, keys = stand.length, stand.length + (16 if stand.tiny else _PREFIX)
    generator = torch.Generator().manual_seed(0)
    sizes = ((heads, queries), (key_heads, keys), (key_heads, keys))
    return [
        torch.randn(1, count, length, head, generator=generator).to(device, dtype).requires_grad_()
        for count, length in sizes
    ]


def _ways(stand: Stand, device: torch.device) -> dict[str, Callable[..., torch.Tensor]]:
    """Ways to attend, the mask first."""

    def masked(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        queries, keys, heads = query.shape[2], key.shape[2], query.shape[1]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
        return torch.nn.functional.scaled_dot_product_attention(
            query, repeated(key, heads), repeated(value, heads), attn_mask=mask
        )

    def sequences(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        flat = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
        lengths = Sequences((query.shape[2],), (key.shape[2],))
        return attend_sequences(flat[0], flat[1], flat[2], lengths, window=None, scale=None).transpose(0, 1)[None]

    ways: dict[str, Callable[..., torch.Tensor]] = {
        _MASK: masked,
        "lower-right bias": functools.partial(attend_lower_right, scale=None),
    }
    if stand.is_cuda and find_varlen() is not None:
        ways["variable length"] = sequences
    return ways
