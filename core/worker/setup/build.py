"""The parts of a run, built in one place from its configuration."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from core.config.derived import FP32_STATES, updates_in_backward
from core.config.schema import WEIGHT_METHODS, Config, TrainSection
from core.data.registries.data_files import DataHashes
from core.hardware.wsl import is_wsl
from core.memory.batching import TOKEN_BUDGETS
from core.models.fingerprint import BaseFingerprint
from core.worker.checkpoint.checkpoint import Checkpoint
from core.worker.checkpoint.checkpointer import Checkpointer, Fingerprints
from core.worker.checkpoint.rollback import Rollback
from core.worker.control_point import ControlPoint
from core.worker.data.batches import DataOrder
from core.worker.data.dataset import Dataset
from core.worker.distributed.orders import Orders
from core.worker.distributed.ranks import Ranks
from core.worker.distributed.strategy import Strategy
from core.worker.evaluate.evaluate import Evaluator
from core.worker.evaluate.probe import Probe
from core.worker.evaluate.samples import Questions, SampleWriter, choose_questions
from core.worker.loss.fused_loss import LossChoice, choose_for_run
from core.worker.loss.loss import SupervisedLoss
from core.worker.loss.objectives import Objective, make_objectives
from core.worker.loss.reference import PrecomputedReference
from core.worker.model.activation_offload import available_offload
from core.worker.model.adapters import parameter_groups
from core.worker.model.full_weights import trained_tensors
from core.worker.model.model import LoadedModel, trainable_parameters
from core.worker.oom.retry import Retry, shortage_explained
from core.worker.optim.optim import make_optimizer
from core.worker.optim.paged import PagedBuffers, unpaged_where_needed
from core.worker.optim.rounding_trial import choose_kernels
from core.worker.optim.schedule import LearningRate, warmup_steps
from core.worker.optim.update import AdapterUpdate, Update, WeightUpdate
from core.worker.process.control import Controls
from core.worker.process.determinism import (
    BIT_FOR_BIT,
    TO_ROUNDING,
    Determinism,
    apply_determinism,
    choose_determinism,
    fix_workspace,
)
from core.worker.process.governor import Governor
from core.worker.process.malloc import keep_freed_memory
from core.worker.process.recorder import Recorder
from core.worker.process.rng import seed_unused
from core.worker.process.throttle import Throttle
from core.worker.progress.best import BestStep
from core.worker.progress.finite import FiniteCheck
from core.worker.progress.intervals import Intervals
from core.worker.progress.limits import Limits
from core.worker.progress.spikes import LossSpikes, Told
from core.worker.progress.state import TrainState
from core.worker.setup.compilation import Compilation, compile_layers
from core.worker.setup.device import settle_device
from core.worker.setup.fast_paths import choose_packing, keep_weights, wants_packing
from core.worker.setup.governing import make_governor
from core.worker.setup.memory_decision import (
    MemoryDecision,
    MemoryMeter,
    decide_experts,
    decide_memory,
    measure_ahead,
    with_experts,
)
from core.worker.setup.origin import Origin
from core.worker.setup.preparation import Prepared, prepare
from core.worker.setup.ready_model import SMALLER, ReadyModel, make_ready
from core.worker.setup.self_check import check_head, check_model
from core.worker.setup.together import (
    agree_kept_layers,
    agree_memory,
    check_strategy,
    first_goes_ahead,
    make_strategy,
    settle_options,
    settle_strategy,
)
from core.worker.steps.file_training import FileTraining
from core.worker.steps.gradient_checkpointing import GradientCheckpointing
from core.worker.steps.neftune import EmbeddingNoise
from core.worker.steps.window import MicroBatches, first_budget


@dataclass(frozen=True)
class Parts:
    """The parts of a run, each fully configured."""

    loaded: LoadedModel
    dataset: Dataset
    state: TrainState
    order: DataOrder
    micro_batches: MicroBatches
    noise: EmbeddingNoise
    objective: Objective
    accelerator: Accelerator
    update: Update
    learning_rate: LearningRate
    intervals: Intervals
    evaluator: Evaluator | None
    """None where nothing is held out."""
    probe: Probe | None
    """None where the general probe is not measured."""
    samples: SampleWriter
    memory: MemoryDecision
    meter: MemoryMeter
    checkpointer: Checkpointer
    rollback: Rollback
    control_point: ControlPoint
    governor: Governor
    compilation: Compilation | None
    """None where layers run as they are."""
    file: FileTraining | None
    """None where no file's weights are trained."""
    origin: Origin | None
    """None in a process that is not the first one of the run."""
    strategy: Strategy
    """How the processes of the run share the model and the work."""
    orders: Orders
    """What the first of them tells the others to do."""


def build(
    config: Config,
    recorder: Recorder,
    controls: Controls,
    found: Checkpoint | None,
    throttle: Throttle,
    ranks: Ranks | None = None,
) -> Parts:
    """Read the rows, load the model and build what trains it.

    Args:
        config: The configuration, paths absolute.
        recorder: Of the run; where events go.
        controls: Stops it.
        found: The checkpoint that the run goes on from; None at its beginning. It is not restored here.
        throttle: The duty cycle of the training.
        ranks: The processes of the run; None for this one alone.

    Raises:
        RankLostError: If another process does not answer.
        StopRequested: If a stop was asked for.
        UserError: If the run cannot be done.
    """
    run = _settle(config, recorder, controls, found, throttle, ranks or Ranks.single())
    questions = choose_questions(run.config, run.prepared.held_out)
    controls.check_stop()
    recorder.phase("loading_model", config.model.base)
    # Beside the loading, which reads the same files.
    base = BaseFingerprint(run.prepared.base)
    # They go into the record, which the first process writes.
    files = DataHashes(config.data) if run.ranks.is_first else None
    placed = _place_model(run)
    goal = _make_goal(run, placed.model)
    order = DataOrder(run.prepared.dataset.lengths, config.train.batch_size, config.train.seed)
    # Some have loaded the model from a slower disk; an optimizer that is shared out is made together.
    run.ranks.meet()
    state = _make_state(run, order, placed, goal)
    training = _make_training(run, placed, goal, state)
    keeping = _make_keeping(run, base, placed, training, state)
    measuring = _make_measuring(run, placed, goal, keeping.control_point, questions)
    recorder.update(total_steps=state.total_steps)
    base.settle(controls.check_stop)
    if files is not None:
        files.settle(controls.check_stop)
    return _joined(run, files, order, state, placed, goal, training, keeping, measuring)


@dataclass(frozen=True)
class _Settled:
    """A run whose rows are read and whose options are settled, by all of its processes; its model is not loaded."""

    config: Config
    recorder: Recorder
    controls: Controls
    found: Checkpoint | None
    device: torch.device
    governor: Governor
    deterministic: Determinism
    strategy: Strategy
    prepared: Prepared

    @property
    def ranks(self) -> Ranks:
        """The processes."""
        return self.strategy.ranks


def _settle(
    config: Config,
    recorder: Recorder,
    controls: Controls,
    found: Checkpoint | None,
    throttle: Throttle,
    ranks: Ranks,
) -> _Settled:
    """Read the rows, and settle what comes before the model."""
    fix_workspace(config.train.deterministic)
    seed_unused(config.train.seed)
    # What the device and the strategy cannot do is said before minutes are spent on the rows.
    device = settle_device(config, recorder)
    governor = make_governor(config, recorder, controls, device, throttle)
    deterministic = _settle_determinism(config, device, recorder)
    check_strategy(config, ranks)
    if ranks.is_first:
        measure_ahead(config, device)
    first_goes_ahead(config, recorder, controls.check_stop, ranks)
    prepared = prepare(config, recorder, controls.check_stop, recorder.run.created)
    config = settle_strategy(config, device, prepared.dataset, recorder, ranks)
    strategy = make_strategy(config, ranks, recorder)
    config = settle_options(config, strategy, recorder)
    config = agree_kept_layers(config, prepared, device, recorder, controls.check_stop, strategy.ranks)
    return _Settled(config, recorder, controls, found, device, governor, deterministic, strategy, prepared)


def _joined(
    run: _Settled,
    files: DataHashes | None,
    order: DataOrder,
    state: TrainState,
    placed: _Placed,
    goal: _Goal,
    training: _Training,
    keeping: _Keeping,
    measuring: _Measuring,
) -> Parts:
    """All parts of a run."""
    model, dataset = placed.model, run.prepared.dataset
    return Parts(
        loaded=model.loaded,
        dataset=dataset,
        state=state,
        order=order,
        micro_batches=training.micro_batches,
        noise=training.noise,
        objective=goal.objective,
        accelerator=model.accelerator,
        update=training.update,
        learning_rate=LearningRate(run.config.train, state),
        intervals=Intervals(run.config, state, order.steps_per_epoch),
        evaluator=measuring.evaluator,
        probe=measuring.probe,
        samples=measuring.samples,
        memory=placed.memory,
        meter=MemoryMeter(placed.used, model.loaded.device, dataset, state, model.fused, run.recorder),
        checkpointer=keeping.checkpointer,
        rollback=keeping.rollback,
        control_point=keeping.control_point,
        governor=run.governor,
        compilation=training.compilation,
        file=keeping.file,
        origin=None if files is None else Origin(files, dataset, keeping.checkpointer),
        strategy=run.strategy,
        orders=keeping.orders,
    )


@dataclass(frozen=True)
class _Placed:
    """The model of a run on its device, and what is decided of its memory."""

    model: ReadyModel
    memory: MemoryDecision
    used: Config
    """The configuration with the optimizer and the place of experts that are used."""
    token_budget: int
    """The most tokens of a micro-batch, if there is room."""


def _place_model(run: _Settled) -> _Placed:
    """Load the model and make it ready, with what has to be decided of its memory before and after."""
    config, recorder, dataset, strategy = run.config, run.recorder, run.prepared.dataset, run.strategy
    token_budget = first_budget(run.device, whole=updates_in_backward(config))
    host_experts, why_experts = decide_experts(config, run.device, dataset, token_budget)
    model = make_ready(config, run.prepared, recorder, run.controls, run.found, strategy, host_experts=host_experts)
    loaded = model.loaded
    _tell_experts(loaded, why_experts, recorder)
    used = _with_usable_optimizer(config, loaded.device, recorder, wsl=is_wsl())
    used = with_experts(used, there=host_experts)
    memory = agree_memory(decide_memory(used, loaded.device, dataset, token_budget), strategy)
    if memory.dequantized:
        keep_weights(model.fused, loaded.dtype, recorder.warn)
    return _Placed(model, memory, used, token_budget)


def _make_state(run: _Settled, order: DataOrder, placed: _Placed, goal: _Goal) -> TrainState:
    """The state of the training at its beginning."""
    config, dataset, train, memory = run.config, run.prepared.dataset, run.config.train, placed.memory
    # All processes see the same losses: one of them tells.
    warn = run.recorder.warn if run.ranks.is_first else _silent
    total_steps = train.max_steps or math.ceil(train.epochs * order.steps_per_epoch)
    return TrainState(
        total_steps=total_steps,
        token_budget=memory.token_budget,
        best=BestStep(config.eval.patience, config.eval.min_delta),
        finite=FiniteCheck(warn, dataset.places),
        scaler=placed.model.accelerator.scaler,
        reference_budget=goal.reference_budget,
        checkpointing=memory.checkpointing,
        kept_layers=memory.kept_layers,
        offloading=memory.offload,
        liger=goal.liger,
        deterministic=run.deterministic,
        spikes=_make_spikes(train, total_steps, dataset, warn),
        limits=Limits(train.max_hours, train.max_energy_wh, lambda: run.recorder.energy_wh),
    )


def _silent(code: str, message: str, hint: str) -> None:
    """Tell nothing."""


def _make_spikes(train: TrainSection, total_steps: int, dataset: Dataset, warn: Told) -> LossSpikes:
    """What looks for loss spikes."""
    return LossSpikes(
        train.on_loss_spike,
        threshold=train.loss_spike,
        patience=train.loss_spike_patience,
        limit=train.loss_limit,
        warmup=warmup_steps(train.warmup, total_steps),
        notice=warn,
        places=dataset.places,
    )


@dataclass(frozen=True)
class _Training:
    """The parts that make a step."""

    update: Update
    noise: EmbeddingNoise
    checkpointing: GradientCheckpointing
    micro_batches: MicroBatches
    compilation: Compilation | None


def _make_training(run: _Settled, placed: _Placed, goal: _Goal, state: TrainState) -> _Training:
    """The optimizer, the micro-batches, and what layers do with their activations."""
    config, recorder, dataset, strategy = run.config, run.recorder, run.prepared.dataset, run.strategy
    model, loaded, in_backward = placed.model, placed.model.loaded, updates_in_backward(config)
    retry = Retry(lambda: f"step {state.step + 1}", recorder.warn)
    update = _make_update(
        placed.used, loaded, model.accelerator, retry, strategy, in_backward=in_backward, notice=recorder.warn
    )
    noise = EmbeddingNoise(loaded.model, config.method.neftune_alpha)
    offload = available_offload(config.memory.activation_offload, loaded.device)
    checkpointing = GradientCheckpointing(loaded.model, state, offload)
    micro_batches = MicroBatches(
        loaded,
        goal.loss,
        dataset.lengths,
        goal.objective,
        state,
        checkpointing,
        config.train.micro_batch_size,
        recorder.warn,
        partial=lambda: update.partial,
        whole=in_backward,
        place=dataset.place,
        free_caches=model.fused.drop_weights,
        failures=strategy.failures,
    )
    if loaded.device.type == "cpu":
        keep_freed_memory()
    compilation = compile_layers(loaded, recorder.warn) if model.is_compiled else None
    return _Training(update, noise, checkpointing, micro_batches, compilation)


@dataclass(frozen=True)
class _Keeping:
    """The parts that keep what is trained, and let others ask for it."""

    orders: Orders
    checkpointer: Checkpointer
    file: FileTraining | None
    control_point: ControlPoint
    rollback: Rollback


def _make_keeping(
    run: _Settled, base: BaseFingerprint, placed: _Placed, training: _Training, state: TrainState
) -> _Keeping:
    """Orders to the other processes, checkpoints, the rollback to them, and the control point."""
    config, recorder, prepared, strategy = run.config, run.recorder, run.prepared, run.strategy
    model, loaded, template = placed.model, placed.model.loaded, prepared.template
    update, checkpointing = training.update, training.checkpointing
    orders = Orders(run.ranks, config.distributed.timeout, holds=lambda: run.governor.pause is not None)
    strategy.connect(orders)
    fingerprints = Fingerprints(prepared.data_fingerprint, prepared.held_out_fingerprint, base)
    checkpointer = Checkpointer(
        config, loaded, update, state, checkpointing, fingerprints, template, recorder, strategy, orders
    )
    file = None
    if model.file_weights is not None:
        file = FileTraining(model.file_weights, state, loaded.dtype, placed.memory.dequantized, recorder.notice)
    control_point = ControlPoint(
        config,
        loaded,
        model.accelerator.autocast,
        template,
        state,
        checkpointer,
        recorder,
        run.controls,
        model.file_weights,
        run.governor,
        orders,
        strategy.leading,
    )
    rollback = Rollback(config, prepared.base, base, loaded, update, state, checkpointing, checkpointer, recorder)
    return _Keeping(orders, checkpointer, file, control_point, rollback)


@dataclass(frozen=True)
class _Measuring:
    """The parts that measure what is trained, and show it."""

    samples: SampleWriter
    evaluator: Evaluator | None
    probe: Probe | None


def _make_measuring(
    run: _Settled, placed: _Placed, goal: _Goal, control_point: ControlPoint, questions: Questions
) -> _Measuring:
    """Samples, the evaluation on held-out rows, and the general probe."""
    config, recorder, prepared = run.config, run.recorder, run.prepared
    loaded, autocast, token_budget = placed.model.loaded, placed.model.accelerator.autocast, placed.token_budget
    samples = SampleWriter(
        loaded,
        questions,
        autocast=autocast,
        template=prepared.template,
        warn=lambda message, hint: recorder.warn("no_samples", message, hint),
    )
    evaluator = None
    if prepared.held_out is not None and goal.held_out is not None:
        shown = 0 if samples.is_needed else config.eval.samples
        evaluator = _make_evaluator(config, control_point, prepared.held_out, goal.held_out, token_budget, shown)
    probe = None
    if evaluator is not None and prepared.probe:
        budget = min(token_budget, TOKEN_BUDGETS[loaded.device.type])
        probe = Probe(loaded, goal.loss, prepared.probe, budget, autocast, control_point.attend, recorder.warn)
    return _Measuring(samples, evaluator, probe)


def _settle_determinism(config: Config, device: torch.device, recorder: Recorder) -> Determinism:
    """The determinism of the run, set for all that follows, and told where it costs bits."""
    deterministic = choose_determinism(config.train.deterministic, device.type)
    apply_determinism(deterministic, device.type)
    if deterministic == "fast":
        recorder.notice("info", "determinism", TO_ROUNDING, BIT_FOR_BIT)
    return deterministic


@dataclass(frozen=True)
class _Goal:
    """The objective of a run, and the loss in it."""

    loss: SupervisedLoss
    """Sums the loss of a batch."""
    liger: str | None
    """The version of Liger's package, where it sums the loss."""
    objective: Objective
    """On the rows trained on."""
    held_out: Objective | None
    """The same on those held out; None where there are none."""
    reference_budget: int | None
    """The most tokens of a batch in which the reference was measured; None where it was not, before training."""


def _make_goal(run: _Settled, model: ReadyModel) -> _Goal:
    """The loss, once the model has passed the self-check, and the objectives with it."""
    config, recorder, prepared, found = run.config, run.recorder, run.prepared, run.found
    loaded, held_out = model.loaded, prepared.held_out
    with shortage_explained("in the check of the model", SMALLER):
        loss, choice = _make_loss(config, model, prepared.dataset, found)
    report = recorder.reporter("loading_model", run.controls.check_stop)
    reference = None
    if config.method.name in WEIGHT_METHODS:
        budget = found.manifest.get("reference_budget") if found is not None else None
        reference = PrecomputedReference(int(budget or TOKEN_BUDGETS[loaded.device.type]), recorder.warn)
    objective, held_out_objective = make_objectives(
        config,
        loss,
        prepared.dataset.rows,
        held_out.rows if held_out is not None else None,
        loaded,
        model.accelerator.autocast,
        lambda done, total: report("answers by the reference", done, total),
        reference,
    )
    if choice.notice is not None:
        recorder.notice(*choice.notice)
    reference_budget = reference.token_budget if reference is not None else None
    return _Goal(loss, choice.liger, objective, held_out_objective, reference_budget)


def _make_loss(
    config: Config, model: ReadyModel, dataset: Dataset, found: Checkpoint | None
) -> tuple[SupervisedLoss, LossChoice]:
    """The loss, its packing and its way to sum, once the model has passed the self-check."""
    loaded, fused = model.loaded, model.fused
    plain = SupervisedLoss(loaded.model)
    packed = wants_packing(config, fused)
    check = check_model(loaded, plain, dataset.rows, model.accelerator.autocast, laid_out=packed)
    check_head(check, loaded.dtype, config.model.base)
    packing = choose_packing(config, loaded, dataset.rows, fused, check)
    choice = choose_for_run(config, plain.head, loaded.device, None if found is None else found.manifest)
    return SupervisedLoss(loaded.model, packing, choice.function), choice


def _make_evaluator(
    config: Config,
    control_point: ControlPoint,
    held_out: Dataset,
    objective: Objective,
    token_budget: int,
    samples: int,
) -> Evaluator:
    """The evaluation on held-out rows, which attends to commands between its passes."""
    loaded = control_point.loaded
    return Evaluator(
        loaded,
        held_out,
        objective=objective,
        token_budget=min(token_budget, TOKEN_BUDGETS[loaded.device.type]),
        autocast=control_point.autocast,
        max_new_tokens=config.chat.max_new_tokens if config.eval.exact_match else 0,
        template=control_point.template,
        check=control_point.attend,
        samples=samples,
        notice=control_point.recorder.warn,
    )


def _tell_experts(loaded: LoadedModel, why: str, recorder: Recorder) -> None:
    """Say that the experts are in the machine's memory, and warn where that is slow."""
    if loaded.offload is None or not loaded.offload.store.bytes:
        return
    message, hint = loaded.offload.tell()
    if hint:
        recorder.warn("experts_unpinned", message, hint)
    recorder.notice("info", "offload_experts", why or message)


def _with_usable_optimizer(config: Config, device: torch.device, recorder: Recorder, *, wsl: bool) -> Config:
    """The configuration with the optimizer that the machine can use, which is told where it is another."""
    wanted = config.train.optimizer
    optimizer = unpaged_where_needed(wanted, wsl=wsl and device.type == "cuda")
    if optimizer == wanted:
        return config
    message = f"The optimizer is {optimizer}: WSL2 cannot page the states of {wanted}, which stay on the card."
    recorder.warn("unpaged", message, "It computes the same.")
    return config.model_copy(update={"train": config.train.model_copy(update={"optimizer": optimizer})})


def _make_update(
    config: Config,
    loaded: LoadedModel,
    accelerator: Accelerator,
    retry: Retry,
    strategy: Strategy,
    *,
    in_backward: bool,
    notice: Callable[[str, str, str], None],
) -> Update:
    """One optimizer over all adapters, or one for each tensor of the model's own weights."""
    train = config.train
    if (own := strategy.own_update(loaded.model)) is not None:
        return own
    if config.method.name not in WEIGHT_METHODS:
        parameters = trainable_parameters(loaded.model)
        groups = parameter_groups(loaded.model, config.method.loraplus_ratio)
        optimizer = make_optimizer(groups, train)
        return AdapterUpdate(accelerator, optimizer, parameters, train.max_grad_norm, retry, strategy.clip)
    buffers = PagedBuffers()
    trained = strategy.trained(trained_tensors(loaded.model))
    update = WeightUpdate(
        trained,
        lambda parameters: make_optimizer(parameters, train, weight_decay=0.0, buffers=buffers),
        states_in_fp32=train.optimizer in FP32_STATES,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        in_backward=in_backward,
        retry=retry,
        kernels=choose_kernels(next(iter(trained.values())).device, notice),
        square_sum=strategy.square_sum,
    )
    return strategy.whole_update(update)
