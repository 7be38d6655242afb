"""Check of a mixture's experts: grouped products against one expert after the other, and experts on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from bench.gpu_checks.subjects import Found
from bench.gpu_checks.trainer import Stand
from core.worker.fused.experts import takes_kernel
from core.worker.model import experts, experts_implementation
from core.worker.model.activation_offload import CudaLanes
from core.worker.model.expert_offload import ExpertOffload
from core.worker.model.experts import quantize_experts
from core.worker.selftest.speed import best_seconds

#: Largest difference of gradients, as a share of their largest, that rounding in bf16 explains.
ALLOWED = 2e-2
#: Layers of experts that are brought from the host.
LAYERS = 6
#: Tokens at once.
TOKENS = (2048, 8192)


class _Layer(torch.nn.Module):
    """The experts of one layer of Qwen3-30B-A3B, with a residual."""

    def __init__(self, config: Any, device: torch.device, seed: int) -> None:
        super().__init__()
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

        with torch.device("meta"):
            made = Qwen3MoeExperts(config)
        generator = torch.Generator(device).manual_seed(seed)

        def matrices(shape: torch.Size) -> Iterator[torch.Tensor]:
            for _ in range(shape[0]):
                yield torch.randn(shape[1:], device=device, dtype=torch.bfloat16, generator=generator) * 0.02

        for name in ("gate_up_proj", "down_proj"):
            shape = getattr(made, name).shape
            setattr(made, name, quantize_experts(matrices(shape), shape))
        self.experts = made

    def forward(self, tokens: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = tokens + self.experts(tokens, index, weights)
        return found


class _Stack(torch.nn.Module):
    """Layers of experts, each recomputed in backward as a run does it."""

    def __init__(self, config: Any, device: torch.device, layers: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(_Layer(config, device, seed) for seed in range(layers))
        experts_implementation.use_own_experts(self)

    def forward(self, tokens: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            made = torch.utils.checkpoint.checkpoint(layer, tokens, index, weights, use_reentrant=False)
            tokens = made if isinstance(made, torch.Tensor) else tokens
        return tokens


@contextmanager
def _grouped(on: bool) -> Iterator[None]:
    with mock.patch.object(experts_implementation, "is_grouped", return_value=on):
        yield


def check_21(stand: Stand) -> Found:
    """Time a layer of experts forward and backward, both ways; and six layers of them here and on the host."""
    from transformers import Qwen3MoeConfig

    device = torch.device("cuda" if stand.is_cuda else "cpu")
    sizes = (64, 64, 8, 2) if stand.tiny else (2048, 768, 128, 8)
    hidden, width, count, active = sizes
    config = Qwen3MoeConfig(
        hidden_size=hidden, moe_intermediate_size=width, num_experts=count, num_experts_per_tok=active
    )
    figures: dict[str, Any] = {}
    one = _Stack(config, device, 1)
    for tokens in (32,) if stand.tiny else TOKENS:
        figures[f"{tokens} tokens"] = _both_ways(one, config, tokens, device)
    wrong = [f"{name}: {case['apart']:.1g} apart" for name, case in figures.items() if not case["apart"] <= ALLOWED]
    told = ", ".join(
        f"{name} {case['grouped']['seconds'] * 1e3:.1f} ms grouped and {case['single']['seconds'] * 1e3:.1f} one by one"
        for name, case in figures.items()
    )
    if stand.is_cuda:
        rows = torch.empty(8, hidden, device=device, dtype=torch.bfloat16)
        figures["kernel"] = takes_kernel(rows, torch.empty(2, hidden, width, device=device, dtype=torch.bfloat16))
        del one
        figures["host"] = host = _from_host(config, TOKENS[-1], device)
        told += (
            f"; {LAYERS} layers {host['here'] * 1e3:.0f} ms on the card, {host['there'] * 1e3:.0f} ms from the host at "
            f"{host['rate'] / 1e9:.1f} GB/s"
        )
        if not host["same"]:
            wrong.append("gradients with experts on the host are others")
    if wrong:
        return Found("fail", "; ".join(wrong), figures)
    return Found("pass" if stand.is_cuda else "measured", f"Forward, recomputation and backward: {told}.", figures)


def _inputs(config: Any, tokens: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator(device).manual_seed(7)
    hidden = torch.randn(tokens, config.hidden_size, device=device, dtype=torch.bfloat16, generator=generator)
    scores = torch.randn(tokens, config.num_experts, device=device, generator=generator)
    weights, index = scores.softmax(-1).topk(config.num_experts_per_tok)
    return hidden.requires_grad_(), index, weights.to(torch.bfloat16)


def _wait(device: torch.device) -> Callable[[], Any]:
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def _pass(stack: _Stack, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    hidden = inputs[0]
    (gradient,) = torch.autograd.grad(stack(*inputs).float().square().sum(), hidden)
    return gradient


def _both_ways(stack: _Stack, config: Any, tokens: int, device: torch.device) -> dict[str, Any]:
    inputs = _inputs(config, tokens, device)
    found: dict[str, Any] = {}
    gradients = {}
    for name, on in (("single", False), ("grouped", True)):
        with _grouped(on):
            gradients[name] = _pass(stack, inputs)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds = best_seconds(lambda: _pass(stack, inputs), _wait(device))
            peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
        found[name] = {"seconds": seconds, "peak": peak}
    apart = (gradients["grouped"] - gradients["single"]).float().abs().max() / gradients["single"].float().abs().max()
    return {**found, "apart": float(apart)}


def _from_host(config: Any, tokens: int, device: torch.device) -> dict[str, Any]:
    """The same layers on the card and on the host: gradients to the last bit, seconds, and the rate of the copies."""
    inputs = _inputs(config, tokens, device)
    stack = _Stack(config, device, LAYERS)
    wanted = _pass(stack, inputs)
    here = best_seconds(lambda: _pass(stack, inputs), torch.cuda.synchronize)
    offload = ExpertOffload(CudaLanes(), device)
    for name, module in experts.experts_of(stack):
        for matrix in experts.matrix_names(module):
            offload.take(f"{name}.{matrix}", getattr(module, matrix))
    offload.install(stack, list(stack.layers))
    same = torch.equal(_pass(stack, inputs), wanted)
    there = best_seconds(lambda: _pass(stack, inputs), torch.cuda.synchronize)
    mover = offload.mover
    if mover is None:
        raise ValueError("There are no experts to move.")

    def bring() -> None:
        for number in range(LAYERS):
            mover.fetch(number, returns=False)

    rate = offload.store.bytes / best_seconds(bring, torch.cuda.synchronize)
    return {"same": same, "here": here, "there": there, "rate": rate, "unpinned": offload.store.unpinned}
