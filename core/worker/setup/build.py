"""Construction of a run's parts from its configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from core.config.derived import updates_in_backward
from core.config.schema import Config
from core.data.registries.resolve import DataHashes
from core.governor.policy import DISK
from core.governor.words import pause_reason
from core.hardware import power
from core.hardware.drivers import is_wsl
from core.hardware.obstacle import find_card_not_given, look
from core.hardware.sampler import CPU_ONLY
from core.models.check import check_adapter
from core.models.fingerprint import BaseFingerprint
from core.notify import Notice, notify
from core.runs.catalog.trained import base_of_adapter, check_beginning
from core.runs.record.events import Event, GovernorEvent
from core.worker.checkpoint.checkpoint import Checkpoint
from core.worker.checkpoint.checkpointer import Checkpointer, Fingerprints, agreed_checkpoint
from core.worker.checkpoint.rollback import Rollback
from core.worker.control_point import ControlPoint
from core.worker.data.batches import DataOrder
from core.worker.data.dataset import Dataset
from core.worker.distributed.ranks import Ranks
from core.worker.distributed.strategy import Strategy, make_update
from core.worker.evaluate.evaluations import Evaluations
from core.worker.loss.objectives import Objective
from core.worker.model.activation_offload import available_offload
from core.worker.model.device import (
    choose_device,
    choose_dtype,
    describe_device,
    differs_from_plan,
    keep_to_memory,
    read_card,
    reason_for_cpu,
    torch_build,
)
from core.worker.model.model import LoadedModel
from core.worker.oom.retry import ignore, keep_freed_memory
from core.worker.optim.optim import LearningRate, warmup_steps
from core.worker.optim.paged import unpaged_where_needed
from core.worker.optim.update import Update
from core.worker.process.control import Controls
from core.worker.process.determinism import (
    BIT_FOR_BIT,
    TO_ROUNDING,
    Determinism,
    apply_determinism,
    choose_determinism,
    fix_workspace,
    seed_unused,
)
from core.worker.process.governor import Governor, Throttle
from core.worker.process.recorder import Recorder
from core.worker.progress.health import FiniteCheck, LossSpikes
from core.worker.progress.state import BestStep, Intervals, Limits, TrainState
from core.worker.setup.compilation import Compilation, compile_layers
from core.worker.setup.memory_decision import (
    MemoryDecision,
    MemoryMeter,
    Planner,
    decide_experts,
    decide_memory,
    with_experts,
)
from core.worker.setup.objective import make_evaluations, make_goal
from core.worker.setup.preparation import prepare
from core.worker.setup.provenance import has_same_files, start_facts
from core.worker.setup.ready_model import make_ready
from core.worker.setup.strategy import (
    agree_kept_layers,
    agree_memory,
    check_strategy,
    make_strategy,
    prepare_base,
    settle_options,
    settle_strategy,
)
from core.worker.steps import EmbeddingNoise, FileTraining, GradientCheckpointing, MicroBatches, first_budget


@dataclass(frozen=True)
class Parts:
    """The parts of a run, fully configured."""

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
    evaluations: Evaluations
    memory: MemoryDecision
    meter: MemoryMeter
    checkpointer: Checkpointer
    rollback: Rollback
    control_point: ControlPoint
    governor: Governor
    compilation: Compilation | None
    """None if layers are not compiled."""
    file: FileTraining | None
    """None without ``method.train_for``."""
    hashes: DataHashes | None
    """Hashes of the data files; None except in rank 0."""
    strategy: Strategy
    """Distribution of model and work over the processes of the run."""


def set_up(config: Config, recorder: Recorder, controls: Controls, ranks: Ranks | None, *, resume: bool) -> Parts:
    """Build the parts of a run, and restore the checkpoint it continues from.

    Args:
        config: The configuration, paths absolute.
        recorder: Of the run.
        controls: Stops it.
        ranks: The processes of the run; None for this one alone.
        resume: Continue from the newest checkpoint.

    Raises:
        RankLostError: If another process does not answer.
        StopRequested: If a stop was asked for.
        UserError: If the run cannot be done.
    """
    ranks = ranks or Ranks.single()
    found = agreed_checkpoint(config, recorder, ranks) if resume else None
    parts = build(config, recorder, controls, found, ranks)
    ranks.meet()
    if found is not None:
        parts.checkpointer.resume(found, lambda: has_same_files(recorder.run, found, parts.hashes))
    ranks.meet()
    parts.checkpointer.spread()
    if parts.file is not None:
        parts.file.follow()
    if parts.hashes is not None:
        recorder.seal("start", start_facts(config, parts.hashes, parts.dataset, parts.checkpointer, found))
    return parts


def build(
    config: Config, recorder: Recorder, controls: Controls, found: Checkpoint | None, ranks: Ranks | None = None
) -> Parts:
    """Read the rows, load the model and build the parts that train it.

    Args:
        config: The configuration, paths absolute.
        recorder: Of the run.
        controls: Stops it.
        found: The checkpoint the run continues from; None at its beginning. It is not restored here.
        ranks: The processes of the run; None for this one alone.

    Raises:
        RankLostError: If another process does not answer.
        StopRequested: If a stop was asked for.
        UserError: If the run cannot be done.
    """
    ranks = ranks or Ranks.single()
    # Refusals by the device and the strategy come before the minutes that rows may take.
    device = settle_device(config, recorder)
    governor = make_governor(config, recorder, controls, device)
    deterministic = settle_determinism(config, device, recorder)
    check_strategy(config, ranks)

    # Base and rows, and the options that follow from them.
    base = prepare_base(config, recorder, controls.check_stop, ranks)
    begun = Path(config.model.adapter) if found is None and config.model.adapter is not None else None
    if begun is not None:
        check_beginning(config)
        check_adapter(begun, base)
    planner = Planner(config.model.base, device)
    if ranks.is_first:
        planner.measure_ahead(config)
    prepared = prepare(config, base, recorder, controls.check_stop, recorder.run.created, is_resumed=found is not None)
    dataset = prepared.dataset
    config = settle_strategy(config, planner, dataset, recorder, ranks)
    strategy = make_strategy(config, ranks, recorder, holds=lambda: governor.pause is not None)
    config = settle_options(config, strategy, recorder)
    config = agree_kept_layers(config, prepared, planner, recorder, controls.check_stop, ranks)
    controls.check_stop()

    # The model, and the memory for it.
    recorder.phase("loading_model", config.model.base)
    # Hashed while the model loads, which reads the same files.
    fingerprints = Fingerprints(
        prepared.data_fingerprint, prepared.held_out_fingerprint, BaseFingerprint(prepared.base)
    )
    hashes = DataHashes(config.data) if ranks.is_first else None
    token_budget = first_budget(device, whole=updates_in_backward(config))
    host_experts, why_experts = decide_experts(config, planner, dataset, token_budget)
    model = make_ready(config, prepared, recorder, controls, found, strategy, host_experts=host_experts)
    loaded = model.loaded
    model.tell_experts(why_experts, recorder)
    used = with_experts(with_usable_optimizer(config, loaded.device, recorder), there=host_experts)
    memory = agree_memory(decide_memory(used, planner, dataset, token_budget), strategy)
    if memory.dequantized:
        model.keep_dequantized(recorder)

    # The objective, and the state at the beginning.
    goal = make_goal(config, prepared, model, found, recorder, controls)
    order = DataOrder(dataset.lengths, config.train.batch_size, config.train.seed, dataset.excluded)
    # Disks differ in speed, and a sharded optimizer is created together.
    ranks.meet()
    # All processes see the same losses, so only rank 0 warns.
    warn = recorder.warn if ranks.is_first else ignore
    train = config.train
    total_steps = train.max_steps or math.ceil(train.epochs * order.steps_per_epoch)
    state = TrainState(
        total_steps=total_steps,
        token_budget=memory.token_budget,
        best=BestStep(config.eval.patience, config.eval.min_delta),
        finite=FiniteCheck(warn, dataset.places),
        scaler=model.accelerator.scaler,
        reference_budget=goal.reference_budget,
        checkpointing=memory.checkpointing,
        kept_layers=memory.kept_layers,
        offloading=memory.offload,
        deterministic=deterministic,
        spikes=LossSpikes(
            train.on_loss_spike,
            threshold=train.loss_spike,
            patience=train.loss_spike_patience,
            limit=train.loss_limit,
            warmup=warmup_steps(train.warmup, total_steps),
            notice=warn,
            places=dataset.places,
        ),
        limits=Limits(train.max_hours, train.max_energy_wh, lambda: recorder.sampler.energy_wh),
    )

    # The step.
    update = make_update(strategy, used, loaded, model.accelerator, state, recorder.warn)
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
        train.micro_batch_size,
        recorder.warn,
        partial=lambda: update.partial,
        whole=updates_in_backward(config),
        place=dataset.place,
        free_caches=model.fused.drop_weights,
        shared=not ranks.is_single,
        failures=strategy.failures,
    )
    if loaded.device.type == "cpu":
        keep_freed_memory()
    compilation = compile_layers(loaded, recorder.warn) if model.is_compiled else None

    # Checkpoints, commands, evaluations.
    checkpointer = Checkpointer(
        config, loaded, update, state, checkpointing, fingerprints, prepared.template, recorder, strategy
    )
    file: FileTraining | None = None
    if model.file_weights is not None:
        file = FileTraining(model.file_weights, state, loaded.dtype, memory.dequantized, recorder.notice)
    control_point = ControlPoint(checkpointer, model.accelerator.autocast, controls, governor, model.file_weights)
    rollback = Rollback(checkpointer, prepared.base, file)
    evaluations = make_evaluations(control_point, prepared, goal, token_budget)

    recorder.update(total_steps=total_steps)
    fingerprints.base.settle(controls.check_stop)
    if begun is not None and (recorded := base_of_adapter(begun)) is not None:
        fingerprints.base.require(recorded, str(begun))
    if hashes is not None:
        hashes.settle(controls.check_stop)
    return Parts(
        loaded=loaded,
        dataset=dataset,
        state=state,
        order=order,
        micro_batches=micro_batches,
        noise=noise,
        objective=goal.objective,
        accelerator=model.accelerator,
        update=update,
        learning_rate=LearningRate(train, state),
        intervals=Intervals(config, state, order.steps_per_epoch),
        evaluations=evaluations,
        memory=memory,
        meter=MemoryMeter(used, planner, dataset, state, model.fused, recorder),
        checkpointer=checkpointer,
        rollback=rollback,
        control_point=control_point,
        governor=governor,
        compilation=compilation,
        file=file,
        hashes=hashes,
        strategy=strategy,
    )


def settle_device(config: Config, recorder: Recorder) -> torch.device:
    """Choose the device, report it, and point the meters at it.

    Returns:
        The device.

    Raises:
        UserError: If torch cannot use the card, or the device cannot do as asked.
    """
    # Deterministic matrix products need it before the first one on a GPU.
    fix_workspace(config.train.deterministic)
    seed_unused(config.train.seed)
    wanted = config.hardware.device
    device = choose_device(wanted)
    dtype = choose_dtype(config.train.precision, device, config.method.name)
    sight, build = look(), torch_build()
    if device.type != "cuda":
        reason = reason_for_cpu(wanted, sight)
        sentence = describe_device(build, dtype, None, threads=torch.get_num_threads(), reason=reason)
        level = "warning" if reason and reason == find_card_not_given(sight) else "info"
        recorder.notice(level, "device", sentence)
        recorder.sampler.watch(CPU_ONLY)
        return device
    card = read_card(device, sight)
    recorder.notice("info", "device", describe_device(build, dtype, card, threads=torch.get_num_threads()))
    if differs := differs_from_plan(card, sight):
        recorder.warn("device_differs", differs, "Name the card in hardware.gpu, by its UUID.")
    if card.uuid:
        recorder.sampler.watch(card.uuid)
    keep_to_memory(device, wsl=sight.wsl)
    return device


def settle_determinism(config: Config, device: torch.device, recorder: Recorder) -> Determinism:
    """Determinism of the run: applied, and recorded if it costs bits."""
    deterministic = choose_determinism(config.train.deterministic, device.type)
    apply_determinism(deterministic, device.type)
    if deterministic == "fast":
        recorder.notice("info", "determinism", TO_ROUNDING, BIT_FOR_BIT)
    return deterministic


def with_usable_optimizer(config: Config, device: torch.device, recorder: Recorder) -> Config:
    """The configuration with an optimizer that works on this machine. A replacement is recorded.

    Args:
        config: Of the run.
        device: That of the training.
        recorder: Of the run.
    """
    wanted = config.train.optimizer
    is_card = device.type == "cuda"
    optimizer, reason = unpaged_where_needed(wanted, wsl=is_wsl() and is_card, rocm=bool(torch_build().hip) and is_card)
    if not reason:
        return config
    recorder.warn("unpaged", f"The optimizer is {optimizer}: {reason}.", "It computes the same.")
    return config.with_options(train={"optimizer": optimizer})


def _tell(recorder: Recorder, event: Event) -> None:
    """Write an event of the governor. A pause for lack of disk space also notifies the user, since somebody has to make
    room; pauses for heat end by themselves."""
    recorder.event(event)
    if isinstance(event, GovernorEvent) and event.action == "pause" and event.cause == DISK:
        notify(Notice("paused", pause_reason(event.cause, event.value, event.limit), recorder.run.id))


def make_governor(config: Config, recorder: Recorder, controls: Controls, device: torch.device) -> Governor:
    """The governor of a run. Limits that this device cannot keep are refused before minutes are spent on the rows.

    Args:
        config: Of the run.
        recorder: Reads the meters and writes the events.
        controls: Stops the run.
        device: That of the training.

    Raises:
        UserError: If a limit cannot be kept here.
    """
    throttle = Throttle(controls)
    if device.type == "cuda":
        # A GPU is still computing when the call returns.
        throttle.synchronize = lambda: torch.cuda.synchronize(device)
    recorder.rested = lambda: throttle.rested_seconds
    governor = Governor(
        config,
        meters=recorder.sampler,
        controls=controls,
        throttle=throttle,
        tell=lambda event: _tell(recorder, event),
        notice=recorder.notice,
        directory=recorder.run.path,
        is_paused=lambda: recorder.state.state == "paused",
        lever=power if device.type == "cuda" else None,
    )
    governor.check()
    return governor
