"""Check of compilation."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from bench.gpu_checks.models import WIDE
from bench.gpu_checks.subjects import Found
from bench.gpu_checks.trainer import Stand, tokens_per_second, trainer


def check_15(stand: Stand) -> Found:
    """Train two layers as wide as 8B's, not compiled and compiled, with all that has kept layers from it."""
    compiled = {"train.compile": True}
    held_out = {"data.eval": str(stand.rows([stand.length // 2] * 4)), "eval.baseline": True}
    cases: dict[str, dict[str, Any]] = {
        "not compiled": {},
        "compiled": compiled,
        "after an evaluation": {**compiled, **held_out},
        "packed": {**compiled, "train.packing": True},
        "recomputed": {**compiled, "memory.gradient_checkpointing": "on"},
    }
    figures = {name: _case(stand, options) for name, options in cases.items()}
    base = figures["not compiled"]["tokens_per_second"]
    said = "; ".join(
        f"{name} {case['tokens_per_second'] / base - 1:+.0%}"
        + (f", first step {case['first_seconds']:.0f} s" if "train.compile" in cases[name] else "")
        for name, case in figures.items()
        if name != "not compiled"
    )
    limited = [name for name, case in figures.items() if case["limit_hit"]]
    more = f" The limit of recompilations was hit: {', '.join(limited)}." if limited else ""
    return Found("fail" if limited else "measured", f"Tokens a second against not compiled: {said}.{more}", figures)


def _case(stand: Stand, options: dict[str, Any]) -> dict[str, Any]:
    """First step, speed and what the compiler counted."""
    import torch._dynamo as dynamo
    from torch._dynamo.utils import counters

    dynamo.reset()
    counters.clear()
    # Lengths differ, as they do in data.
    lengths = [stand.length - 16 * number for number in range(12)]
    config = stand.config(WIDE, stand.rows(lengths), {"train.batch_size": 2, **options})
    with _limits() as limits, trainer(stand, config) as made:
        if made.parts.evaluations.evaluator is not None:
            made.parts.evaluations.evaluator.measure(0, lambda *_: None)
        began = time.monotonic()
        made.step()
        first = time.monotonic() - began
        made.steps(5)
        speed = tokens_per_second(made.steps(6))
    frames = {name: int(count) for name, count in counters["frames"].items()}
    breaks = sum(counters["graph_break"].values())
    return {
        "first_seconds": first,
        "tokens_per_second": speed,
        "frames": frames,
        "graph_breaks": breaks,
        "limit_hit": bool(limits),
    }


class _Limits(logging.Handler):
    """Keeps what the compiler says of its limits."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message that a limit was hit."""
        message = record.getMessage()
        if "hit config." in message:
            self.told.append(message)


@contextlib.contextmanager
def _limits() -> Iterator[list[str]]:
    """Inside, messages of limits that were hit."""
    handler, logger = _Limits(), logging.getLogger("torch._dynamo.convert_frame")
    logger.addHandler(handler)
    try:
        yield handler.told
    finally:
        logger.removeHandler(handler)
