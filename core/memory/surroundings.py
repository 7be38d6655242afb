"""What a process takes around its tensors: interpreter and libraries, the tokenizer, what the allocator holds unused.

Nothing here follows from shapes; the constants are measured by ``bench/memory.py``, or assumed where they say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from core.memory.architecture import Architecture
from core.memory.phases import Phase
from core.memory.plan import Part
from core.memory.sizes import optimizer_bytes
from core.memory.steps import FP32
from core.memory.weights import Tensors

#: What a CUDA context, its libraries and their workspaces take; an assumption, not measured here.
CUDA_RUNTIME = 600 << 20
#: What the caching allocator holds beyond what is used of it; an assumption for growing segments.
CUDA_FRAGMENTATION = 0.04
#: Resident memory of the worker's interpreter and libraries before a model is loaded: CPython 3.11, torch 2.13 for
#: the CPU, transformers 5.24, peft 0.21, bitsandbytes 0.50; measured by bench/memory.py.
CPU_RUNTIME = 420 << 20
#: What malloc holds beyond what is used of it: so much always; a share of the most that tensors have taken from its
#: heap; and what of this the worst moment does not use, up to a limit, as tensors of over 32 MiB are not of the heap
#: and are given back at once. Measured by the same, and chosen so that a plan is rather too large than too small.
CPU_SLACK, CPU_FRAGMENTATION, CPU_RETAINED = 120 << 20, 0.06, 256 << 20
#: Where weights are trained, their states lie between what activations leave, and what is left between them is lost: a
#: share of states and gradients, but for tensors of over 32 MiB. Chosen on seven configurations of the same.
CPU_SCATTERED, CPU_LARGE_TENSOR = 0.25, 32 << 20
#: What a tokenizer takes for each token that it knows, and at most for each byte of its file; measured on vocabularies
#: of 49,152 and 128,000 tokens.
TOKENIZER_TOKEN, TOKENIZER_FILE = 1000, 19


def around_gpu(tensors: Iterable[Part]) -> list[Part]:
    """On a GPU.

    Args:
        tensors: What the allocator gives out at the peak.
    """
    used = sum(part.bytes for part in tensors)
    return [
        Part("fragmentation", int(CUDA_FRAGMENTATION * used), "held by the allocator and not used; assumed"),
        Part("runtime", CUDA_RUNTIME, "CUDA context and libraries; assumed"),
    ]


def around_cpu(model: Architecture, phases: Mapping[str, Phase], worst: str, scattered: float) -> list[Part]:
    """On a CPU, whose process counts as a whole.

    Args:
        model: For its tokenizer.
        phases: What comes and goes at each moment.
        worst: The moment of the peak.
        scattered: As of :func:`scattered_bytes`.
    """
    heap = max(phase.heap for phase in phases.values())
    # At each moment the heap is as large as it has been at any, within the limit.
    held = max(phase.total + min(heap - phase.heap, CPU_RETAINED) for phase in phases.values())
    unused = CPU_SLACK + CPU_FRAGMENTATION * heap + held - phases[worst].total + scattered
    return [
        Part("fragmentation", int(unused), "held by malloc from other moments, and not used"),
        *process(model),
    ]


def process(model: Architecture) -> list[Part]:
    """A CPU's process without any tensors."""
    return [
        Part("tokenizer", _tokenizer_bytes(model), "the tokenizer's vocabulary and merges"),
        Part("runtime", CPU_RUNTIME, "the interpreter and its libraries"),
    ]


def scattered_bytes(tensors: Tensors, optimizer: str, gradients: int) -> float:
    """What states and gradients of the model's own weights leave unused between them on a CPU.

    Args:
        tensors: What is trained.
        optimizer: As ``train.optimizer``.
        gradients: Bytes of an element of those gradients that stay; 0 where they come and go.
    """
    small = [
        (optimizer_bytes(optimizer, rows * columns, columns) + gradients * rows * columns) * count
        for rows, columns, count in tensors
        if FP32 * rows * columns < CPU_LARGE_TENSOR
    ]
    return CPU_SCATTERED * sum(small)


def _tokenizer_bytes(model: Architecture) -> int:
    by_vocabulary, size = TOKENIZER_TOKEN * model.vocabulary, model.tokenizer_bytes
    return by_vocabulary if size is None else min(by_vocabulary, TOKENIZER_FILE * size)
