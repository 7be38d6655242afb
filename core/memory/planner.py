"""Memory planner: a run's memory at its peak, part by part.

Every figure is arithmetic on shapes, except the constants of the environment in :mod:`core.memory.overhead`, which say
where they were measured. docs/memory.md explains the model and its errors.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

from core.config.derived import sequences_per_row, updates_in_backward
from core.config.experts import without_adapters
from core.config.schema import WEIGHT_METHODS, Config
from core.config.targets import kept_patterns
from core.errors import UserError
from core.memory.activations import LayerSteps
from core.memory.batching import (
    TOKEN_BUDGETS,
    WHOLE,
    chunk_positions,
    micro_batches,
    padded_length,
    token_budgets,
    tokens_of_rows,
)
from core.memory.cards import Sharing
from core.memory.choice import choose_way
from core.memory.gathered import gathered_sizes
from core.memory.host import states_host_bytes
from core.memory.host_experts import experts_on_host, place_experts, tell_host_experts
from core.memory.overhead import around_cpu, around_gpu, process
from core.memory.phases import MicroBatch, Pass, Phase
from core.memory.plan import RECLAIMABLE, Machine, Part, Plan, Way
from core.memory.rows import Rows
from core.memory.shares import Shares
from core.memory.sizes import (
    OFFLOAD_SMALLEST,
    optimizer_bytes,
    pinned_bytes,
    split_by_targets,
)
from core.memory.static import (
    adapter_parts,
    copied_weights,
    is_mapped,
    own_weight_parts,
    tell_bare_experts,
    weight_parts,
)
from core.memory.step_time import (
    LayerWork,
    Rates,
    StepTime,
    attention_work,
    head_work,
    rates_of,
    step_time,
    touched_experts,
)
from core.memory.steps import FP32, Adapters, Arithmetic
from core.memory.weights import Tensors, split_layers, trained_tensors, with_updates
from core.models.architecture.architecture import Architecture, Experts
from core.models.architecture.measured import Passes
from core.models.architecture.measuring import measure_passes
from core.models.architecture.towers import Towers
from core.models.kernels import install_command, tell_missing
from core.units import format_bytes

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
    cached_only: bool = False,
) -> Plan:
    """Make the memory plan of a run.

    Args:
        architecture: The base model.
        config: Configuration of the run.
        machine: Machine of the run.
        rows: Lengths of the training rows; None to assume the greatest length, with all tokens in the loss.
        token_budget: Token budget of a micro-batch; None for the initial one.
        checkpointing: Whether gradient checkpointing is on, if the worker has decided it.
        kept_layers: Number of layers, the last ones, whose activations are kept with it.
        dequantized: Whether dequantized copies of 4-bit weights are kept, if the worker has decided it.
        offload: Whether checkpointed layer inputs are offloaded to host memory, if the worker has decided it.
        host_experts: Whether 4-bit experts live in host memory; None for what ``memory.offload_experts`` says.
        sharing: How several cards share the run; the plan is then that of one of them, ``config`` its part of the run
            (:func:`core.memory.strategy.part_of_card`), ``machine`` the card and its part of host memory.
        cached_only: Whether to refuse what would have to be measured first, which takes seconds.

    If undecided, the token budget, or a part of it, and the number of layers with gradient checkpointing are those of
    the shortest estimated step that fits, within what ``memory.gradient_checkpointing`` allows; with an unknown limit
    gradient checkpointing is on on a GPU. If nothing fits, checkpointed layer inputs are offloaded from a GPU, where
    host memory has room for them.

    Raises:
        UserError: If no layer of the model is trained, or its positions are fewer than the rows' tokens.
    """
    decided = _Decided(token_budget, checkpointing, kept_layers, dequantized, offload)
    planning = _Planning(architecture, config, machine, rows, decided, sharing, cached_only)
    if host_experts is not None:
        return planning.plan(host_experts)
    return place_experts(architecture, config, machine, planning.plan)


@dataclass(frozen=True)
class _Decided:
    """What the worker has decided; None, or no kept layers, for what is left to the plan. See :func:`make_plan`."""

    token_budget: int | None
    checkpointing: bool | None
    kept_layers: int
    dequantized: bool | None
    offload: bool | None


@dataclass(frozen=True)
class _Planning:
    """The search for the way of a run, with its experts in one place or the other; see :func:`make_plan`."""

    architecture: Architecture
    config: Config
    machine: Machine
    rows: Rows | None
    decided: _Decided
    sharing: Sharing | None
    cached_only: bool

    def plan(self, host_experts: bool) -> Plan:
        """The plan of the chosen way, with copies of weights where there is plenty of memory."""
        found = self._fixed(host_experts) if self._is_fixed else self._chosen(host_experts)
        return self._with_copies(found)

    @property
    def _first_budget(self) -> int:
        """The token budget to begin with."""
        if updates_in_backward(self.config):
            return WHOLE
        return self.decided.token_budget or TOKEN_BUDGETS[self.machine.kind]

    @property
    def _offloads(self) -> bool:
        """Whether checkpointed layer inputs are offloaded whatever fits."""
        if self.decided.offload is not None:
            return self.decided.offload
        return self.machine.kind == "cuda" and self.config.memory.activation_offload == "on"

    @property
    def _is_fixed(self) -> bool:
        """Whether there is no way to choose."""
        return self.decided.checkpointing is not None or self._offloads or self.machine.limit_bytes is None

    @property
    def _keeps_copies(self) -> bool:
        """Whether dequantized copies of weights are kept before it is known whether they fit."""
        asked = self.config.memory.keep_dequantized == "on"
        return asked if self.decided.dequantized is None else self.decided.dequantized

    def _fixed(self, host_experts: bool) -> Plan:
        depth, checkpointing = self.architecture.depth, self.decided.checkpointing
        recomputed = _is_on(self.config, self.machine) or self._offloads if checkpointing is None else checkpointing
        kept = self.decided.kept_layers if recomputed else depth
        return self._plan(Way(self._first_budget, kept, self._offloads, host_experts), copies=self._keeps_copies)

    def _chosen(self, host_experts: bool) -> Plan:
        config, machine = self.config, self.machine
        may_offload = self.decided.offload is None and config.memory.activation_offload == "auto"
        return choose_way(
            token_budgets(self._first_budget, _longest(self.architecture, config, self.rows)),
            _kept_layers(config, self.architecture.depth),
            lambda way: self._plan(replace(way, host_experts=host_experts), copies=self._keeps_copies),
            offload=machine.kind == "cuda" and machine.pins and may_offload,
        )

    def _with_copies(self, found: Plan) -> Plan:
        """The plan with dequantized copies of weights, if that is left open and they take little of what is free."""
        memory, limit = self.config.memory, self.machine.limit_bytes
        # If memory had to be freed already, there is none for copies.
        freed = found.checkpointing or found.token_budget < self._first_budget
        tight = freed and memory.gradient_checkpointing != "on"
        wanted = self.decided.dequantized is None and memory.keep_dequantized == "auto"
        if not wanted or tight or limit is None:
            return found
        copied = replace(self._plan(found.way, copies=True), reason=found.reason)
        return copied if copied.needed_bytes <= limit * COPIES_SHARE else found

    def _plan(self, way: Way, *, copies: bool) -> Plan:
        return _Planner(
            self.architecture,
            self.config,
            self.machine,
            self.rows,
            way,
            copies,
            sharing=self.sharing,
            cached_only=self.cached_only,
        ).plan()


def make_least_plan(
    architecture: Architecture,
    config: Config,
    machine: Machine,
    rows: Rows | None = None,
    *,
    token_budget: int | None = None,
) -> Plan:
    """Make the memory plan of a run in the least memory that it would be given on its device.

    Micro-batches are the smallest that are chosen, all layers recompute their activations where the configuration lets
    them, and no copies of weights are kept. What is free beyond that makes a run faster, and nothing else.

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
        token_budget=token_budgets(first, _longest(architecture, config, rows))[-1],
        checkpointing=fewest == 0,
        dequantized=config.memory.keep_dequantized == "on",
    )


def _longest(architecture: Architecture, config: Config, rows: Rows | None) -> int:
    """Tokens of the longest row, all of its sequences included."""
    return training_rows(architecture, config, rows).runs[0][0] * sequences_per_row(config.train.objective)


def _is_on(config: Config, machine: Machine) -> bool:
    """Whether gradient checkpointing is on where the free memory is unknown."""
    # Free GPU memory is nearly always known; if not, the smaller need is the safer one to report.
    wanted = config.memory.gradient_checkpointing
    return wanted == "on" or (wanted == "auto" and machine.kind == "cuda")


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
        UserError: If none is left.
    """
    train = config.train
    if rows is None:
        length = min(train.max_length, architecture.positions or train.max_length)
        return Rows([(padded_length(length), train.batch_size)])
    kept = rows.limited(train.max_length, config.data.overlong)
    if kept is None:
        raise UserError(
            f"No row has {train.max_length} tokens or fewer, so none would be trained on.",
            "Raise train.max_length.",
        )
    return kept


class _Planner:
    def __init__(
        self,
        architecture: Architecture,
        config: Config,
        machine: Machine,
        rows: Rows | None,
        way: Way,
        dequantized: bool,
        *,
        sharing: Sharing | None,
        cached_only: bool,
    ) -> None:
        self.sharing = sharing
        split = list(split_by_targets(architecture.layers, architecture.prefix, config.method))
        self.model = replace(architecture, layers=tuple(layer for layer, _ in split))
        self.config = config
        self.machine = machine
        self.assumed = rows is None
        self.rows = training_rows(architecture, config, rows)
        self.cuda = machine.kind == "cuda"
        self.kept_layers = way.kept_layers
        self.checkpointing = way.kept_layers < architecture.depth
        self.budget = way.token_budget
        how = arithmetic(config, machine)
        self.dequantized = dequantized and (how.quantized or how.merged) and how.fused_layers
        self.how = replace(how, dequantized=self.dequantized)
        self.batch = self._micro_batch()
        # The input of a layer.
        self.hidden = self.how.bytes * self.model.hidden * self.batch.tokens
        self.offload = way.offload and self.checkpointing and self.hidden >= OFFLOAD_SMALLEST
        self.keep = kept_patterns(config.model.keep_16bit)
        self.experts = experts_on_host(architecture, self.keep) if way.host_experts else None
        method = config.method
        self.weights = method.name in WEIGHT_METHODS
        self.measured = measured_passes(architecture, config, self.how, cached_only=cached_only)
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
        train, model, kept = self.config.train, self.model, self.rows
        sequences = sequences_per_row(train.objective)
        budget = max(1, self.budget // sequences)
        before, rows, width = kept.largest_shape(train.batch_size, budget, train.micro_batch_size)
        if model.learned_positions and model.positions is not None and width > padded_length(model.positions):
            raise UserError(
                f"The model knows {model.positions} positions, and rows have up to {width} tokens.",
                f"Set train.max_length to {model.positions} or less.",
            )
        learned = math.ceil((min(tokens_of_rows(kept.runs, before, rows), rows * width) - rows) * kept.supervised)
        return MicroBatch(rows * sequences, width, max(1, learned) * sequences)

    @property
    def _assumed_length(self) -> int:
        """Tokens of every row, where their lengths are not known."""
        longest = self.config.train.max_length
        return min(longest, self.model.positions or longest)

    def _targets(self) -> Counter[str]:
        if self.measured is not None:
            return Counter(dict(self.measured.targets))
        found: Counter[str] = Counter()
        for layer, adapters in zip(self.model.layers, self.adapters, strict=True):
            for linear in sorted(adapters.targets):
                found[linear.rpartition(".")[2]] += layer.count
        return found

    def _trained_tensors(self) -> Tensors:
        """Rows, columns and number of each kind of trained tensor."""
        if self.measured is not None:
            return list(self.measured.trained)
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
        return found

    # Phases

    def plan(self) -> Plan:
        """The plan."""
        tensors = self._trained_tensors()
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
            targets=tuple(self._targets().items()),
            dequantized=self.dequantized,
            experts_host_bytes=self.experts.host_bytes if self.experts is not None else 0,
            shares_host_bytes=shares.on_host(held) if shares is not None else 0,
            wire_bytes=shares.on_wire(step.micro_batches) if shares is not None else 0,
        )

    def _shares(self, tensors: Tensors) -> Shares | None:
        """What the card shares with others; None for one card."""
        if self.sharing is None:
            return None
        width = self.how.bytes if self.weights else FP32
        return Shares(
            self.sharing, gathered_sizes(self.model, self.how, self.keep, tensors, width=width, whole=self.weights)
        )

    def _weights(self) -> list[Part]:
        copied = copied_weights(self.model, self.adapters) if self.dequantized else 0
        return weight_parts(self.model, self.how, copied, self.keep, self.experts)

    def _peak(self, tensors: Tensors, held: list[Part]) -> tuple[str, list[Part], int]:
        """The phase of the peak, the parts of the memory then, and what of it must be resident.

        Args:
            tensors: Trained tensors.
            held: Weights, and what is trained with its gradients and optimizer states.
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
        phases = Pass(
            self.model,
            self.how,
            self.adapters,
            self.batch,
            kept_layers=self.kept_layers,
            offload=self.offload,
            gradient_from={"full": "embeddings", "freeze": "trained"}.get(self.config.method.name, "first layer"),
            measured=self.measured,
        ).phases()
        if not self.weights:
            return phases
        found = with_updates(phases, self.model, self.config, tensors, self.how.bytes, cuda=self.cuda)
        if self.sharing is None:
            return found
        return {name: replace(phase, update=self.sharing.of_update(phase.update)) for name, phase in found.items()}

    def _on_disk(self, trainable: int, states: int) -> tuple[int, int]:
        """Bytes of a checkpoint, and of all that a run has on the disk at once."""
        width = self.how.bytes if self.weights else FP32
        saved = trainable * width * (2 if self._paired else 1)
        checkpoint = saved + states + CHECKPOINT_EXTRA
        final = self.model.parameters * width if self.weights else saved
        # A new checkpoint is complete before the oldest is deleted.
        return checkpoint, (self.config.checkpoint.keep + 1) * checkpoint + final + ADAPTER_EXTRA

    def _notes(self, paged: int, on_host: int, pinned: int, step: StepTime) -> list[str]:
        """Remarks on what is assumed, and on what is in the machine's memory."""
        found = []
        if self.assumed:
            found.append(f"Every row is taken to have {self._assumed_length} tokens, all of them learned.")
        if paged > PAGED_NOTE:
            found.append(
                f"{format_bytes(paged)} of optimizer states are paged: they move to the machine's memory where the "
                f"card's does not suffice{self._shortage(on_host)}."
            )
        if pinned:
            short = self._shortage(pinned)
            found.append(f"The layers' inputs take up to {format_bytes(pinned)} of the machine's memory{short}.")
        if self.experts is not None:
            found.append(tell_host_experts(self.experts, step, self._rates(), self.machine.host_bytes))
        return found

    def _rates(self) -> Rates:
        machine = self.machine
        return rates_of(machine.device, machine.calibration, cuda=self.cuda, wide=not self.how.autocast)

    def _step_time(self, trained: int) -> StepTime:
        """Estimated time of a typical optimizer step."""
        train = self.config.train
        sequences = sequences_per_row(train.objective)
        window = self.rows.typical_window(train.batch_size)
        cut = micro_batches(window, max(1, self.budget // sequences), train.micro_batch_size)
        return step_time(
            self._work(),
            [(rows * sequences, width) for rows, width in cut],
            self._rates(),
            kept_layers=self.kept_layers,
            head=head_work(self.model.vocabulary, self.model.hidden, self.rows.supervised),
            trained=trained,
            from_host=self.experts.moved_bytes if self.experts is not None else 0,
        )

    def _work(self) -> list[LayerWork]:
        """Work of every layer, in order."""
        if self.measured is not None:
            return self._measured_work(self.measured)
        found: list[LayerWork] = []
        for layer, adapters in zip(self.model.layers, self.adapters, strict=True):
            steps = LayerSteps(layer, self.model.hidden, self.how, adapters, self.batch.length).steps()
            inner = sum(linear.weights for linear in layer.linears)
            learned = sum(
                adapters.rank * (linear.inputs + linear.outputs)
                for linear in layer.linears
                if linear.name in adapters.targets
            )
            work = LayerWork(
                weights=inner + learned,
                frozen=0 if adapters.weights else inner,
                dequantized=inner if self.how.quantized and not self.how.dequantized else 0,
                attention=attention_work(layer.attention.queries),
                moved=sum(step.kept for step in steps),
                layers=1,
            )
            found += [work] * layer.count
        return found

    def _expert_work(self, experts: Experts | None) -> tuple[float, float, float]:
        """Weights of the experts that a token is multiplied with, of those that any token is, and the number of experts
        for each active one.
        """
        if experts is None:
            return 0.0, 0.0, 1.0
        one = sum(experts.stacked) / experts.count
        touched = touched_experts(experts.count, experts.active, self.batch.tokens)
        return one * experts.active, one * touched, experts.count / max(experts.active, 1)

    def _measured_work(self, measured: Passes) -> list[LayerWork]:
        """Work of every layer of a measured model, in order."""
        length = self.batch.length
        regime = measured.regime(length)
        learned = 0 if self.weights else sum(rows * columns * count for rows, columns, count in measured.trained)
        found: list[LayerWork] = []
        for layer in self.model.layers:
            active, touched, spread = self._expert_work(layer.experts)
            # Families that compute their experts themselves have every token pass through all of them, as Llama 4 does.
            active += layer.bare_experts
            inner = sum(linear.weights for linear in layer.linears)
            for _ in range(layer.count):
                kept = regime.layer(measured.kinds[len(found)], reached=True).kept
                work = LayerWork(
                    weights=inner + active + learned / self.model.depth,
                    frozen=0 if self.weights else inner + active,
                    dequantized=touched + (0 if self.how.dequantized else inner) if self.how.quantized else 0,
                    attention=attention_work(layer.attention.queries),
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
        if self.weights:
            return own_weight_parts(kind, trainable, states, self.how.bytes, in_backward=self.in_backward)
        return adapter_parts(kind, trainable, states, paired=self._paired)

    @property
    def _paired(self) -> bool:
        """Whether each trained adapter has a frozen reference adapter."""
        return any(adapters.paired for adapters in self.adapters)

    def _moving(self, phase: Phase) -> list[Part]:
        batch = self.batch
        what = "the layers' inputs, kept for recomputing" if self.checkpointing else "what the layers keep for backward"
        if self.checkpointing and self.kept_layers:
            last = "layer keeps" if self.kept_layers == 1 else f"{self.kept_layers} layers keep"
            what = f"what the last {last} for backward, and the inputs of the others"
        if self.offload:
            what = "the inputs of two layers, the others in the machine's memory"
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

    @property
    def _pages(self) -> bool:
        """Whether optimizer states are paged."""
        return self.cuda and self.machine.pages and self.config.train.optimizer.startswith("paged_")

    def _surroundings(self, tensors: list[Part], phases: dict[str, Phase]) -> list[Part]:
        if not self.cuda:
            kept = self.how.quantized or is_mapped(self.model, self.how)
            return around_cpu(self.model, phases, 0 if kept else self._file_bytes(), self.machine)
        # Paged optimizer states are not in the caching allocator.
        allocated = (part for part in tensors if not (self._pages and part.name == "optimizer"))
        return around_gpu(allocated, self.machine, self.sharing.cards.number if self.sharing is not None else 1)

    def _loading(self, weights: list[Part]) -> list[Part]:
        """Loading: while weights are converted, their source file is memory-mapped at the same time."""
        if self.cuda or is_mapped(self.model, self.how):
            return []
        file = Part("weights_file", self._file_bytes(), "the weight file, mapped while it is converted")
        return [*weights, file, *process(self.model, self.machine)]

    def _file_bytes(self) -> int:
        checkpoint = self.model.checkpoint
        return checkpoint.bytes if checkpoint is not None else 2 * self.model.parameters

    def _bare_experts(self) -> str | None:
        """Why experts have no adapters, in a sentence, where that was not asked for."""
        layers = [(layer.experts, layer.count) for layer in self.model.layers if layer.experts is not None]
        if not layers:
            return None
        experts = sum(each.count * count for each, count in layers)
        return without_adapters(self.config.method, layers[0][0].matrices, experts)

    def _caveats(self) -> list[str]:
        found = []
        if self.measured is not None:
            found.append(
                f"The memory of the family {self.model.family} was measured, on the model built without its weights."
            )
        if not self.weights and (sentence := self._bare_experts()) is not None:
            found.append(sentence)
        if self.how.quantized and self.model.bare_experts:
            found.append(tell_bare_experts(self.model.bare_experts, self.how.bytes))
        if self.model.towers is not None:
            found.append(_left_out(self.model.towers))
        if self.cuda and self.model.kernels:
            found.append(f"{tell_missing(self.model.kernels)} {install_command(self.model.kernels)}")
        return found


def _left_out(towers: Towers) -> str:
    """What is not loaded of a composite model, in a sentence."""
    senses = {"vision": "images", "audio": "sound"}
    named = " and ".join(dict.fromkeys(senses.get(kind, kind) for kind in towers.kinds if kind in senses))
    about = "" if towers.is_exact else "about "
    size = f", which would take {about}{format_bytes(towers.bytes)}," if towers.bytes else ""
    return f"What the model has for {named or 'other things than text'}{size} is not loaded: rows are text."


def measured_passes(
    architecture: Architecture, config: Config, how: Arithmetic, *, cached_only: bool = False
) -> Passes | None:
    """What the layers of a model keep and take, where that is measured; None for the families of the tables.

    Args:
        architecture: The base model.
        config: Configuration of the run.
        how: Its arithmetic.
        cached_only: Whether to give up if it has not been measured before.

    Raises:
        UserError: If it cannot be measured, or has not been.
    """
    if not architecture.description:
        return None
    method = config.method
    kept: dict[str, Any] = {"name": method.name}
    if method.name == "freeze":
        kept |= {"trainable_layers": method.trainable_layers, "trainable_end": method.trainable_end}
    elif method.name != "full":
        kept |= {
            "rank": method.rank,
            # Whatever the share, as much is kept.
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
    # Copies of weights are counted apart; what is dequantized beside them is little.
    found = measure_passes(architecture, sections, asdict(replace(how, dequantized=False)), cached_only=cached_only)
    if found is None:
        raise UserError("It has not been measured with these settings.")
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
        fused_attention=config.train.fused_layers,
        merged=config.method.train_for is not None,
        flash=not wide and (machine.capability is None or machine.capability >= FLASH_CAPABILITY),
    )
