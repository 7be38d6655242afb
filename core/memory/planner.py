"""Memory planner: a run's memory at its peak, part by part.

Every figure is arithmetic on shapes and on the measured passes of the layers, except the constants of the environment
in :mod:`core.memory.phases`, which say where they were measured. docs/memory.md explains the model and its errors.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from core.config.derived import sequences_per_row, updates_in_backward
from core.config.facts import DiskNeed
from core.config.schema import WEIGHT_METHODS, Config
from core.config.targets import kept_patterns, without_adapters
from core.errors import UserError
from core.memory.batching import (
    TOKEN_BUDGETS,
    WHOLE,
    micro_batches,
    padded_length,
    token_budgets,
    tokens_of_rows,
)
from core.memory.calibration import rates_of
from core.memory.cards import Shares, Sharing, gathered_sizes
from core.memory.choice import choose_way, place_experts
from core.memory.phases import Phase, around_cpu, around_gpu, loss_positions, phases_of, process, with_updates
from core.memory.plan import RECLAIMABLE, Machine, MicroBatch, Part, Plan, Way
from core.memory.rough import rough_passes
from core.memory.rows import Rows
from core.memory.sizes import (
    FP32,
    OFFLOAD_SMALLEST,
    Arithmetic,
    optimizer_bytes,
    pinned_bytes,
    split_by_targets,
    states_host_bytes,
)
from core.memory.step_time import (
    LOGIT_MOVED,
    LOGIT_PASSES,
    HeadWork,
    LayerWork,
    StepTime,
    step_time,
    touched_experts,
    update_traffic,
)
from core.memory.weights import (
    Tensors,
    adapter_parts,
    experts_on_host,
    is_mapped,
    own_weight_parts,
    tell_bare_experts,
    tell_host_experts,
    weight_parts,
)
from core.models.architecture.architecture import Architecture, Experts, Towers
from core.models.architecture.measuring import Passes, measure_passes
from core.models.installed import install_command, tell_missing
from core.units import format_bytes

#: Source of a plan's passes: measured, which blocks for seconds the first time; measured earlier, else the rough
#: bound; or the rough bound in any case.
Source = Literal["measured", "known", "rough"]

#: Bytes of a run's files other than adapter and optimizer: manifest, random state, adapter configuration.
CHECKPOINT_EXTRA = 64 << 10
#: Bytes of tokenizer and chat template next to the final adapter.
ADAPTER_EXTRA = 16 << 20
#: Paged optimizer states beyond this get a remark about host memory.
PAGED_NOTE = 1 << 30
#: First compute capability of flash attention.
FLASH_CAPABILITY = (8, 0)
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
    kept_layers: int = 0,
    dequantized: bool | None = None,
    offload: bool | None = None,
    host_experts: bool | None = None,
    sharing: Sharing | None = None,
    source: Source = "measured",
) -> Plan:
    """Make the memory plan of a run.

    Args:
        architecture: The base model.
        config: Configuration of the run.
        machine: Machine of the run.
        rows: Lengths of the training rows; None to assume the greatest length, with all tokens in the loss.
        token_budget: Token budget of a micro-batch; None for the initial one.
        checkpointing: Whether gradient checkpointing is on, if the worker has decided it.
        kept_layers: Number of last layers whose activations are kept with it.
        dequantized: Whether dequantized copies of 4-bit weights are kept, if the worker has decided it.
        offload: Whether checkpointed layer inputs are offloaded to host memory, if the worker has decided it.
        host_experts: Whether 4-bit experts live in host memory; None: as ``memory.offload_experts`` says.
        sharing: How several cards share the run; the plan is then for one of them, ``config`` its part of the run
            (:func:`core.memory.strategy.part_of_card`), ``machine`` the card and its part of host memory.
        source: Source of the layers' passes.

    If undecided, the token budget and the number of layers with gradient checkpointing give the shortest estimated step
    that fits, within the limits of ``memory.gradient_checkpointing``. If the memory limit is unknown, gradient
    checkpointing is on on a GPU. If nothing fits, checkpointed layer inputs are offloaded from a GPU if host memory has
    room for them.

    Raises:
        UserError: If no layer of the model is trained, its positions are fewer than the rows' tokens, or its passes
            cannot be measured.
    """
    run = _Run(architecture, config, machine, rows, sharing, source)
    search = _Search(run, token_budget, checkpointing, kept_layers, dequantized, offload)
    if host_experts is not None:
        return search.plan(host_experts)
    return place_experts(architecture, config, machine, search.plan)


def make_least_plan(
    architecture: Architecture,
    config: Config,
    machine: Machine,
    rows: Rows | None = None,
    *,
    token_budget: int | None = None,
) -> Plan:
    """Make the memory plan of a run with the least memory on its device.

    Micro-batches have the smallest size that the configuration allows, all layers recompute their activations if they
    may, and no copies of weights are kept. More memory only makes a run faster.

    Args:
        architecture: As for :func:`make_plan`.
        config: The same.
        machine: The same.
        rows: The same.
        token_budget: The same.

    Raises:
        UserError: As :func:`make_plan`.
    """
    first = WHOLE if updates_in_backward(config) else token_budget or TOKEN_BUDGETS[machine.kind]
    fewest, _ = _kept_layers(config, architecture.depth)
    return make_plan(
        architecture,
        config,
        machine,
        rows,
        token_budget=token_budgets(first, _longest(training_rows(architecture, config, rows), config))[-1],
        checkpointing=fewest == 0,
        dequantized=config.memory.keep_dequantized == "on",
    )


def _longest(rows: Rows, config: Config) -> int:
    """Tokens of the longest row, all of its sequences included."""
    return rows.runs[0][0] * sequences_per_row(config.train.objective)


def _kept_layers(config: Config, depth: int) -> tuple[int, int]:
    """Fewest and most layers whose activations may be kept, by ``memory.gradient_checkpointing``."""
    wanted = config.memory.gradient_checkpointing
    return depth if wanted == "off" else 0, 0 if wanted == "on" else depth


def training_rows(architecture: Architecture, config: Config, rows: Rows | None) -> Rows:
    """Rows that are trained on.

    Args:
        architecture: The base model.
        config: Configuration of the run.
        rows: Lengths of all rows; None to assume a step's rows of the greatest length, with all tokens in the loss.

    Raises:
        UserError: If no row is left.
    """
    train = config.train
    if rows is None:
        length = min(train.max_length, architecture.positions or train.max_length)
        return Rows([(padded_length(length), train.batch_size)])
    kept = rows.limited(train.max_length, config.data.overlong)
    if kept is None:
        raise UserError(
            f"No row has {train.max_length} tokens or fewer, so none would be trained on.", "Raise train.max_length."
        )
    return kept


@dataclass
class _Run:
    """Facts of a run that are the same for each way of fitting it into memory."""

    model: Architecture
    config: Config
    machine: Machine
    given: Rows | None
    sharing: Sharing | None
    source: Source

    def __post_init__(self) -> None:
        architecture, config, machine, source = self.model, self.config, self.machine, self.source
        self.rows = training_rows(architecture, config, self.given)
        self.cuda = machine.kind == "cuda"
        self.how = arithmetic(config, machine)
        self.keep = kept_patterns(config.model.keep_16bit)
        self.weights = config.method.name in WEIGHT_METHODS
        self.copied = 0 if self.weights else _adapted_weights(architecture, config)
        width, positions = self.rows.runs[0][0], architecture.positions
        if architecture.learned_positions and positions is not None and width > padded_length(positions):
            raise UserError(
                f"The model knows {positions} positions, and rows have up to {width} tokens.",
                f"Set train.max_length to {positions} or less.",
            )
        known = None if source == "rough" else _measured(architecture, config, self.how, cached_only=source == "known")
        self.is_rough = known is None
        self.passes = rough_passes(architecture, config, self.how) if known is None else known
        self.tensors = list(self.passes.trained)
        self.rates = rates_of(machine.device, machine.calibration, cuda=self.cuda, wide=not self.how.autocast)


def _adapted_weights(model: Architecture, config: Config) -> int:
    """Elements of the linear layers with plain adapters, which can be kept dequantized.

    Raises:
        UserError: If no layer gets an adapter.
    """
    method, found, has_any = config.method, 0, False
    for layer, count, targets in split_by_targets(model, method):
        has_any = has_any or bool(targets)
        found += count * sum(linear.weights for linear in layer.linears if linear.name in targets)
    if not has_any:
        names = sorted({linear.name.rpartition(".")[2] for layer in model.layers for linear in layer.linears})
        raise UserError(
            f"method.target_modules matches no layer of this model: {method.target_modules}.",
            f"Its linear layers are {', '.join(names)}; or use all-linear.",
        )
    return 0 if method.dora or method.init == "pissa" else found


@dataclass(frozen=True)
class _Search:
    """Search for the way of a run; see :func:`make_plan` for the given decisions."""

    run: _Run
    token_budget: int | None
    checkpointing: bool | None
    kept_layers: int
    dequantized: bool | None
    offload: bool | None

    def plan(self, host_experts: bool) -> Plan:
        """The plan of the chosen way, with copies of weights where there is plenty of memory."""
        # Or there is no way to choose.
        is_fixed = self.checkpointing is not None or self._offloads or self.run.machine.limit_bytes is None
        return self._with_copies(self._fixed(host_experts) if is_fixed else self._chosen(host_experts))

    @property
    def _first_budget(self) -> int:
        """The initial token budget."""
        if updates_in_backward(self.run.config):
            return WHOLE
        return self.token_budget or TOKEN_BUDGETS[self.run.machine.kind]

    @property
    def _offloads(self) -> bool:
        """True if checkpointed layer inputs are offloaded whatever fits."""
        if self.offload is not None:
            return self.offload
        return self.run.machine.kind == "cuda" and self.run.config.memory.activation_offload == "on"

    @property
    def _keeps_copies(self) -> bool:
        """True if dequantized copies of weights are kept before the plan shows that they fit."""
        asked = self.run.config.memory.keep_dequantized == "on"
        return asked if self.dequantized is None else self.dequantized

    def _fixed(self, host_experts: bool) -> Plan:
        depth, checkpointing = self.run.model.depth, self.checkpointing
        if checkpointing is None:
            # Free GPU memory is nearly always known; if not, the smaller need is the safer one to report.
            wanted = self.run.config.memory.gradient_checkpointing
            by_need = wanted == "auto" and self.run.machine.kind == "cuda"
            checkpointing = wanted == "on" or by_need or self._offloads
        kept = self.kept_layers if checkpointing else depth
        return self._plan(Way(self._first_budget, kept, self._offloads, host_experts), copies=self._keeps_copies)

    def _chosen(self, host_experts: bool) -> Plan:
        run, config = self.run, self.run.config
        may_offload = self.offload is None and config.memory.activation_offload == "auto"
        return choose_way(
            token_budgets(self._first_budget, _longest(run.rows, config)),
            _kept_layers(config, run.model.depth),
            lambda way: self._plan(replace(way, host_experts=host_experts), copies=self._keeps_copies),
            offload=run.machine.kind == "cuda" and run.machine.pins and may_offload,
        )

    def _with_copies(self, found: Plan) -> Plan:
        """The plan with dequantized copies of weights, if undecided and they take little of the free memory."""
        memory, limit = self.run.config.memory, self.run.machine.limit_bytes
        # If memory is short already, there is none for copies.
        freed = found.checkpointing or found.token_budget < self._first_budget
        tight = freed and memory.gradient_checkpointing != "on"
        wanted = self.dequantized is None and memory.keep_dequantized == "auto"
        if not wanted or tight or limit is None:
            return found
        copied = replace(self._plan(found.way, copies=True), reason=found.reason)
        return copied if copied.needed_bytes <= limit * COPIES_SHARE else found

    def _plan(self, way: Way, *, copies: bool) -> Plan:
        return _Planner(self.run, way, copies).plan()


class _Planner:
    """The plan of a run in one way."""

    def __init__(self, run: _Run, way: Way, dequantized: bool) -> None:
        self.run = run
        self.model, self.config, self.machine = run.model, run.config, run.machine
        self.kept_layers = way.kept_layers
        self.checkpointing = way.kept_layers < run.model.depth
        self.budget = way.token_budget
        self.dequantized = dequantized and (run.how.quantized or run.how.merged) and run.how.fused_layers
        self.how = replace(run.how, dequantized=self.dequantized)
        self.batch = self._micro_batch()
        # The input of a layer.
        self.hidden = self.how.bytes * self.model.hidden * self.batch.tokens
        self.offload = way.offload and self.checkpointing and self.hidden >= OFFLOAD_SMALLEST
        self.experts = experts_on_host(self.model, run.keep) if way.host_experts else None

    # Sizes

    def _micro_batch(self) -> MicroBatch:
        train, kept = self.config.train, self.run.rows
        sequences = sequences_per_row(train.objective)
        budget = max(1, self.budget // sequences)
        before, rows, width = kept.largest_shape(train.batch_size, budget, train.micro_batch_size)
        learned = math.ceil((min(tokens_of_rows(kept.runs, before, rows), rows * width) - rows) * kept.supervised)
        return MicroBatch(rows * sequences, width, max(1, learned) * sequences)

    # Phases

    def plan(self) -> Plan:
        """The plan."""
        tensors = self.run.tensors
        kind = self.config.train.optimizer
        trainable = sum(rows * columns * count for rows, columns, count in tensors)
        states = sum(optimizer_bytes(kind, rows * columns, columns) * count for rows, columns, count in tensors)
        held = [*self._weights(), *self._trained(trainable, states)]
        shares = self._shares(tensors)
        phase, parts, needed = self._peak(tensors, held if shares is None else shares.of_card(held))
        paged = sum(part.bytes for part in parts if part.name == "optimizer") if self._pages else 0
        on_host = min(states_host_bytes(kind, tensors), paged)
        pinned = pinned_bytes(self.model.depth, self.hidden) if self.offload else 0
        step = self._step_time(trainable)
        checkpoint, disk = self._on_disk(trainable, states)
        return Plan(
            parts=tuple(part for part in parts if part.bytes),
            phase=phase,
            micro_batch=self.batch,
            needed_bytes=needed,
            trainable=trainable,
            parameters=self.model.parameters,
            limit_bytes=self.machine.limit_bytes,
            checkpoint_bytes=checkpoint,
            disk_bytes=disk,
            disk_free_bytes=self.machine.disk_free_bytes,
            token_budget=self.budget,
            layers=self.model.depth,
            kept_layers=self.kept_layers,
            step=step,
            device=self.machine.kind,
            offload=self.offload,
            host_bytes=pinned,
            states_host_bytes=on_host,
            host_free_bytes=self.machine.host_bytes,
            notes=(*self._notes(paged, on_host, pinned, step), *self._caveats()),
            targets=self.run.passes.targets,
            dequantized=self.dequantized,
            experts_host_bytes=self.experts.host_bytes if self.experts is not None else 0,
            shares_host_bytes=shares.on_host(held) if shares is not None else 0,
            wire_bytes=shares.on_wire(step.micro_batches) if shares is not None else 0,
            is_rough=self.run.is_rough,
        )

    def _shares(self, tensors: Tensors) -> Shares | None:
        """The shares of the card; None for one card."""
        run = self.run
        if run.sharing is None:
            return None
        width = self.how.bytes if run.weights else FP32
        return Shares(
            run.sharing, gathered_sizes(self.model, self.how, run.keep, tensors, width=width, whole=run.weights)
        )

    def _weights(self) -> list[Part]:
        copied = self.run.copied if self.dequantized else 0
        return weight_parts(self.model, self.how, copied, self.run.keep, self.experts)

    def _peak(self, tensors: Tensors, held: list[Part]) -> tuple[str, list[Part], int]:
        """The phase of the peak, its parts, and the bytes that must be resident.

        Args:
            tensors: Trained tensors.
            held: Weights, adapters, gradients and optimizer states.
        """
        phases = self._phases(tensors)
        name = max(phases, key=lambda name: phases[name].total)
        inside = [*held, *self._moving(phases[name])]
        parts = [*inside, *self._surroundings(inside, phases)]
        loading = self._loading(self._weights())
        # Paged optimizer states move to host memory when anything else needs the GPU.
        paged = sum(part.bytes for part in held if part.name == "optimizer") if self._pages else 0
        needed = max(_needed(parts) - paged, _needed(loading))
        if sum(part.bytes for part in loading) > sum(part.bytes for part in parts):
            name, parts = "loading", loading
        return name, parts, needed

    def _phases(self, tensors: Tensors) -> dict[str, Phase]:
        run = self.run
        phases = phases_of(
            self.model, self.how, run.passes, self.batch, kept_layers=self.kept_layers, offload=self.offload
        )
        if not run.weights:
            return phases
        found = with_updates(phases, self.model, self.config, tensors, self.how.bytes, cuda=run.cuda)
        if run.sharing is None:
            return found
        return {name: replace(phase, update=run.sharing.of_update(phase.update)) for name, phase in found.items()}

    def _on_disk(self, trainable: int, states: int) -> tuple[int, int]:
        """Bytes of a checkpoint, and of all files that a run has at once."""
        width = self.how.bytes if self.run.weights else FP32
        saved = trainable * width * (2 if self._paired else 1)
        checkpoint = saved + states + CHECKPOINT_EXTRA
        final = self.model.parameters * width if self.run.weights else saved
        # A new checkpoint is complete before the oldest is deleted.
        return checkpoint, (self.config.checkpoint.keep + 1) * checkpoint + final + ADAPTER_EXTRA

    def _notes(self, paged: int, on_host: int, pinned: int, step: StepTime) -> list[str]:
        """Remarks on assumptions, and on parts in the machine's memory."""
        found = []
        if self.run.given is None:
            longest = self.config.train.max_length
            length = min(longest, self.model.positions or longest)
            found.append(f"Every row is taken to have {length} tokens, all of them learned.")
        if paged > PAGED_NOTE:
            found.append(
                f"{format_bytes(paged)} of optimizer states are paged: they move to the machine's memory where the "
                f"card's does not suffice{self._shortage(on_host)}."
            )
        if pinned:
            short = self._shortage(pinned)
            found.append(f"The layers' inputs take up to {format_bytes(pinned)} of the machine's memory{short}.")
        if self.experts is not None:
            short = self._shortage(self.experts.host_bytes)
            found.append(tell_host_experts(self.experts, step, self.run.rates, short))
        return found

    def _step_time(self, trained: int) -> StepTime:
        """Estimated time of a typical optimizer step."""
        train = self.config.train
        sequences = sequences_per_row(train.objective)
        window = self.run.rows.typical_window(train.batch_size)
        cut = micro_batches(window, max(1, self.budget // sequences), train.micro_batch_size)
        return step_time(
            self._work(),
            [(rows * sequences, width) for rows, width in cut],
            self.run.rates,
            kept_layers=self.kept_layers,
            head=HeadWork(
                hidden=self.model.hidden,
                vocabulary=self.model.vocabulary,
                supervised=self.run.rows.supervised,
                positions=loss_positions(self.model, self.how, self.batch),
                moved=LOGIT_PASSES * self.how.bytes if self.run.cuda else LOGIT_MOVED,
                trained=self.config.method.name == "full",
            ),
            updated=update_traffic(trained, train.optimizer, self.how.bytes if self.run.weights else None),
            from_host=self.experts.moved_bytes if self.experts is not None else 0,
        )

    def _expert_work(self, experts: Experts | None) -> tuple[float, float, float]:
        """Weights of the experts of a token, of the experts of any token, and the number of experts for each active
        one.
        """
        if experts is None:
            return 0.0, 0.0, 1.0
        one = sum(experts.stacked) / experts.count
        touched = touched_experts(experts.count, experts.active, self.batch.tokens)
        return one * experts.active, one * touched, experts.count / max(experts.active, 1)

    def _work(self) -> list[LayerWork]:
        """Work of every layer, in order."""
        length, passes, weights = self.batch.length, self.run.passes, self.run.weights
        regime = passes.regime(length)
        learned = 0 if weights else sum(rows * columns * count for rows, columns, count in passes.trained)
        found: list[LayerWork] = []
        for layer in self.model.layers:
            active, touched, spread = self._expert_work(layer.experts)
            # Families that compute their experts themselves have every token pass through all of them, as Llama 4 does.
            active += layer.bare_experts
            inner = sum(linear.weights for linear in layer.linears)
            for _ in range(layer.count):
                kept = regime.layer(passes.kinds[len(found)], reached=True).kept
                work = LayerWork(
                    weights=inner + active + learned / self.model.depth,
                    frozen=0 if weights else inner + active,
                    dequantized=touched + (0 if self.how.dequantized else inner) if self.how.quantized else 0,
                    attention=2.0 * layer.attention.queries,
                    moved=kept.per_token + length * kept.per_pair,
                    layers=1,
                    spread=(inner + active * spread) / max(inner + active, 1),
                )
                found.append(work)
        return found

    def _shortage(self, wanted: int) -> str:
        """A clause for host memory that does not suffice."""
        free = self.machine.host_bytes
        return f", where {format_bytes(free)} are free" if free is not None and wanted > free else ""

    def _trained(self, trainable: int, states: int) -> list[Part]:
        kind = self.config.train.optimizer
        if self.run.weights:
            in_backward = updates_in_backward(self.config)
            return own_weight_parts(kind, trainable, states, self.how.bytes, in_backward=in_backward)
        return adapter_parts(kind, trainable, states, paired=self._paired)

    @property
    def _paired(self) -> bool:
        """True if each trained adapter has a frozen reference adapter."""
        return self.config.method.init == "pissa" and not self.run.weights

    def _moving(self, phase: Phase) -> list[Part]:
        batch = self.batch
        what = "the layers' inputs, kept for recomputing" if self.checkpointing else "tensors kept for backward"
        if self.checkpointing and self.kept_layers:
            last = "layer keeps" if self.kept_layers == 1 else f"{self.kept_layers} layers keep"
            what = f"tensors that the last {last} for backward, and the inputs of the others"
        if self.offload:
            what = "the inputs of two layers, the others in the machine's memory"
        positions = loss_positions(self.model, self.how, batch)
        loss = f"logits of {positions} positions, which their gradients overwrite"
        return [
            Part("activations", int(phase.kept), f"{what}, {batch.rows} x {batch.length} tokens"),
            Part("adapter_activations", int(phase.adapters), "the adapters' weights, cast for each product"),
            Part("layer", int(phase.layer), "one layer at work, its dequantized weights among it"),
            Part("loss", int(phase.loss + phase.logits), loss),
            Part("gradients_at_work", int(phase.gradients), "of the weights that are just being updated"),
            Part("update", int(phase.update), "an update of a large tensor, before it is rounded into the weights"),
        ]

    @property
    def _pages(self) -> bool:
        """True if optimizer states are paged."""
        return self.run.cuda and self.machine.pages and self.config.train.optimizer.startswith("paged_")

    def _surroundings(self, tensors: list[Part], phases: dict[str, Phase]) -> list[Part]:
        if not self.run.cuda:
            kept = self.how.quantized or is_mapped(self.model, self.how)
            return around_cpu(self.model, phases, 0 if kept else self._file_bytes(), self.machine)
        # Paged optimizer states are not in the caching allocator.
        allocated = (part for part in tensors if not (self._pages and part.name == "optimizer"))
        return around_gpu(allocated, self.machine, self.run.sharing.cards.number if self.run.sharing is not None else 1)

    def _loading(self, weights: list[Part]) -> list[Part]:
        """Loading: while weights are converted, their source file is memory-mapped at the same time."""
        if self.run.cuda or is_mapped(self.model, self.how):
            return []
        file = Part("weights_file", self._file_bytes(), "the weight file, mapped while it is converted")
        return [*weights, file, *process(self.model, self.machine)]

    def _file_bytes(self) -> int:
        checkpoint = self.model.checkpoint
        return checkpoint.bytes if checkpoint is not None else 2 * self.model.parameters

    def _caveats(self) -> list[str]:
        found = []
        if self.run.is_rough:
            found.append("The activations are a rough bound, as the model has not been measured with these settings.")
        mixtures = [(layer.experts, layer.count) for layer in self.model.layers if layer.experts is not None]
        if mixtures and not self.run.weights:
            number = sum(experts.count * count for experts, count in mixtures)
            if (reason := without_adapters(self.config.method, mixtures[0][0].matrices, number)) is not None:
                found.append(reason)
        if self.how.quantized and self.model.bare_experts:
            found.append(tell_bare_experts(self.model.bare_experts, self.how.bytes))
        if self.model.towers is not None:
            found.append(_left_out(self.model.towers))
        if self.run.cuda and self.model.kernels:
            found.append(f"{tell_missing(self.model.kernels)} {install_command(self.model.kernels)}")
        return found


def _left_out(towers: Towers) -> str:
    """Parts of a composite model that are not loaded, in a sentence."""
    senses = {"vision": "images", "audio": "sound"}
    named = " and ".join(dict.fromkeys(senses.get(kind, kind) for kind in towers.kinds if kind in senses))
    about = "" if towers.is_exact else "about "
    size = f", which would take {about}{format_bytes(towers.bytes)}," if towers.bytes else ""
    return f"The part of the model for {named or 'other things than text'}{size} is not loaded: rows are text."


def _measured(architecture: Architecture, config: Config, how: Arithmetic, *, cached_only: bool) -> Passes | None:
    """Measured passes of a model.

    Args:
        architecture: The base model.
        config: Configuration of the run.
        how: Its arithmetic.
        cached_only: Whether only an earlier measurement is used.

    Returns:
        None if ``cached_only`` is set and there is none.

    Raises:
        UserError: If the model cannot be measured.
    """
    method = config.method
    kept: dict[str, Any] = {"name": method.name}
    if method.name == "freeze":
        kept |= {"trainable_layers": method.trainable_layers, "trainable_end": method.trainable_end}
    elif method.name != "full":
        kept |= {
            "rank": method.rank,
            # The kept memory does not depend on the share.
            "dropout": 0.1 if method.dropout else 0.0,
            "dora": method.dora,
            "target_modules": method.target_modules,
            "init": "pissa" if method.init == "pissa" else "default",
            "train_for": method.train_for,
            "target_experts": method.target_experts,
        }
    sections: dict[str, Any] = {
        "data": {"train": "x"},
        "method": kept,
        "train": {"fused_layers": config.train.fused_layers},
    }
    if how.quantized and (patterns := kept_patterns(config.model.keep_16bit)):
        sections["model"] = {"keep_16bit": list(patterns)}
    # Copies of weights are counted apart; little is dequantized beside them.
    return measure_passes(architecture, sections, asdict(replace(how, dequantized=False)), cached_only=cached_only)


def _needed(parts: list[Part]) -> int:
    return sum(part.bytes for part in parts if part.name not in RECLAIMABLE)


def arithmetic(config: Config, machine: Machine) -> Arithmetic:
    """Arithmetic of a run: dtypes, quantization and kernels."""
    precision, cuda = config.train.precision, machine.kind == "cuda"
    wide = precision == "fp32" or (precision == "auto" and not cuda and not machine.bf16)
    return Arithmetic(
        bytes=FP32 if wide else 2,
        autocast=not wide,
        quantized=config.method.name == "qlora",
        cuda=cuda,
        # The compiler fuses layers by itself, but for attention.
        fused_layers=config.train.fused_layers and not config.train.compile,
        short_attention=config.train.fused_layers and not cuda,
        fused_attention=config.train.fused_layers,
        merged=config.method.train_for is not None,
        flash=not wide and (machine.capability is None or machine.capability >= FLASH_CAPABILITY),
    )


def disk_need(model: Architecture | None, config: Config) -> DiskNeed | None:
    """Bytes that a run writes; None if unknown. Nothing is measured for it.

    Args:
        model: Architecture of the base model, if known.
        config: Configuration of the run.
    """
    if model is None:
        return None
    try:
        # Files are the same on every device.
        plan = make_plan(model, config, Machine("cpu"), source="known")
    except UserError:
        return None
    return DiskNeed(plan.checkpoint_bytes, plan.disk_bytes)


@dataclass(frozen=True)
class Fit:
    """Memory that a run needs.

    Args:
        needed_bytes: Bytes at the peak; None if unknown.
        free_bytes: Free bytes of the device; None if unknown.
        fits: Whether they suffice; None if unknown.
        reason: The reason why nothing is known, as a sentence.
        is_rough: Whether the bytes are a rough bound.
    """

    needed_bytes: int | None = None
    free_bytes: int | None = None
    fits: bool | None = None
    reason: str = ""
    is_rough: bool = False


def fit(
    architecture: Architecture | None,
    config: Config,
    machine: Machine,
    source: Source = "measured",
    rows: Rows | None = None,
) -> Fit:
    """Memory of a configuration's run with another base model.

    Args:
        architecture: The model; None if unknown.
        config: The configuration; its own model does not matter.
        machine: The machine.
        source: As for :func:`make_plan`.
        rows: Lengths of the training rows; None as for :func:`make_plan`.
    """
    if architecture is None:
        return Fit(free_bytes=machine.limit_bytes, reason="Its architecture is unknown, and so is its memory.")
    try:
        plan = make_plan(architecture, config, machine, rows, source=source)
    except UserError as error:
        return Fit(free_bytes=machine.limit_bytes, reason=error.message)
    return Fit(plan.needed_bytes, plan.limit_bytes, plan.fits, is_rough=plan.is_rough)
