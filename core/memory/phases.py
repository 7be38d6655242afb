"""Phases of a micro-batch: transient memory at the moments that may be the peak; and the overhead of the process around
them: interpreter, libraries, tokenizer, allocator fragmentation.

The overhead does not follow from shapes; its constants are measured by ``bench/memory.py``, or marked as assumptions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from core.config.derived import FP32_STATES, updates_in_backward
from core.config.schema import Config
from core.memory.batching import chunk_positions, slice_positions
from core.memory.calibration import Calibration
from core.memory.plan import Machine, MicroBatch, Part
from core.memory.sizes import FP32, OFFLOAD_IN_FLIGHT, Arithmetic
from core.memory.weights import Tensors
from core.models.architecture.architecture import Architecture
from core.models.architecture.measuring import LayerGrowth, Passes, peak_at

#: Elements of a slice of the update, and bytes per element: the sum in fp32, random bits, and their mask.
SLICE, SLICE_BYTES = 1 << 24, 2 * FP32 + 4

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


@dataclass(frozen=True)
class Phase:
    """Memory alive at a moment, in bytes: kept for backward, kept for the adapters, the running layer, the loss, its
    logits.

    ``gaps`` is fragmentation: freed blocks smaller than the tensors that follow. ``gradients`` and ``update`` are of
    weights that are updated inside backward, or after it.
    """

    kept: float
    adapters: float
    layer: float
    loss: float
    logits: float
    gaps: float = 0.0
    gradients: float = 0.0
    update: float = 0.0

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return self.kept + self.adapters + self.layer + self.loss + self.logits + self.gradients + self.update


@dataclass(frozen=True)
class _LayerMemory:
    """Activation memory of a layer in bytes, for a given micro-batch.

    Args:
        kept: Kept for backward, without the casts of the adapters' weights.
        casts: Copies of the adapters' weights in the dtype of the products.
        forward: Peak of the forward pass, including kept tensors.
        again: Peak of the recomputation of activations and the backward pass that follows at once.
        backward: Peak of the backward pass without recomputation.
    """

    kept: int
    casts: int
    forward: int
    again: int
    backward: int


def phases_of(
    model: Architecture, how: Arithmetic, passes: Passes, batch: MicroBatch, *, kept_layers: int, offload: bool = False
) -> dict[str, Phase]:
    """Memory of a micro-batch at the two moments that may be the peak: ``loss`` and ``backward``.

    Args:
        model: The base model.
        how: Dtypes and kernels.
        passes: Passes of its layers.
        batch: The micro-batch.
        kept_layers: Number of last layers whose activations are kept; the others are recomputed.
        offload: Whether checkpointed layer inputs are offloaded to host memory.
    """
    regime, tokens, row = passes.regime(batch.length), batch.tokens, batch.length
    hidden = how.bytes * model.hidden * tokens
    layers = _layers(passes, tokens, row)
    norm, backward = regime.end.at(tokens, row), peak_at(regime.end_backward, tokens, row)
    device = "cuda" if how.cuda else "cpu"
    positions = loss_positions(model, how, batch)
    logits = logits_bytes(model, how.bytes, device, positions)
    # The slice before the cast to fp32; with soft-capping its intermediates too.
    sliced = min(slice_positions(model.vocabulary, device), positions)
    gaps = model.vocabulary * sliced * how.bytes * (0 if how.bytes == FP32 else 3 if model.softcap else 1)
    loss = hidden + norm + 2 * how.bytes * model.hidden * batch.supervised
    again = model.depth - kept_layers
    kept = layers[again:]
    here = min(again, OFFLOAD_IN_FLIGHT) if offload else again
    inputs = here * hidden + int(regime.around.at(tokens, row))
    casts, activations = sum(layer.casts for layer in layers), sum(layer.kept for layer in kept)
    backward_phases = []
    if kept:
        last = kept[-1]
        at_work = max(last.forward + 2 * hidden, last.backward + hidden) - last.casts
        of_kept = sum(layer.casts for layer in kept)
        backward_phases.append(Phase(inputs + activations - last.kept, of_kept, at_work, 0, 0))
    if again:
        worst = max(layers[:again], key=lambda layer: max(layer.again + hidden, layer.backward))
        at_work = max(worst.again + hidden, worst.backward) - worst.casts
        # The kept layers have run backward by then.
        shared = regime.shared.at(tokens, row)
        backward_phases.append(Phase(inputs + shared, worst.casts, at_work, 0, 0))
    return {
        "loss": Phase(inputs + activations, casts, 0, max(loss, backward - logits), logits, gaps),
        "backward": max(backward_phases, key=lambda phase: phase.total),
    }


def loss_positions(model: Architecture, how: Arithmetic, batch: MicroBatch) -> int:
    """Positions of the largest chunk of the loss.

    Args:
        model: The base model.
        how: Dtypes and kernels.
        batch: The micro-batch.
    """
    most = chunk_positions(model.vocabulary, how.bytes, "cuda" if how.cuda else "cpu")
    return min(most, batch.supervised)


def logits_bytes(model: Architecture, width: int, device: str, positions: int) -> int:
    """Memory of the logits of a chunk, which their gradient overwrites, and of a slice of them in fp32.

    A GPU's kernel needs no slice; it is counted for cards where the kernel fails its trial.

    Args:
        model: The base model.
        width: Bytes of a logit.
        device: Type of the device, ``cpu`` or ``cuda``.
        positions: Positions of the chunk.
    """
    sliced = min(slice_positions(model.vocabulary, device), positions)
    # Of a slice, log-probabilities, their gradient and that of the logits, all fp32, are alive at once; with
    # soft-capping also the hyperbolic tangent.
    return model.vocabulary * (width * positions + (3 * FP32 + (width if model.softcap else 0)) * sliced)


def _layers(passes: Passes, tokens: int, row: int) -> list[_LayerMemory]:
    """Memory of every layer, in order."""
    regime = passes.regime(row)
    known: dict[tuple[int, bool | None], _LayerMemory] = {}
    found: list[_LayerMemory] = []
    for number, kind in enumerate(passes.kinds):
        # Below the first trained layer nothing is kept.
        reached = None if number < passes.gradient_from else number > passes.gradient_from
        if (kind, reached) not in known:
            layer = regime.layer(kind, reached=bool(reached))
            known[kind, reached] = _layer_memory(layer, tokens, row, keeps=reached is not None)
        found.append(known[kind, reached])
    return found


def _layer_memory(layer: LayerGrowth, tokens: int, row: int, *, keeps: bool) -> _LayerMemory:
    """Memory of a layer.

    Args:
        layer: Its growth.
        tokens: Tokens of the micro-batch, padding included.
        row: Tokens of a row, padding included.
        keeps: Whether anything in it or before it is trained.
    """
    whole = math.ceil(row / layer.multiple) * layer.multiple
    tokens, row = tokens // row * whole, whole
    forward = int(peak_at(layer.forward, tokens, row))
    if not keeps:
        return _LayerMemory(kept=0, casts=0, forward=forward, again=0, backward=0)
    casts = int(layer.casts.at(tokens, row))
    return _LayerMemory(
        kept=int(layer.kept.at(tokens, row)) - casts,
        casts=casts,
        forward=forward,
        again=int(peak_at(layer.again, tokens, row)),
        backward=int(peak_at(layer.backward, tokens, row)),
    )


def _update_bytes(largest: int, width: int, optimizer: str, *, cuda: bool) -> int:
    """Transient memory of the update of the largest tensor: the optimizer's copy, the gradient in its dtype if it
    differs, the optimizer's temporaries, and the added slices.

    Args:
        largest: Elements of the largest tensor.
        width: Bytes of an element of the weights.
        optimizer: As ``train.optimizer``.
        cuda: Whether it runs on a GPU, where the optimizers but Adafactor are one kernel.
    """
    fp32 = optimizer in FP32_STATES
    stand_in = (FP32 if fp32 else width) + (FP32 if fp32 and width != FP32 else 0)
    # Adafactor squares the gradient and scales it in copies. On the CPU bitsandbytes dequantizes states to fp32, casts
    # gradient and parameter, and computes the denominator in two steps.
    copies = 2 if optimizer == "adafactor" else 6 if not cuda and not fp32 else 0
    return largest * stand_in + max(largest * copies * FP32, min(largest, SLICE) * SLICE_BYTES)


def with_updates(
    phases: Mapping[str, Phase], model: Architecture, config: Config, tensors: Tensors, width: int, *, cuda: bool
) -> dict[str, Phase]:
    """Phases of a pass with the gradients and updates of weights added, and the phase of the largest update.

    Args:
        phases: Phases ``loss`` and ``backward``, with activations only.
        model: The base model.
        config: The method and the optimizer.
        tensors: Trained tensors.
        width: Bytes of an element of the weights.
        cuda: Whether it runs on a GPU.
    """
    optimizer = config.train.optimizer

    def update(elements: int) -> int:
        return _update_bytes(elements, width, optimizer, cuda=cuda)

    largest = max(rows * columns for rows, columns, _ in tensors)
    nothing = Phase(0, 0, 0, 0, 0)
    if not updates_in_backward(config):
        return {**phases, "update": replace(nothing, update=update(largest))}
    head = model.vocabulary * model.hidden if config.method.name == "full" else 0
    inner = max((linear.weights for layer in model.layers for linear in layer.linears), default=0)
    # Each chunk of the loss has a gradient of the head, accumulated over chunks. With tied embeddings it stays until
    # the gradient of the embeddings, which comes last.
    waiting = width * head if model.tied else 0
    kept = 0.0 if model.tied else phases["loss"].kept
    return {
        "loss": replace(phases["loss"], gradients=2 * width * head),
        "backward": replace(phases["backward"], gradients=waiting + width * inner, update=update(inner)),
        "update": replace(nothing, kept=kept if head else 0.0, gradients=width * head, update=update(head)),
    }


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
    tokenizer = TOKENIZER_TOKEN * model.vocabulary
    if model.tokenizer_bytes is not None:
        tokenizer = min(tokenizer, TOKENIZER_FILE * model.tokenizer_bytes)
    return [
        Part("tokenizer", tokenizer, "the tokenizer's vocabulary and merges"),
        Part("runtime", runtime, what),
    ]
