"""Strategy of a run of several processes, and the decisions they share: memory, and layers kept in 16 bit.

``model.keep_16bit = auto`` finds these layers of a 4-bit base before the model is loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from core import deepspeed
from core.atomic import write_atomic
from core.config.document import dump_config
from core.config.schema import Config
from core.directories import disk_error
from core.errors import UserError
from core.hardware.cpu import memory
from core.memory.batching import TOKEN_BUDGETS
from core.quantization.job import SHARE, recall, remember
from core.quantization.result import ROWS, Data, sentence
from core.worker.data.dataset import Dataset
from core.worker.distributed.orders import Orders
from core.worker.distributed.ranks import Ranks
from core.worker.distributed.strategy import Strategy
from core.worker.model.support import resolve_base
from core.worker.oom.retry import release
from core.worker.process.recorder import Recorder
from core.worker.quantization.measure import Settings, measure_cost
from core.worker.quantization.sample import Sample, choose_sample
from core.worker.setup.memory_decision import MemoryDecision, Planner, plan_strategy, spare_bytes
from core.worker.setup.preparation import Prepared


def check_strategy(config: Config, ranks: Ranks) -> None:
    """Refuse a strategy that is not possible with these processes, before minutes are spent on the rows.

    Raises:
        UserError: If so.
    """
    wanted = config.distributed.strategy
    if ranks.is_single:
        return
    if wanted == "none":
        raise UserError(f"distributed.strategy is none, with {ranks.count} processes.", "Set it to replicate.")
    if wanted == "deepspeed" and not deepspeed.is_installed():
        raise UserError(*deepspeed.MISSING)


def settle_strategy(config: Config, planner: Planner, dataset: Dataset, recorder: Recorder, ranks: Ranks) -> Config:
    """The configuration with ``auto`` resolved: fsdp2 if the plan finds the device of any process too small for the
    whole model, else replicate.

    Args:
        config: Of the run.
        planner: Plans its memory; the model is not loaded yet.
        dataset: Training rows; the plan uses their lengths.
        recorder: Receives the choice and its reason.
        ranks: The processes.

    Raises:
        RankLostError: If another process does not answer.
    """
    if ranks.is_single or config.distributed.strategy != "auto":
        return config
    chosen = plan_strategy(config, planner, dataset, ranks.count)
    too_small = chosen is not None and chosen.strategy == "fsdp2"
    # Other processes may take much longer to prepare their rows.
    (shares,) = ranks.any([too_small], patient=True)
    if shares:
        reason = chosen.reason if chosen is not None and too_small else "fsdp2: another process's card is too small."
        recorder.notice("info", "strategy", f"Strategy {reason}", "Name another in distributed.strategy.")
    return config.with_options(distributed={"strategy": "fsdp2" if shares else "replicate"})


def make_strategy(config: Config, ranks: Ranks, recorder: Recorder, holds: Callable[[], bool]) -> Strategy:
    """The strategy of a run, after it was checked and settled.

    Args:
        config: Of the run.
        ranks: Its processes.
        recorder: Receives the phase of slow work.
        holds: True if this process holds the run, for example because its card is hot.
    """
    orders = Orders(ranks, config.distributed.timeout, holds)
    wanted = "replicate" if ranks.is_single else config.distributed.strategy
    if wanted == "fsdp2":
        from core.worker.distributed.fsdp2 import Fsdp2  # slow to import, and needed by few

        return Fsdp2(orders, offload=config.distributed.offload != "none")
    if wanted == "deepspeed":
        from core.worker.distributed.deepspeed import DeepSpeed  # needed by few

        return DeepSpeed(orders, config, lambda what: recorder.phase("loading_model", what))
    return Strategy(orders)


def settle_options(config: Config, strategy: Strategy, recorder: Recorder) -> Config:
    """The configuration without options that do not work with a sharded model.

    Args:
        config: Of the run.
        strategy: Of the run.
        recorder: Receives a notice for each.
    """
    if not strategy.is_sharded:
        return config
    if config.distributed.strategy == "fsdp2" and config.distributed.offload == "optimizer":
        message = "FSDP2 keeps optimizer states where the weights are: both are in the machine's memory."
        recorder.notice("info", "offloaded", message, "distributed.offload = all says the same.")
    if strategy.fetches_modules and config.method.name == "qlora" and config.memory.gradient_checkpointing != "on":
        message = "Activations are recomputed: 4-bit weights that DeepSpeed brings together stay with them otherwise."
        recorder.notice("info", "checkpointing", message, "memory.gradient_checkpointing = on says the same.")
        config = config.with_options(memory={"gradient_checkpointing": "on"})
    if config.train.compile:
        # The option itself stays: checkpoints are compared with the run's configuration file.
        message = f"Layers are not compiled: distributed.strategy = {config.distributed.strategy} moves their weights."
        recorder.notice("info", "not_compiled", message, "The numbers are the same.")
    return config


def agree_memory(decision: MemoryDecision, strategy: Strategy) -> MemoryDecision:
    """The memory decision of rank 0 for all processes, if their passes depend on each other.

    Raises:
        RankLostError: If another process does not answer.
    """
    if not strategy.is_sharded:
        return decision
    strategy.ranks.meet()
    said = strategy.ranks.broadcast({**dataclasses.asdict(decision), "dequantized": False})
    return MemoryDecision(**said)


#: Share of free host memory available for copies of the model while it is sharded.
_FOR_COPIES = 0.8
#: Size of a 4-bit model relative to its 16-bit files.
_QUANTIZED = 0.35


def needs_turns(config: Config, base: Path, ranks: Ranks) -> bool:
    """True if the processes must load the model one after another, because host memory has no room for a copy each.

    Args:
        config: Of the run.
        base: Directory of the base model.
        ranks: The processes.

    Raises:
        RankLostError: If another process does not answer.
    """
    size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    size = int(size * _QUANTIZED) if config.method.name == "qlora" else size
    used, total = memory()
    (found,) = ranks.any([size * ranks.count > _FOR_COPIES * (total - used)])
    return found


def prepare_base(config: Config, recorder: Recorder, check_stop: Callable[[], None], ranks: Ranks) -> Path:
    """The directory of the base model, made ready by rank 0 while the others wait.

    Args:
        config: Of the run.
        recorder: Receives progress.
        check_stop: Called often; may raise to stop.
        ranks: The processes.

    Raises:
        RankLostError: If another process does not answer.
        UserError: If there is no such model, or it cannot be trained.
    """
    check_stop()
    report = recorder.reporter("preparing_model", check_stop)
    if not ranks.is_first:
        ranks.meet()
    base = resolve_base(config.model.base, report)
    if ranks.is_first:
        ranks.meet()
    return base


def agree_kept_layers(
    config: Config,
    prepared: Prepared,
    planner: Planner,
    recorder: Recorder,
    check_stop: Callable[[], None],
    ranks: Ranks,
) -> Config:
    """As :func:`settle_kept_layers`, by the memory of rank 0, for all processes.

    Raises:
        RankLostError: If another process does not answer.
        UserError: If the base cannot be measured.
    """
    if ranks.is_first:
        config = settle_kept_layers(config, prepared, planner, recorder, check_stop)
    # Machines differ in the time they need for the rows.
    ranks.meet()
    if ranks.is_first:
        ranks.broadcast({"keep_16bit": config.model.keep_16bit})
        return config
    return config.with_options(model={"keep_16bit": ranks.broadcast()["keep_16bit"]})


def settle_kept_layers(
    config: Config, prepared: Prepared, planner: Planner, recorder: Recorder, check_stop: Callable[[], None]
) -> Config:
    """The configuration with the layers that stay in 16 bit, if they are to be found out. It is written into the run,
    so that every later load of its base gets the same layers.

    Args:
        config: Of the run.
        prepared: Its inputs.
        planner: Plans its memory.
        recorder: Of the run.
        check_stop: Called often; may raise to stop.

    Raises:
        UserError: If the base cannot be measured.
    """
    if config.model.keep_16bit != "auto" or config.method.name != "qlora":
        return config
    budget = TOKEN_BUDGETS[planner.device.type]
    spare = spare_bytes(config, planner, prepared.dataset, budget)
    patterns: tuple[str, ...] = ()
    if spare is None:
        recorder.warn(
            "quantization",
            "model.keep_16bit = auto keeps no layers: the memory of this model cannot be planned.",
            "Name the layers, as localtune-tui bits finds them.",
        )
    else:
        report = recorder.reporter("loading_model", check_stop)
        free = int(spare * SHARE)
        if (cost := recall(config, free)) is None:
            cost = measure_cost(
                prepared.base,
                _sample(config, prepared, budget),
                Settings(config.train.precision, config.hardware.device),
                lambda activity, done, total: report(f"what 4 bits cost: {activity}", done, total),
                free_bytes=free,
                tokenizer=prepared.tokenizer,
            )
            remember(config, cost)
        release()
        patterns = cost.kept.patterns if cost.kept is not None else ()
        hint = f"Kept: {', '.join(patterns)}." if patterns else "All layers are in 4 bits."
        recorder.notice("info", "quantization", sentence(cost), hint)
    settled = config.with_options(model={"keep_16bit": list(patterns) or None})
    try:
        write_atomic(recorder.run.config_path, dump_config(settled))
    except OSError as error:
        raise disk_error(recorder.run.path, error) from error
    return settled


def _sample(config: Config, prepared: Prepared, budget: int) -> Sample:
    if prepared.held_out is None:
        return choose_sample(prepared.dataset.rows, ROWS, budget, "training")
    data: Data = "eval" if config.data.eval is not None else "held_out"
    return choose_sample(prepared.held_out.rows, ROWS, budget, data)
