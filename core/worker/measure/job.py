"""Job that measures a model without weights.

Its request has the ``description`` (the content of a ``config.json``), its name for messages (``where``), and for the
passes of a run its ``config`` and ``how`` (:class:`core.memory.sizes.Arithmetic`). The result is the structure, or the
passes.
"""

from __future__ import annotations

import gc
import json
from typing import Any

from core.errors import UserError
from core.jobs.process import Answers, described
from core.sandbox.limits import TimeLimitError, cpu_limit


def measure(job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Measure a model.

    Args:
        job: ``description``, the content of a ``config.json``; ``where``, the name of the model for messages;
            ``seconds`` of processor time; for the passes of a run its ``config`` and ``how``
            (:class:`core.memory.sizes.Arithmetic`).
        answers: Receives the progress.

    Returns:
        ``architecture``, or ``passes``.
    """
    # After the environment is prepared.
    import torch

    from core.config.schema import Config
    from core.memory.sizes import Arithmetic
    from core.models.architecture.measuring import to_json
    from core.worker.measure.measure import measure_passes
    from core.worker.measure.skeleton import build_bare, build_skeleton
    from core.worker.measure.structure import read_structure
    from core.worker.model.text_part import described_causal_lm

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    where = job["where"]
    answers.progress("building the model without weights")
    try:
        with cpu_limit(float(job["seconds"])):
            causal = described_causal_lm(json.loads(job["description"]), where)
            how = Arithmetic(**job["how"]) if "how" in job else None
            dtype = torch.float32 if how is not None and how.bytes == 4 else torch.bfloat16
            bare = build_bare(causal, dtype, where)
            if how is None:
                return {"architecture": to_json(read_structure(bare, job["description"]))}
            config = Config.model_validate(job["config"])
            try:
                passes = measure_passes(build_skeleton(bare, config, how), answers.progress)
            except UserError:
                raise
            except Exception as error:  # a family's code may ask for values, which do not exist here
                raise _unmeasured(where, error) from error
            return {"passes": to_json(passes)}
    except TimeLimitError:
        raise UserError(
            f"{where} cannot be measured within {job['seconds']:g} s of computing.", "Choose another model."
        ) from None


def _unmeasured(where: str, error: Exception) -> UserError:
    return UserError(
        f"{where} cannot be measured in training: {described(error)}.",
        "Train without a plan, beginning with a small train.max_length; the run rehearses its largest batch first.",
    )
