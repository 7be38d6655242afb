"""Profiles of steps: kernels by class, and what a step would take on a card with other rates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from core.memory.calibration import rates_of

#: Class of kernels to what its names have in them, the first that matches: by the names of CUDA kernels of torch,
#: cuBLAS, bitsandbytes and this program, and of torch's operations on a CPU.
_NAMES = (
    ("optimizer", r"multi_tensor_apply|fused_?adam|koptimizer|kprecondition|adafactor|_foreach|clip_grad"),
    ("dequantize", r"dequant"),
    ("attention", r"flash|fmha|attention|sdpa"),
    ("CE", r"cross_entropy|nll|soft_?max|logsumexp"),
    ("norm", r"norm|moments|rsqrt"),
    (
        "GEMM",
        r"gemm|gemv|cutlass|cublas|nvjet|xmma|splitk|wgmma|matmul"
        r"|^aten::(mm|bmm|addmm_?|linear|baddbmm_?|_int_mm)$",
    ),
)
_CLASSES = tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in _NAMES)
ELEMENTWISE, IDLE = "elementwise", "idle"
CLASSES = ("GEMM", "dequantize", "attention", "norm", ELEMENTWISE, "CE", "optimizer", IDLE)


@dataclass(frozen=True)
class Rates:
    """Rates of a card: floating-point operations a second of matrix products, and bytes a second of its memory."""

    matrix: float
    memory: float


_PLANNED = rates_of("NVIDIA GeForce RTX 4090", None, cuda=True, wide=False)
#: Those that the memory plan estimates for a 4090.
RTX_4090 = Rates(_PLANNED.matrix, _PLANNED.memory)
#: Memory rates of cards by their data sheets; of others what a copy has reached is taken.
_SHEETS = {"H100": 3.35e12, "H200": 4.8e12}


def memory_rate(name: str, measured: float) -> float:
    """Memory rate of a card.

    Args:
        name: Its name.
        measured: Bytes a second of a copy.
    """
    return next((rate for part, rate in _SHEETS.items() if part in name), measured)


def classify(kernel: str) -> str:
    """The class of a kernel."""
    return next((name for name, pattern in _CLASSES if pattern.search(kernel)), ELEMENTWISE)


def by_class(kernels: Iterable[tuple[str, float]], wall: float) -> dict[str, float]:
    """Seconds of each class.

    Args:
        kernels: Names and seconds of what ran.
        wall: Seconds from the beginning to the end; what no kernel took of it is idle.
    """
    spent = dict.fromkeys(CLASSES, 0.0)
    for name, seconds in kernels:
        spent[classify(name)] += seconds
    spent[IDLE] = max(wall - sum(spent.values()), 0.0)
    return spent


def scaled(spent: Mapping[str, float], here: Rates, there: Rates = RTX_4090) -> dict[str, float]:
    """Seconds of each class on another card: matrix products by their rate, all other kernels by that of the memory.
    Idle time is the host's, and stays.

    Args:
        spent: Seconds here.
        here: Rates of the card that they are of.
        there: Rates of the other one.
    """
    factors = {"GEMM": here.matrix / there.matrix, IDLE: 1.0}
    return {name: seconds * factors.get(name, here.memory / there.memory) for name, seconds in spent.items()}


def attention_kernels(kernels: Iterable[tuple[str, float]]) -> list[str]:
    """The names of the attention kernels that ran, shortened, the longest-running first."""
    seconds: dict[str, float] = {}
    for name, taken in kernels:
        if classify(name) == "attention":
            short = re.sub(r"<.*", "", name).split("(")[0].removeprefix("void ")[:80]
            seconds[short] = seconds.get(short, 0.0) + taken
    return sorted(seconds, key=lambda name: -seconds[name])
