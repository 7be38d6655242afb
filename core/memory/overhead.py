"""What a process takes around its tensors: interpreter and libraries, the tokenizer, what the allocator holds unused.

Nothing here follows from shapes; the constants are measured by ``bench/memory.py``, or assumed where they say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from core.memory.phases import Phase
from core.memory.plan import Part
from core.models.architecture.architecture import Architecture

#: What a CUDA context, its libraries and their workspaces take; an assumption, not measured here.
CUDA_RUNTIME = 600 << 20
#: What the caching allocator holds beyond what is used of it; an assumption for growing segments.
CUDA_FRAGMENTATION = 0.04
#: Resident memory of the worker's interpreter and libraries before a model is loaded: CPython 3.11, torch 2.13 for
#: the CPU, transformers 5.24, peft 0.21, bitsandbytes 0.50; measured by bench/memory.py.
CPU_RUNTIME = 420 << 20
#: What malloc holds beyond what is used of it: so much always, and a share of the most that comes and goes. It keeps
#: what is freed (core.worker.process.malloc) for the next moment, which needs no more; but where logits in 16 bit
#: were, those in fp32 do not fit, and where SDPA's scores were, hardly anything that is large. Measured by the same.
CPU_SLACK, CPU_FRAGMENTATION = 64 << 20, 0.05
#: Where weights are trained, tensors that stay come to lie between those that go, and an update of a large one does not
#: fit there: what is lost is a share of what it takes. Chosen on seven configurations of the same.
CPU_SCATTERED = 0.38
#: Weights that are converted in loading and not quantized, as those of LoRA in fp32, leave as much more as this share
#: of their file; why is not known. Chosen on two configurations of the same.
CPU_CONVERTED = 0.5
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


def around_cpu(model: Architecture, phases: Mapping[str, Phase], converted: int) -> list[Part]:
    """On a CPU, whose process counts as a whole.

    Args:
        model: For its tokenizer.
        phases: What comes and goes at each moment.
        converted: Bytes of the file whose weights are converted in loading and not quantized.
    """
    most = max(phase.total for phase in phases.values())
    gaps = max(phase.gaps for phase in phases.values())
    scattered = CPU_SCATTERED * max(phase.update for phase in phases.values())
    unused = CPU_SLACK + CPU_FRAGMENTATION * most + gaps + scattered + CPU_CONVERTED * converted
    return [Part("fragmentation", int(unused), "held by malloc and not used"), *process(model)]


def process(model: Architecture) -> list[Part]:
    """A CPU's process without any tensors."""
    return [
        Part("tokenizer", _tokenizer_bytes(model), "the tokenizer's vocabulary and merges"),
        Part("runtime", CPU_RUNTIME, "the interpreter and its libraries"),
    ]


def _tokenizer_bytes(model: Architecture) -> int:
    by_vocabulary, size = TOKENIZER_TOKEN * model.vocabulary, model.tokenizer_bytes
    return by_vocabulary if size is None else min(by_vocabulary, TOKENIZER_FILE * size)
