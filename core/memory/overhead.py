"""Memory overhead of a process apart from its tensors: interpreter, libraries, tokenizer, allocator fragmentation.

Nothing here follows from shapes; the constants are measured by ``bench/memory.py``, or marked as assumptions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from core.memory.calibration import Calibration
from core.memory.phases import Phase
from core.memory.plan import Machine, Part
from core.models.architecture.architecture import Architecture

#: CUDA context, libraries and their workspaces; an assumption, not measured here.
CUDA_RUNTIME = 600 << 20
#: Fragmentation of the caching allocator, as a share of the memory in use; an assumption for expandable segments.
CUDA_FRAGMENTATION = 0.04
#: The same without expandable segments, which WSL 2 does not support; an assumption.
CUDA_FRAGMENTATION_FIXED = 0.09
#: Channels of NCCL and their buffers, where a run has several cards; an assumption, not measured here.
NCCL_BUFFERS = 256 << 20
#: Resident memory of the worker's interpreter and libraries before a model is loaded: CPython 3.11, torch 2.13 for
#: the CPU, transformers 5.24, peft 0.21, bitsandbytes 0.50; measured by bench/memory.py.
CPU_RUNTIME = 420 << 20
#: Additional memory of a CUDA build of torch: 252 MB with torch 2.10 for CUDA 12.8, 307 with 2.15 for CUDA 13.2.
CUDA_LIBRARIES = 280 << 20
#: Fragmentation of malloc: a constant, and a share of the largest transient memory. malloc keeps freed blocks
#: (core.worker.oom.retry) for the next phase, which needs no more; but fp32 logits do not fit into the freed
#: blocks of 16-bit logits, and hardly any large tensor fits into the freed blocks of SDPA's scores. Same measurements.
CPU_SLACK, CPU_FRAGMENTATION = 64 << 20, 0.05
#: With full training, long-lived tensors are scattered among transient ones, and the update of a large one does not fit
#: into the gaps: the loss is a share of the update's size. Fitted to seven configurations of the same measurements.
CPU_SCATTERED = 0.38
#: Weights that are converted at load and not quantized, as in LoRA in fp32, leave this share of their file behind; the
#: cause is unknown. Fitted to two configurations of the same measurements.
CPU_CONVERTED = 0.5
#: Bytes of a tokenizer per vocabulary entry, and at most per byte of its file; measured on vocabularies of 49,152 and
#: 128,000 tokens.
TOKENIZER_TOKEN, TOKENIZER_FILE = 1000, 19


def gpu_runtime(calibration: Calibration | None) -> int:
    """Memory of CUDA context and libraries, as measured or else assumed."""
    return CUDA_RUNTIME if calibration is None else calibration.runtime_bytes


def around_gpu(tensors: Iterable[Part], machine: Machine, cards: int = 1) -> list[Part]:
    """Overhead on a GPU.

    Args:
        tensors: Memory allocated at the peak.
        machine: The machine with its calibration.
        cards: Cards of the run.
    """
    used, calibration = sum(part.bytes for part in tensors), machine.calibration
    assumed = CUDA_FRAGMENTATION if machine.expandable else CUDA_FRAGMENTATION_FIXED
    share, source = assumed, "assumed" if machine.expandable else "assumed, as segments do not expand"
    if calibration is not None:
        share, source = calibration.fragmentation, calibration.source
    runtime_source = "assumed" if calibration is None else calibration.source
    return [
        Part("fragmentation", int(share * used), f"held by the allocator and not used; {source}"),
        Part("runtime", gpu_runtime(calibration), f"CUDA context and libraries; {runtime_source}"),
        Part("communication", NCCL_BUFFERS if cards > 1 else 0, "channels of NCCL between the cards; assumed"),
    ]


def around_cpu(model: Architecture, phases: Mapping[str, Phase], converted: int, machine: Machine) -> list[Part]:
    """Overhead on a CPU, whose process counts as a whole.

    Args:
        model: Base model, for its tokenizer.
        phases: Transient memory of each phase.
        converted: Size of the weight file if its weights are converted at load and not quantized.
        machine: The machine with its calibration.
    """
    most = max(phase.total for phase in phases.values())
    gaps = max(phase.gaps for phase in phases.values())
    scattered = CPU_SCATTERED * max(phase.update for phase in phases.values())
    unused = CPU_SLACK + CPU_FRAGMENTATION * most + gaps + scattered + CPU_CONVERTED * converted
    return [Part("fragmentation", int(unused), "held by malloc and not used"), *process(model, machine)]


def process(model: Architecture, machine: Machine) -> list[Part]:
    """Memory of a CPU process without any tensors."""
    calibration = machine.calibration
    runtime, what = CPU_RUNTIME + machine.cuda_build * CUDA_LIBRARIES, "the interpreter and its libraries"
    if calibration is not None:
        runtime, what = calibration.runtime_bytes, f"{what}; {calibration.source}"
    return [
        Part("tokenizer", _tokenizer_bytes(model), "the tokenizer's vocabulary and merges"),
        Part("runtime", runtime, what),
    ]


def _tokenizer_bytes(model: Architecture) -> int:
    by_vocabulary, size = TOKENIZER_TOKEN * model.vocabulary, model.tokenizer_bytes
    return by_vocabulary if size is None else min(by_vocabulary, TOKENIZER_FILE * size)
