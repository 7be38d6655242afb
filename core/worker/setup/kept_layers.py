"""Layers of a 4-bit base that a run keeps in 16 bit, found before its model is loaded: ``model.keep_16bit = auto``."""

from __future__ import annotations

from collections.abc import Callable

import torch

from core.atomic import write_atomic
from core.config.document import dump_config
from core.config.schema import Config
from core.directories import disk_error
from core.quantization.job import SHARE, recall, remember
from core.quantization.result import ROWS, Data, sentence
from core.worker.oom.retry import release
from core.worker.process.recorder import Recorder
from core.worker.quantization.measure import Settings, measure_cost, token_budget
from core.worker.quantization.sample import Sample, choose_sample
from core.worker.setup.memory_decision import spare_bytes
from core.worker.setup.preparation import Prepared


def settle_kept_layers(
    config: Config, prepared: Prepared, device: torch.device, recorder: Recorder, check_stop: Callable[[], None]
) -> Config:
    """The configuration with the layers that stay in 16 bit, where they are to be found out; written into the run, so
    that whoever loads its base again loads the same.

    Args:
        config: Of the run.
        prepared: Its inputs.
        device: Where it runs.
        recorder: Of the run.
        check_stop: Called often; may raise to stop.

    Raises:
        UserError: If the base cannot be measured.
    """
    if config.model.keep_16bit != "auto" or config.method.name != "qlora":
        return config
    budget = token_budget(device)
    spare = spare_bytes(config, device, prepared.dataset, budget)
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
    model = config.model.model_copy(update={"keep_16bit": list(patterns) or None})
    settled = config.model_copy(update={"model": model})
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
