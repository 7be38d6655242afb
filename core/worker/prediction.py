"""The memory plan of a run that is about to train, to be put beside what its rehearsal has measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.config.schema import Config
from core.errors import UserError
from core.hardware.cpu import has_bf16
from core.memory.model_files import find_model, load_architecture
from core.memory.plan import Machine, make_plan
from core.memory.rows import rows_of_tokens
from core.memory.sizes import sequences_per_row
from core.worker.batches import supervised_count

if TYPE_CHECKING:
    from core.worker.dataset import Dataset
    from core.worker.gradients import WindowGradients


def predict_memory(config: Config, device: str, dataset: Dataset, windows: WindowGradients) -> dict[str, int] | None:
    """What the plan says of a run, its micro-batches and checkpointing as they are now.

    Args:
        config: Of the run.
        device: ``cpu`` or ``cuda``.
        dataset: What is trained on.
        windows: Has decided how rows are cut.

    Returns:
        Part to bytes; None for a model whose memory cannot be told, which is no reason not to train it.
    """
    try:
        architecture = load_architecture(find_model(config.model.base))
        supervised = sum(map(supervised_count, dataset.rows))
        plan = make_plan(
            architecture,
            config,
            Machine("cuda" if device == "cuda" else "cpu", bf16=has_bf16()),
            rows_of_tokens(dataset.lengths, supervised // sequences_per_row(config.train.objective)),
            token_budget=windows.token_budget,
            checkpointing=windows.checkpointing,
        )
    except UserError:
        return None
    return plan.by_name()
