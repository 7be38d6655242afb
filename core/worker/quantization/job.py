"""The cost of four bits, measured as a job."""

from __future__ import annotations

from typing import Any

from core.config.schema import Config
from core.errors import UserError
from core.jobs.process import Answers
from core.worker.process import environment


def measure(job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Measure the cost of four bits.

    Args:
        job: ``config``; ``rows``, the most that are measured; ``free_bytes`` for layers in 16 bit, null where unknown.
        answers: Receives the progress.

    Returns:
        A :class:`~core.quantization.result.QuantizationCost`.
    """
    config = Config.model_validate(job["config"])
    if config.hardware.device != "cpu":
        environment.choose_gpu(config.hardware.gpu)
    # Once the environment is prepared.
    from core.config.sixteen_bit import kept_patterns
    from core.worker.model.device import choose_device
    from core.worker.model.model import choose_dtype, load_tokenizer
    from core.worker.model.starter import resolve_base
    from core.worker.model.support import check_base
    from core.worker.oom.retry import is_out_of_memory, shortage_reason
    from core.worker.process.openmp import SpinControl
    from core.worker.quantization.beside import refuse_beside_run
    from core.worker.quantization.measure import Settings, measure_cost, token_budget
    from core.worker.quantization.sample import read_sample

    SpinControl().start()
    base = resolve_base(config.model.base, answers.progress)
    check_base(base)
    tokenizer = load_tokenizer(base)
    device = choose_device(config.hardware.device)
    refuse_beside_run(base, device, choose_dtype(config.train.precision, device))
    sample = read_sample(config, base, tokenizer, int(job["rows"]), token_budget(device), answers.progress)
    settings = Settings(config.train.precision, config.hardware.device, kept_patterns(config.model.keep_16bit))
    try:
        cost = measure_cost(base, sample, settings, answers.progress, free_bytes=job["free_bytes"], tokenizer=tokenizer)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"There is not enough memory on {device} to measure: {shortage_reason(error)}",
            "Close what else holds its memory, or lower --rows.",
        ) from error
    return cost.to_dict()
