"""Checks of 8B: recomputation against micro-batches, memory, the profile of a step, and decoding."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench.gpu_checks.kernels import profiled
from bench.gpu_checks.models import EIGHT, ONE
from bench.gpu_checks.profiles import IDLE, Rates, by_class, memory_rate, scaled
from bench.gpu_checks.subjects import Found
from bench.gpu_checks.trainer import Stand, Trainer, tokens_per_second, trainer
from core.chat.request import GenerationSettings
from core.worker.generate.decoding import BatchDecoder, KeyValues, Sampler
from core.worker.model.model import decoder_layers, evaluation_mode
from core.worker.oom.retry import release
from core.worker.selftest.memory import predicted_total
from core.worker.selftest.speed import measure
from core.worker.setup.memory_decision import predict_memory

ROWS = 4
#: Gain of keeping activations that is looked for.
GAIN = 0.2
#: How far the plan may be from the peak.
ERROR = 0.07


@dataclass(frozen=True)
class Way:
    """A way through the rows of a step.

    Args:
        rows: Rows of a micro-batch.
        recomputed: Whether activations are recomputed.
        kept: With that, the share of the layers whose activations are kept.
    """

    rows: int
    recomputed: bool
    kept: float = 0.0

    @property
    def name(self) -> str:
        """Its name."""
        how = "recomputed" if self.recomputed else "kept"
        some = f"{self.kept:.0%} of the layers kept" if self.kept else how
        return f"{self.rows} {'row' if self.rows == 1 else 'rows'}, {some}"


WAYS = (Way(1, False), Way(2, True), Way(4, True), Way(2, True, 0.5), Way(2, False))


def eight(stand: Stand) -> Trainer:
    """The training of 8B, which the checks of this process share."""
    if "eight" not in stand.kept:
        rows = stand.rows([stand.length] * ROWS * 2)
        config = stand.config(EIGHT, rows, {"train.batch_size": ROWS})
        stand.kept["eight"] = Trainer(stand, config)
    made: Trainer = stand.kept["eight"]
    return made


def settle(made: Trainer, way: Way, length: int) -> None:
    """Put a way in force, as the plan or a shortage would."""
    state, checkpointing = made.parts.state, made.parts.micro_batches.checkpointing
    state.token_budget = way.rows * length
    state.checkpointing, state.offloading = way.recomputed, False
    state.kept_layers = round(way.kept * len(decoder_layers(made.parts.loaded.model)))
    checkpointing.apply()


def measured_way(stand: Stand, made: Trainer, way: Way) -> dict[str, Any]:
    """Speed and memory of a way: a step that does not count, and some that do."""
    settle(made, way, stand.length)
    if stand.is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    made.step()
    steps = made.steps(1 if stand.tiny else 2)
    state = made.parts.state
    # What does not fit is cut by the run itself.
    fits = state.token_budget == way.rows * stand.length and state.checkpointing == way.recomputed
    figures: dict[str, Any] = {"tokens_per_second": tokens_per_second(steps), "fits": fits}
    if stand.is_cuda:
        figures |= peaks(made)
    return figures


def peaks(made: Trainer) -> dict[str, Any]:
    """Peaks of a card since they were reset, and the plan's prediction for what the training does now."""
    stats = torch.cuda.memory_stats()
    parts = predict_memory(made.config, made.parts.meter.planner, made.parts.dataset, made.parts.state)
    return {
        "peak_bytes": int(stats["allocated_bytes.all.peak"]),
        "reserved_bytes": int(stats["reserved_bytes.all.peak"]),
        "predicted_bytes": predicted_total(parts, cuda=True) if parts else None,
    }


def _cases(stand: Stand) -> dict[str, dict[str, Any]]:
    if "cases" not in stand.kept:
        made = eight(stand)
        memory = made.parts.memory
        stand.kept["plan"] = {
            "token_budget": memory.token_budget,
            "recomputed": memory.checkpointing,
            "kept_layers": memory.kept_layers,
            "reason": memory.checkpointing_reason,
        }
        stand.kept["cases"] = {way.name: measured_way(stand, made, way) for way in WAYS}
    cases: dict[str, dict[str, Any]] = stand.kept["cases"]
    return cases


def check_6(stand: Stand) -> Found:
    """Train the same step in several ways."""
    cases = _cases(stand)
    fitting = {name: case for name, case in cases.items() if case["fits"]}
    name = max(fitting, key=lambda name: float(fitting[name]["tokens_per_second"]), default="")
    recomputed = fitting.get(WAYS[1].name)
    if not name or recomputed is None:
        return Found("fail", "Two recomputed rows do not fit, against which the others are compared.", {"cases": cases})
    gain = fitting[name]["tokens_per_second"] / recomputed["tokens_per_second"] - 1
    figures = {"cases": cases, "fastest": {"name": name, **fitting[name]}, "gain": gain, "plan": stand.kept["plan"]}
    said = f"{name}: {fitting[name]['tokens_per_second']:,.0f} tokens/s, {gain:+.0%} against 2 rows recomputed."
    if not stand.is_cuda or stand.tiny:
        return Found("measured", said, figures)
    return Found("pass" if gain > GAIN else "fail", said, figures)


def check_7(stand: Stand) -> Found:
    """Compare peaks with the plan."""
    cases = {name: case for name, case in _cases(stand).items() if case["fits"]}
    shares = [case["reserved_bytes"] / case["peak_bytes"] - 1 for case in cases.values()]
    # Beside 8B, whose tensors are no part of it.
    release()
    before = torch.cuda.memory_allocated()
    rows = stand.rows([stand.length] * ROWS)
    with trainer(stand, stand.config(ONE, rows, {"method.name": "lora", "train.batch_size": 2})) as made:
        torch.cuda.reset_peak_memory_stats()
        made.steps(2)
        cases["1B in 16 bits"] = peaks(made)
        cases["1B in 16 bits"]["peak_bytes"] -= before
    errors = {name: plan_error(case) for name, case in cases.items()}
    known = {name: error for name, error in errors.items() if error is not None}
    worst = max((abs(error) for error in known.values()), default=None)
    figures = {"errors": errors, "worst": worst, "fragmentation": sum(shares) / max(len(shares), 1), "cases": cases}
    said = "; ".join(f"{name} {error:+.1%}" for name, error in known.items())
    fine = worst is not None and worst <= ERROR
    return Found(
        "pass" if fine else "fail",
        f"Predicted against measured: {said}; {ERROR:.0%} is allowed. The allocator held "
        f"{figures['fragmentation']:.1%} more than tensors took.",
        figures,
    )


def plan_error(case: dict[str, Any]) -> float | None:
    """Error of the plan: its excess over the measured peak, as a share; None without a prediction."""
    predicted = case.get("predicted_bytes")
    return None if not predicted else float(predicted / case["peak_bytes"] - 1)


def check_8(stand: Stand) -> Found:
    """Profile steps, kept and recomputed, and scale them."""
    rates = measure(stand.bench(ONE))
    name = str(stand.device.get("name", ""))
    here = Rates(rates.matrix, memory_rate(name, rates.memory))
    figures: dict[str, Any] = {"matrix_rate": rates.matrix, "memory_rate": here.memory, "copy_rate": rates.memory}
    made = eight(stand)
    for key, way in (("kept", WAYS[0]), ("recomputed", WAYS[1])):
        settle(made, way, stand.length)
        made.step()
        began = time.monotonic()
        made.step()
        wall = time.monotonic() - began
        with profiled(stand.is_cuda) as kernels:
            step = made.step()
        spent = by_class(kernels, wall)
        there = scaled(spent, here) if stand.is_cuda else {}
        figures[key] = {
            "tokens": step.tokens,
            "seconds": spent,
            "wall_seconds": wall,
            "scaled": there,
            "scaled_seconds": sum(there.values()) if there else None,
            "longest": sorted(kernels, key=lambda kernel: -kernel[1])[:25],
        }
    spent = figures["kept"]["seconds"]
    said = ", ".join(f"{part} {1000 * taken:.0f}" for part, taken in spent.items() if part != IDLE or stand.is_cuda)
    scale = figures["kept"]["scaled_seconds"]
    more = "" if scale is None else f" Scaled to a 4090: {figures['kept']['tokens'] / scale:,.0f} tokens/s."
    return Found("measured", f"Milliseconds of a step, kept: {said}.{more}", figures)


# Decoding.


def check_17(stand: Stand) -> Found:
    """Answer one row as chat does, and many as evaluation does."""
    loaded = eight(stand).parts.loaded
    network = loaded.model.get_base_model()
    tokens, prompt = (4, 16) if stand.tiny else (64, 256)
    generator = torch.Generator().manual_seed(5)

    def draw() -> list[int]:
        drawn: list[int] = torch.randint(100, 5000, (prompt,), generator=generator).tolist()
        return drawn

    figures: dict[str, Any] = {}
    with torch.no_grad(), evaluation_mode(loaded.model):
        for temperature in (0.0, 0.7):
            sampler = Sampler(GenerationSettings(temperature=temperature, seed=1))
            figures[f"chat {temperature:g}"] = _chat(stand, network, draw(), sampler, tokens)
        for rows in (2, 4) if stand.tiny else (8, 32):
            decoder = BatchDecoder(network, [draw() for _ in range(rows)], loaded.pad_id, frozenset())
            decoder.step()
            seconds = _timed(stand, lambda decoder=decoder: [decoder.step() for _ in range(tokens)])  # type: ignore[misc]
            figures[f"{rows} rows"] = rows * tokens / seconds
    said = ", ".join(f"{name}: {rate:.0f}" for name, rate in figures.items())
    return Found("measured", f"Tokens a second with an adapter on 4 bits: {said}.", figures)


def _chat(stand: Stand, network: Any, prompt: list[int], sampler: Sampler, tokens: int) -> float:
    """Tokens a second after the first."""
    state = KeyValues(network)
    logits = state.read(prompt, lambda: False)
    if logits is None:
        raise ValueError("The prompt is empty.")
    chosen = [sampler.choose(logits[0])]

    def answer() -> None:
        for _ in range(tokens):
            chosen.append(sampler.choose(state.extend(torch.tensor([chosen[-1:]]))[0]))

    return tokens / _timed(stand, answer)


def _timed(stand: Stand, work: Callable[[], Any]) -> float:
    began = time.monotonic()
    work()
    if stand.is_cuda:
        torch.cuda.synchronize()
    return max(time.monotonic() - began, 1e-9)
