"""Memory planner: a run's memory at its peak, part by part.

Every figure is arithmetic on shapes, except the constants of the environment in :mod:`core.memory.overhead`, which say
where they were measured. docs/memory.md explains the model and its errors.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from core.config.derived import sequences_per_row, updates_in_backward
from core.config.schema import WEIGHT_METHODS, Config
from core.errors import UserError
from core.memory.batching import TOKEN_BUDGETS, WHOLE, chunk_positions, padded_length, tokens_of_rows
from core.memory.overhead import around_cpu, around_gpu, process
from core.memory.phases import MicroBatch, Pass, Phase
from core.memory.plan import RECLAIMABLE, Machine, Part, Plan
from core.memory.rows import Rows
from core.memory.sizes import (
    OFFLOAD_SMALLEST,
    expert_adapters,
    is_any_target,
    optimizer_bytes,
    pinned_bytes,
    split_by_targets,
)
from core.memory.static import adapter_parts, copied_weights, is_mapped, own_weight_parts, weight_parts
from core.memory.steps import FP32, Adapters, Arithmetic
from core.memory.weights import Tensors, split_layers, trained_tensors, with_updates
from core.models.architecture.architecture import Architecture
from core.units import format_bytes

#: Bytes of a run's files other than adapter and optimizer: manifest, random state, adapter configuration.
CHECKPOINT_EXTRA = 64 << 10
#: Bytes of tokenizer and chat template next to the final adapter.
ADAPTER_EXTRA = 16 << 20
#: Paged optimizer states beyond this get a remark about host memory.
PAGED_NOTE = 1 << 30
#: Dequantized 16-bit copies of 4-bit weights are kept if the run with them takes at most this share of free memory.
COPIES_SHARE = 0.5


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
    """Make the memory plan of a run.

    Args:
        architecture: The base model.
        config: Configuration of the run.
        machine: Machine of the run.
        rows: Lengths of the training rows; None to assume the greatest length, with all tokens in the loss.
        token_budget: Token budget of a micro-batch, if the worker has decided it.
        checkpointing: Whether gradient checkpointing is on, if the worker has decided it.
        dequantized: Whether dequantized copies of 4-bit weights are kept, if the worker has decided it.
        offload: Whether checkpointed layer inputs are offloaded to host memory, if the worker has decided it.

    If undecided and ``memory.gradient_checkpointing`` is auto, gradient checkpointing is on if the run would not fit
    without it, as in the worker; with an unknown limit, on a GPU. Likewise the checkpointed layer inputs are offloaded
    from a GPU if the run would not fit otherwise, and host memory has room for them.

    Raises:
        UserError: If no layer of the model is trained, or its positions are fewer than the rows' tokens.
    """
    keeps = config.memory.keep_dequantized == "on" if dequantized is None else dequantized

    def plan(recomputed: bool | None, moved: bool, keeps: bool) -> Plan:
        return _Planner(architecture, config, machine, rows, token_budget, recomputed, moved, keeps).plan()

    found = _by_need(config, machine, checkpointing, offload, lambda recomputed, moved: plan(recomputed, moved, keeps))
    # If memory had to be freed already, there is none for copies.
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
    """The plan with everything undecided chosen as the run needs it."""
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
        # Free GPU memory is nearly always known; if not, the smaller need is the safer one to report.
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

    # Sizes

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

    def _trained_tensors(self) -> Tensors:
        """Rows, columns and number of each kind of trained tensor."""
        if self.weights:
            return trained_tensors(self.model, self.adapters, whole=self.config.method.name == "full")
        rank = self.config.method.rank
        found: Tensors = []
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
        """Elements of adapters on modules that are not run: they are allocated and saved, but never have gradients."""
        method, tower = self.config.method, self.model.tower
        if tower is None or self.weights:
            return 0
        found = 0
        for linear in tower.linears:
            if is_any_target(f"{tower.prefix}.{linear.name}", method.target_modules):
                found += method.rank * (linear.inputs + linear.outputs) + (linear.outputs if method.dora else 0)
        return found

    # Phases

    def plan(self) -> Plan:
        tensors = self._trained_tensors()
        kind = self.config.train.optimizer
        learned = sum(rows * columns * count for rows, columns, count in tensors)
        trainable = learned + self._idle_adapters()
        states = sum(optimizer_bytes(kind, rows * columns, columns) * count for rows, columns, count in tensors)
        copied = copied_weights(self.model, self.adapters) if self.dequantized else 0
        weights = weight_parts(self.model, self.how, copied)
        static = [*weights, *self._trained(trainable, learned, states)]
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
        parts = [*static, *moving, *self._surroundings([*static, *moving], phases)]
        loading = self._loading(weights)
        # Paged optimizer states move to host memory when anything else needs the GPU.
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
        # A new checkpoint is complete before the oldest is deleted.
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

    def _trained(self, trainable: int, learned: int, states: int) -> list[Part]:
        kind = self.config.train.optimizer
        if self.weights:
            return own_weight_parts(kind, trainable, states, self.how.bytes, in_backward=self.in_backward)
        return adapter_parts(kind, trainable, learned, states, paired=self._paired)

    @property
    def _paired(self) -> bool:
        """Whether each trained adapter has a frozen reference adapter."""
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

    def _surroundings(self, tensors: list[Part], phases: dict[str, Phase]) -> list[Part]:
        if not self.cuda:
            kept = self.how.quantized or is_mapped(self.model, self.how)
            return around_cpu(self.model, phases, 0 if kept else self._file_bytes())
        # Paged optimizer states are not in the caching allocator.
        paged = self.config.train.optimizer.startswith("paged_")
        return around_gpu(part for part in tensors if not (paged and part.name == "optimizer"))

    def _loading(self, weights: list[Part]) -> list[Part]:
        """Loading: while weights are converted, their source file is memory-mapped at the same time."""
        if self.cuda or is_mapped(self.model, self.how):
            return []
        file = Part("weights_file", self._file_bytes(), "the weight file, mapped while it is converted")
        return [*weights, file, *process(self.model)]

    def _file_bytes(self) -> int:
        checkpoint = self.model.checkpoint
        return checkpoint.bytes if checkpoint is not None else 2 * self.model.parameters

    def _caveats(self) -> list[str]:
        found = []
        if self.model.guessed:
            found.append(f"The family {self.model.family} is not known; it was taken for one like Llama.")
        if self.model.tower is not None:
            found.append("The part that sees images is loaded and not trained, as rows are text.")
        if self.how.quantized and any(layer.experts is not None for layer in self.model.layers):
            found.append("The experts stay in 16 bit: bitsandbytes quantizes linear layers only.")
        return found


def _needed(parts: list[Part]) -> int:
    return sum(part.bytes for part in parts if part.name not in RECLAIMABLE)


def arithmetic(config: Config, machine: Machine) -> Arithmetic:
    """Arithmetic of a run: dtypes, quantization and kernels."""
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
