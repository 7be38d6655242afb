"""Loss on the general probe: how much a model forgets while it learns the rows of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from core.errors import UserError
from core.evaluation.probe import as_text, read_probe
from core.worker.data.encode import Encoder, TokenizedRow
from core.worker.evaluate.evaluate import mean_loss
from core.worker.loss.loss import SupervisedLoss
from core.worker.loss.objectives import SupervisedObjective
from core.worker.model.model import LoadedModel, evaluation_mode
from core.worker.oom.retry import MemoryShortageError, NoGradBatches


def encode_probe(encoder: Encoder) -> list[TokenizedRow]:
    """The probe as rows for a model; its answers are measured. Examples that its template cannot render are left out;
    without a template, question and answer are measured as plain text.

    Args:
        encoder: Encoder with the run's template.
    """
    examples = read_probe()
    for chosen in (examples, [as_text(example) for example in examples]):
        with contextlib.suppress(UserError):  # a template beyond the limits is refused elsewhere
            rows = [row for row in encoder.encode(chosen) if isinstance(row, TokenizedRow)]
            if rows:
                return rows
    return []


@dataclass
class Probe:
    """Measures a model on the probe, without random draws and without changing trained state.

    Args:
        loaded: The model; back in training mode after each measurement.
        loss: Sums the loss of a batch.
        rows: The probe, encoded.
        token_budget: Token budget of a batch, padding included.
        autocast: Context of the forward passes.
        check: Called between two batches; may raise to stop.
        notice: Receives the warning if it is skipped: ``notice(code, message, hint)``.
    """

    loaded: LoadedModel
    loss: SupervisedLoss
    rows: list[TokenizedRow]
    token_budget: int
    autocast: Callable[[], contextlib.AbstractContextManager[Any]]
    check: Callable[[], None]
    notice: Callable[[str, str, str], None]

    def __post_init__(self) -> None:
        self._objective = SupervisedObjective(self.loss, self.rows)
        self._batches = NoGradBatches(self.token_budget, lambda _rows, _now: None, self._refusal)

    def measure(self, progress: Callable[[int, int], None] = lambda _done, _total: None) -> float | None:
        """Mean loss per token of the probe's answers, in nats; None if it does not fit in memory.

        Args:
            progress: Called with rows done, of how many.
        """
        try:
            with evaluation_mode(self.loaded.model):
                lengths = list(map(len, self.rows))
                return mean_loss(
                    self.loaded, self._objective, self._batches, lengths, self.autocast, self.check, progress
                )
        except MemoryShortageError as error:
            self.notice("memory_probe", f"The general probe is left out. {error.message}", error.hint)
            return None

    def _refusal(self, row: int) -> tuple[str, str]:
        return (
            f"Memory ran out with a single row of it, of {len(self.rows[row])} tokens",
            "Set eval.probe = false, or close what else holds memory.",
        )
