"""The memory plan: what a run will hold at its peak, part by part, and whether it fits.

Every figure is arithmetic on shapes, but for a few constants of the environment, which say where they were measured.
docs/memory.md has the model, and how wrong it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from core.config.schema import WEIGHT_METHODS, Config
from core.errors import UserError
from core.memory.architecture import Architecture
from core.memory.batching import TOKEN_BUDGETS, WHOLE, chunk_positions, padded_length, tokens_of_rows
from core.memory.phases import MicroBatch, Pass, Phase
from core.memory.rows import Rows
from core.memory.sizes import (
    OFFLOAD_SMALLEST,
    expert_adapters,
    is_any_target,
    optimizer_bytes,
    pinned_bytes,
    quantized_bytes,
    sequences_per_row,
    split_by_targets,
    updates_in_backward,
)
from core.memory.steps import FP32, Adapters, Arithmetic
from core.memory.weights import split_layers, trained_tensors, with_updates
from core.units import format_bytes

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
#: A run's files beside adapter and optimizer: manifest, random state, adapter configuration.
CHECKPOINT_EXTRA = 64 << 10
#: Tokenizer and chat template beside the final adapter.
ADAPTER_EXTRA = 16 << 20

#: What the optimizers keep.
STATES = {
    "adamw": "two fp32 moments",
    "adamw_8bit": "two 8-bit moments",
    "paged_adamw_8bit": "two 8-bit moments, paged",
    "adafactor": "fp32 sums of rows and columns",
    "lion_8bit": "one 8-bit moment",
}
#: Paged states beyond this are worth a word about the machine's memory.
PAGED_NOTE = 1 << 30
#: 16-bit copies of 4-bit weights are kept where the run with them takes no more than this share of what is free.
COPIES_SHARE = 0.5

DeviceKind = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Machine:
    """What it is to run on.

    Args:
        kind: The kind of device.
        limit_bytes: Memory that is free on it for the run; None where unknown.
        disk_free_bytes: Free bytes of the disk that holds the runs; None where unknown.
        bf16: Whether the CPU computes in bf16 natively.
        host_bytes: Memory that is free around a GPU; None where unknown.
    """

    kind: DeviceKind
    limit_bytes: int | None = None
    disk_free_bytes: int | None = None
    bf16: bool = True
    host_bytes: int | None = None


@dataclass(frozen=True)
class Part:
    """One part of the memory: its name, bytes, and what it is in one line."""

    name: str
    bytes: int
    what: str


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Args:
        parts: Of the memory at the peak; they sum up to it.
        phase: When the peak is: ``loading``, ``loss`` or ``backward``.
        micro_batch: The largest one.
        needed_bytes: Of the peak, what must be there: without the views of a file that the system takes back.
        trainable: Parameters that are trained.
        parameters: Of the base model.
        limit_bytes: What is free for it.
        checkpoint_bytes: One checkpoint.
        disk_bytes: All checkpoints that exist at once, and the final adapter.
        disk_free_bytes: What is free for them.
        checkpointing: Whether activations are recomputed.
        device: The kind of device.
        offload: Whether what recomputing starts from is in the machine's memory.
        host_bytes: The most that it takes there, pinned.
        host_free_bytes: What is free for it there.
        notes: What one should know about the figures, as sentences.
        targets: The last part of the names of the layers that get adapters, and how many are called so.
        dequantized: Whether 16-bit copies of 4-bit weights are kept.
    """

    parts: tuple[Part, ...]
    phase: str
    micro_batch: MicroBatch
    needed_bytes: int
    trainable: int
    parameters: int
    limit_bytes: int | None
    checkpoint_bytes: int
    disk_bytes: int
    disk_free_bytes: int | None
    checkpointing: bool
    device: DeviceKind
    offload: bool = False
    host_bytes: int = 0
    host_free_bytes: int | None = None
    notes: tuple[str, ...] = field(default=())
    targets: tuple[tuple[str, int], ...] = field(default=())
    dequantized: bool = False

    @property
    def total_bytes(self) -> int:
        """The peak."""
        return sum(part.bytes for part in self.parts)

    @property
    def reclaimable_bytes(self) -> int:
        """Of the peak, what the system takes back when memory is short."""
        return self.total_bytes - self.needed_bytes

    @property
    def fits(self) -> bool | None:
        """Whether what is needed does; None where the limit is unknown."""
        return None if self.limit_bytes is None else self.needed_bytes <= self.limit_bytes

    @property
    def host_fits(self) -> bool | None:
        """Whether the machine has room for what is moved to its memory; None where that is unknown."""
        return None if self.host_free_bytes is None else self.host_bytes <= self.host_free_bytes

    @property
    def disk_fits(self) -> bool | None:
        """Whether the disk has room; None where that is unknown."""
        return None if self.disk_free_bytes is None else self.disk_bytes <= self.disk_free_bytes

    def by_name(self) -> dict[str, int]:
        """Name of each part to its bytes."""
        return {part.name: part.bytes for part in self.parts}


def make_plan(
    architecture: Architecture,
    config: Config,
    machine: Machine,
    rows: Rows | None = None,
    *,
    token_budget: int | None = None,
    checkpointing: bool | None = None,
    dequantized: bool | None = None,
    offload: bool | None = None,
) -> Plan:
    """Plan a run.

    Args:
        architecture: The base model.
        config: What is to be done with it.
        machine: What it runs on.
        rows: What is known of the training rows; absent: all as long as they may be, and all of it learned.
        token_budget: Tokens of a micro-batch, where the worker has cut them already.
        checkpointing: Whether activations are recomputed, where the worker has decided already.
        dequantized: Whether 16-bit copies of 4-bit weights are kept, where the worker has decided already.
        offload: Whether what that starts from is in the machine's memory, where the worker has decided already.

    Where nobody has decided and ``memory.gradient_checkpointing`` is auto, activations are recomputed if the run would
    not fit without, as the worker does; where the limit is unknown, on a GPU. In the same way what that starts from is
    moved off a GPU if the run would not fit with it there, and the machine has room for it.

    Raises:
        UserError: If no layer of the model is trained, or its positions are fewer than the rows' tokens.
    """
    keeps = config.memory.keep_dequantized == "on" if dequantized is None else dequantized

    def plan(recomputed: bool | None, moved: bool, keeps: bool) -> Plan:
        return _Planner(architecture, config, machine, rows, token_budget, recomputed, moved, keeps).plan()

    found = _by_need(config, machine, checkpointing, offload, lambda recomputed, moved: plan(recomputed, moved, keeps))
    # Where room was made already, there is none for copies.
    tight = found.checkpointing and config.memory.gradient_checkpointing != "on"
    wanted = dequantized is None and config.memory.keep_dequantized == "auto"
    if wanted and not tight and machine.limit_bytes is not None:
        with_copies = plan(found.checkpointing, found.offload, True)
        if with_copies.needed_bytes <= machine.limit_bytes * COPIES_SHARE:
            return with_copies
    return found


def _by_need(
    config: Config,
    machine: Machine,
    checkpointing: bool | None,
    offload: bool | None,
    plan: Callable[[bool | None, bool], Plan],
) -> Plan:
    """The plan with what is not decided yet as the run needs it."""
    memory, known = config.memory, machine.limit_bytes is not None
    moved = (machine.kind == "cuda" and memory.activation_offload == "on") if offload is None else offload
    if checkpointing is None and memory.gradient_checkpointing == "auto" and known and not moved:
        kept = plan(False, False)
        if kept.fits:
            return kept
        checkpointing = True
    found = plan(checkpointing, moved)
    by_need = offload is None and memory.activation_offload == "auto" and machine.kind == "cuda"
    if by_need and known and found.checkpointing and not found.fits:
        elsewhere = plan(True, True)
        if elsewhere.offload and elsewhere.host_fits is not False:
            return elsewhere
    return found


class _Planner:
    def __init__(
        self,
        architecture: Architecture,
        config: Config,
        machine: Machine,
        rows: Rows | None,
        token_budget: int | None,
        checkpointing: bool | None,
        offload: bool,
        dequantized: bool,
    ) -> None:
        split = list(split_by_targets(architecture.layers, architecture.prefix, config.method.target_modules))
        self.model = replace(architecture, layers=tuple(layer for layer, _ in split))
        self.config = config
        self.machine = machine
        self.rows = rows
        self.cuda = machine.kind == "cuda"
        # What is free on a GPU is all but always known; where it is not, the smaller need is the safer one to name.
        self.checkpointing = (
            checkpointing
            if checkpointing is not None
            else config.memory.gradient_checkpointing == "on"
            or (config.memory.gradient_checkpointing == "auto" and self.cuda)
        )
        self.budget = token_budget or TOKEN_BUDGETS[machine.kind]
        how = arithmetic(config, machine)
        self.dequantized = dequantized and how.quantized and how.fused_layers
        self.how = replace(how, dequantized=self.dequantized)
        self.notes: list[str] = []
        self.batch = self._micro_batch()
        # The input of a layer.
        self.hidden = self.how.bytes * self.model.hidden * self.batch.tokens
        self.offload = offload and self.checkpointing and self.hidden >= OFFLOAD_SMALLEST
        method = config.method
        self.weights = method.name in WEIGHT_METHODS
        self.in_backward = updates_in_backward(config)
        if self.weights:
            self.model, self.adapters = split_layers(architecture, config)
            return
        self.adapters = [
            Adapters(method.rank, method.dropout, method.dora, targets, paired=method.init == "pissa")
            for _, targets in split
        ]
        if not any(adapters.targets for adapters in self.adapters):
            names = sorted(
                {linear.name.rpartition(".")[2] for layer in architecture.layers for linear in layer.linears}
            )
            raise UserError(
                f"method.target_modules matches no layer of this model: {method.target_modules}.",
                f"Its linear layers are {', '.join(names)}; or use all-linear.",
            )

    # Sizes.

    def _micro_batch(self) -> MicroBatch:
        train, model = self.config.train, self.model
        kept = self.rows.limited(train.max_length, self.config.data.overlong) if self.rows is not None else None
        if self.rows is None:
            length = min(train.max_length, model.positions or train.max_length)
            kept = Rows([(padded_length(length), train.batch_size)])
            self.notes.append(f"Every row is taken to have {length} tokens, all of them learned.")
        if kept is None:
            raise UserError(
                f"No row has {train.max_length} tokens or fewer, so none would be trained on.",
                "Raise train.max_length.",
            )
        # Inside backward a step is one micro-batch.
        budget = WHOLE if updates_in_backward(self.config) else self.budget
        sequences = sequences_per_row(train.objective)
        before, rows, width = kept.largest_shape(train.batch_size, max(1, budget // sequences), train.micro_batch_size)
        if model.learned_positions and model.positions is not None and width > padded_length(model.positions):
            raise UserError(
                f"The model knows {model.positions} positions, and rows have up to {width} tokens.",
                f"Set train.max_length to {model.positions} or less.",
            )
        learned = math.ceil((min(tokens_of_rows(kept.runs, before, rows), rows * width) - rows) * kept.supervised)
        return MicroBatch(rows * sequences, width, max(1, learned) * sequences)

    def _targets(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for layer, adapters in zip(self.model.layers, self.adapters, strict=True):
            for linear in sorted(adapters.targets):
                found[linear.rpartition(".")[2]] += layer.count
        return found

    def _trained_tensors(self) -> list[tuple[int, int, int]]:
        """Rows and columns of each kind of trained tensor, and how many there are of it."""
        if self.weights:
            return trained_tensors(self.model, self.adapters, whole=self.config.method.name == "full")
        rank = self.config.method.rank
        found: list[tuple[int, int, int]] = []
        for layer, adapters in zip(self.model.layers, self.adapters, strict=True):
            for linear in layer.linears:
                if linear.name in adapters.targets:
                    found += [(rank, linear.inputs, layer.count), (linear.outputs, rank, layer.count)]
                    if adapters.dora:
                        found.append((linear.outputs, 1, layer.count))
            if layer.experts is not None and "mlp.experts" in adapters.targets:
                found += expert_adapters(layer, rank)
        return found

    def _idle_adapters(self) -> int:
        """Adapters on what is not run: they are there, and are saved, but never have gradients."""
        method, tower = self.config.method, self.model.tower
        if tower is None or self.weights:
            return 0
        found = 0
        for linear in tower.linears:
            if is_any_target(f"{tower.prefix}.{linear.name}", method.target_modules):
                found += method.rank * (linear.inputs + linear.outputs) + (linear.outputs if method.dora else 0)
        return found

    # Phases.

    def plan(self) -> Plan:
        tensors = self._trained_tensors()
        kind = self.config.train.optimizer
        learned = sum(rows * columns * count for rows, columns, count in tensors)
        trainable = learned + self._idle_adapters()
        states = sum(optimizer_bytes(kind, rows * columns, columns) * count for rows, columns, count in tensors)
        static = [*self._weights(), *self._trained(trainable, learned, states)]
        phases = Pass(
            self.model,
            self.how,
            self.adapters,
            self.batch,
            checkpointing=self.checkpointing,
            offload=self.offload,
            gradient_from={"full": "embeddings", "freeze": "trained"}.get(self.config.method.name, "first layer"),
        ).phases()
        if self.weights:
            phases = with_updates(phases, self.model, self.config, tensors, self.how.bytes, cuda=self.cuda)
        name = max(phases, key=lambda name: phases[name].total)
        moving = self._moving(phases[name])
        parts = [*static, *moving, *self._surroundings(static, moving, phases, name)]
        loading = self._loading()
        # Paged states give way to whatever else needs the card, and are in the machine's memory then.
        paged = states if self.cuda and self.config.train.optimizer.startswith("paged_") else 0
        needed = max(_needed(parts) - paged, _needed(loading))
        if paged > PAGED_NOTE:
            self.notes.append(
                f"{format_bytes(paged)} of optimizer states are paged: they move to the machine's memory where the "
                "card's does not suffice."
            )
        if sum(part.bytes for part in loading) > sum(part.bytes for part in parts):
            name, parts = "loading", loading
        pinned = pinned_bytes(self.model.depth, self.hidden) if self.offload else 0
        self._tell_pinned(pinned)
        width = self.how.bytes if self.weights else FP32
        saved = trainable * width * (2 if self._paired else 1)
        checkpoint = saved + states + CHECKPOINT_EXTRA
        final = self.model.parameters * width if self.weights else saved
        # A new checkpoint is whole before the oldest is deleted.
        disk = (self.config.checkpoint.keep + 1) * checkpoint + final + ADAPTER_EXTRA
        return Plan(
            parts=tuple(part for part in parts if part.bytes),
            phase=name,
            micro_batch=self.batch,
            needed_bytes=needed,
            trainable=trainable,
            parameters=self.model.parameters,
            limit_bytes=self.machine.limit_bytes,
            checkpoint_bytes=checkpoint,
            disk_bytes=disk,
            disk_free_bytes=self.machine.disk_free_bytes,
            checkpointing=self.checkpointing,
            device=self.machine.kind,
            offload=self.offload,
            host_bytes=pinned,
            host_free_bytes=self.machine.host_bytes,
            notes=tuple(self.notes + self._caveats()),
            targets=tuple(self._targets().items()),
            dequantized=self.dequantized,
        )

    def _tell_pinned(self, pinned: int) -> None:
        free = self.machine.host_bytes
        if pinned:
            short = f", where {format_bytes(free)} are free" if free is not None and pinned > free else ""
            self.notes.append(f"The layers' inputs take up to {format_bytes(pinned)} of the machine's memory{short}.")

    def _weights(self) -> list[Part]:
        model, a = self.model, self.how.bytes
        matrices = [(linear.weights, layer.count) for layer in model.layers for linear in layer.linears]
        matrices += [(linear.weights, 1) for linear in (model.tower.linears if model.tower is not None else ())]
        # Experts are stacked into one tensor, which is no linear layer: bitsandbytes leaves it as it is.
        # On the CPU what is not changed in loading stays a view of the file, which is mapped into memory.
        experts = sum(layer.count * layer.experts.weights for layer in model.layers if layer.experts is not None)
        rest = model.parameters - model.embeddings - model.linear_weights - experts
        found = []
        if self.how.quantized:
            size = sum(quantized_bytes(weights) * count for weights, count in matrices)
            found.append(Part("linear_weights", size, "linear layers in NF4 with double quantization"))
            if self.dequantized:
                found.append(Part("dequantized", a * self._adapted(), f"copies of them in {8 * a} bit"))
        else:
            found.append(Part("linear_weights", a * model.linear_weights, f"linear layers in {8 * a} bit"))
        found.append(Part("embeddings", a * model.embeddings, f"embeddings and output head in {8 * a} bit"))
        if experts:
            found.append(Part("experts", a * experts, f"experts in {8 * a} bit; stacked tensors are not quantized"))
        found.append(Part("norms", a * rest, f"norms, biases and positions in {8 * a} bit"))
        if not self.cuda and self.how.quantized and self._mapped():
            size = a * model.linear_weights
            found.append(
                Part("weights_file", size, "the file's own linear layers, mapped; given back when memory is short")
            )
        return found

    def _adapted(self) -> int:
        """Weights of the linear layers that have plain adapters, which are those that can be kept dequantized."""
        if self.config.method.dora or self._paired:
            return 0
        return sum(
            linear.weights * layer.count
            for layer, adapters in zip(self.model.layers, self.adapters, strict=True)
            for linear in layer.linears
            if linear.name in adapters.targets
        )

    def _mapped(self) -> bool:
        """Whether tensors stay views of the weight file: they do when they need not be converted."""
        checkpoint = self.model.checkpoint
        return self.how.bytes == 2 and (checkpoint is None or checkpoint.dtype == "BF16")

    def _trained(self, trainable: int, learned: int, states: int) -> list[Part]:
        kind = self.config.train.optimizer
        optimizer = Part("optimizer", states, f"{kind}: {STATES[kind]}")
        if self.weights:
            # Inside backward they come and go with the layers.
            size = 0 if self.in_backward else self.how.bytes * trainable
            what = f"of {_count(trainable)} weights in {8 * self.how.bytes} bit"
            return [Part("gradients", size, what), optimizer]
        initial = FP32 * trainable if self._paired else 0
        return [
            Part("adapters", FP32 * trainable, f"{_count(trainable)} trained parameters in fp32"),
            Part("initial", initial, "what the adapters began with, frozen, in fp32"),
            Part("gradients", FP32 * learned, "their gradients in fp32"),
            optimizer,
        ]

    @property
    def _paired(self) -> bool:
        """Whether a frozen adapter lies beside each trained one."""
        return any(adapters.paired for adapters in self.adapters)

    def _moving(self, phase: Phase) -> list[Part]:
        batch = self.batch
        what = "the layers' inputs, kept for recomputing" if self.checkpointing else "what the layers keep for backward"
        if self.offload:
            what = "the input of the layer at work, the others in the machine's memory"
        positions = min(chunk_positions(self.model.vocabulary), batch.supervised)
        loss = f"logits of {positions} positions and their gradients"
        return [
            Part("activations", int(phase.kept), f"{what}, {batch.rows} x {batch.length} tokens"),
            Part("adapter_activations", int(phase.adapters), "the adapters' inputs, and their weights cast"),
            Part("layer", int(phase.layer), "one layer at work, its dequantized weights among it"),
            Part("loss", int(phase.loss + phase.logits), loss),
            Part("gradients_at_work", int(phase.gradients), "of the weights that are just being updated"),
            Part("update", int(phase.update), "an update of a large tensor, before it is rounded into the weights"),
        ]

    def _surroundings(self, static: list[Part], moving: list[Part], phases: dict[str, Phase], worst: str) -> list[Part]:
        if self.cuda:
            # Paged states are not of the allocator.
            paged = self.config.train.optimizer.startswith("paged_")
            parts = [part for part in (*static, *moving) if not (paged and part.name == "optimizer")]
            used = sum(part.bytes for part in parts)
            return [
                Part("fragmentation", int(CUDA_FRAGMENTATION * used), "held by the allocator and not used; assumed"),
                Part("runtime", CUDA_RUNTIME, "CUDA context and libraries; assumed"),
            ]
        heap = max(phase.heap for phase in phases.values())
        # At each moment the heap is as large as it has been at any, within the limit.
        held = max(phase.total + min(heap - phase.heap, CPU_RETAINED) for phase in phases.values())
        unused = CPU_SLACK + CPU_FRAGMENTATION * heap + held - phases[worst].total + self._scattered()
        return [
            Part("fragmentation", int(unused), "held by malloc from other moments, and not used"),
            Part("tokenizer", self._tokenizer(), "the tokenizer's vocabulary and merges"),
            Part("runtime", CPU_RUNTIME, "the interpreter and its libraries"),
        ]

    def _scattered(self) -> float:
        """What states and gradients of weights leave unused between them."""
        if not self.weights:
            return 0.0
        kind, width = self.config.train.optimizer, 0 if self.in_backward else self.how.bytes
        small = [
            (optimizer_bytes(kind, rows * columns, columns) + width * rows * columns) * count
            for rows, columns, count in self._trained_tensors()
            if FP32 * rows * columns < CPU_LARGE_TENSOR
        ]
        return CPU_SCATTERED * sum(small)

    def _tokenizer(self) -> int:
        by_vocabulary, size = TOKENIZER_TOKEN * self.model.vocabulary, self.model.tokenizer_bytes
        return by_vocabulary if size is None else min(by_vocabulary, TOKENIZER_FILE * size)

    def _loading(self) -> list[Part]:
        """While weights are converted, the file that they come from is mapped beside them."""
        if self.cuda or self._mapped():
            return []
        checkpoint, model = self.model.checkpoint, self.model
        size = checkpoint.bytes if checkpoint is not None else 2 * model.parameters
        return [
            *self._weights(),
            Part("weights_file", size, "the weight file, mapped while it is converted"),
            Part("tokenizer", self._tokenizer(), "the tokenizer's vocabulary and merges"),
            Part("runtime", CPU_RUNTIME, "the interpreter and its libraries"),
        ]

    def _caveats(self) -> list[str]:
        found = []
        if self.model.guessed:
            found.append(f"The family {self.model.family} is not known; it was taken for one like Llama.")
        if self.model.tower is not None:
            found.append("The part that sees images is loaded and not trained, as rows are text.")
        if self.how.quantized and any(layer.experts is not None for layer in self.model.layers):
            found.append("The experts stay in 16 bit: bitsandbytes quantizes linear layers only.")
        return found


def _count(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def _needed(parts: list[Part]) -> int:
    return sum(part.bytes for part in parts if part.name != "weights_file")


def arithmetic(config: Config, machine: Machine) -> Arithmetic:
    """How a run computes, and how it holds numbers meanwhile."""
    precision, cuda = config.train.precision, machine.kind == "cuda"
    wide = precision == "fp32" or (precision == "auto" and not cuda and not machine.bf16)
    quantized = config.method.name == "qlora"
    return Arithmetic(
        bytes=FP32 if wide else 2,
        autocast=not wide,
        private_inputs=not (cuda and quantized),
        quantized=quantized,
        cuda=cuda,
        # The compiler fuses layers by itself, but for attention.
        fused_layers=config.train.fused_layers and not config.train.compile,
        short_attention=config.train.fused_layers and not cuda,
    )
