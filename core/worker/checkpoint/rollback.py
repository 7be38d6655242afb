"""Rollback to whole or good weights: after memory ran out in the middle of an update, or for a loss spike.

If weights are updated inside backward, a torn step cannot run again. The run returns within its process to its newest
checkpoint, or to the untouched base, and repeats the steps from there with activations recomputed. Rows, order,
schedule and random state are restored, so the result is that of a run with activations recomputed from there on: bit
for bit if the run is deterministic (on a GPU with ``train.deterministic = strict``), else to rounding.

For a spike the run returns to its last good checkpoint and skips the steps of the spike, as in PaLM's training (arXiv
2204.02311, section 5.1). The result is that of a run that never did them. The decision itself is not saved: a run
killed before its next checkpoint meets the spike again and decides again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.config.targets import kept_patterns
from core.errors import UserError
from core.models.fingerprint import BaseFingerprint
from core.runs.record.events import RollbackEvent
from core.worker.checkpoint.checkpoint import Checkpoint
from core.worker.checkpoint.checkpointer import Checkpointer, newest_checkpoint
from core.worker.model.model import load_model
from core.worker.oom.retry import Retry, TornUpdateError, release
from core.worker.process.determinism import restore_rng, rng_state
from core.worker.progress.health import Spike
from core.worker.steps import FileTraining


@dataclass
class Rollback:
    """Rolls a run back. For memory this works once: if it runs out again, activations are recomputed already.

    Must be created before the first step and before a checkpoint is restored, because it saves that state.

    Args:
        checkpointer: Restores checkpoints; holds model, update and state of the run.
        base: Directory of the base model.
        file: Follows the restored state; None without ``method.train_for``.
    """

    checkpointer: Checkpointer
    base: Path
    file: FileTraining | None = None

    def __post_init__(self) -> None:
        self._random = rng_state()
        # Without tensors: no optimizer has states before the first step.
        self._optimizers = self.checkpointer.update.state_dict() if self.checkpointer.update.in_backward else {}
        self._beginning = self.checkpointer.state.facts()

    def go_back(self, error: TornUpdateError) -> None:
        """Continue from the newest valid checkpoint, or from the base, with activations recomputed.

        Options changed while running (``set``) stay in force.

        Args:
            error: The reason.

        Raises:
            TornUpdateError: The given error, if activations are recomputed already.
            UserError: If the weights cannot be restored.
        """
        with self.checkpointer.strategy.orders.alone():
            self._go_back(error)
        if self.file is not None:
            self.file.follow()

    def _go_back(self, error: TornUpdateError) -> None:
        state, recorder = self.checkpointer.state, self.checkpointer.recorder
        if state.checkpointing and not state.kept_layers:
            raise error
        torn = state.step + 1
        self.checkpointer.update.drop()
        found = newest_checkpoint(recorder)
        self._return_to(found, torn, error.hint)
        self.checkpointer.checkpointing.enable()
        recorder.warn("memory_replay", f"{error.message} {_sentence(found)}", "This takes about a quarter more time.")
        recorder.seal("rollback", {"step": state.step})
        recorder.phase("training", done=state.step, total=state.total_steps)

    def leave_out(self, spike: Spike) -> bool:
        """Continue from the last good checkpoint, without the steps of a spike.

        Returns:
            True if there is one. False in a run of several processes: they stop, and are continued together.

        Raises:
            UserError: If there is not enough memory.
        """
        state, recorder = self.checkpointer.state, self.checkpointer.recorder
        if state.best.last_good is None or not self.checkpointer.strategy.ranks.is_single:
            return False
        self.checkpointer.drop_after(state.best.last_good)
        found = newest_checkpoint(recorder)
        if found is None:
            return False
        state.spikes.leave_out(spike)
        hint = "Close what else holds memory, and continue the run; the checkpoint is untouched."
        self._return_to(found, spike.last, hint)
        rows = state.spikes.name(spike)
        recorder.event(
            RollbackEvent(
                step=state.step, first=spike.first, last=spike.last, loss=spike.loss, expected=spike.expected, rows=rows
            )
        )
        recorder.phase("training", done=state.step, total=state.total_steps)
        if self.file is not None:
            self.file.follow()
        return True

    def _return_to(self, found: Checkpoint | None, step: int, hint: str) -> None:
        """Restore a checkpoint, or the moment before the first step.

        Args:
            found: The checkpoint; None for the base.
            step: The step that the run returns from.
            hint: Advice if memory runs out.
        """
        checkpointer, recorder = self.checkpointer, self.checkpointer.recorder
        recorder.phase("loading_model", checkpointer.config.model.base if found is None else found.path.name)
        Retry(lambda: f"step {step}", recorder.warn).run(
            lambda: self._to_base() if found is None else checkpointer.restore(found), "in going back", hint
        )
        checkpointer.state.evaluated = None
        recorder.end_step(checkpointer.state.step)

    def _to_base(self) -> None:
        """Return to the moment before the first step."""
        self._read_base()
        self.checkpointer.update.load_state_dict(self._optimizers)
        self.checkpointer.state.restart(self._beginning)
        restore_rng(self._random)

    def _read_base(self) -> None:
        """Read the original weights into the existing parameters, whose memory is released first.

        The parameters stay the same objects, because optimizers and hooks hold them.
        """
        config = self.checkpointer.config
        if BaseFingerprint(self.base).value != self.checkpointer.fingerprints.base.value:
            raise UserError(
                f"The base model {config.model.base} has changed since the run began.", "Start the run again."
            )
        parameters: dict[str, Any] = dict(self.checkpointer.loaded.model.named_parameters())
        for parameter in parameters.values():
            parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
        release()
        fresh = load_model(
            self.base,
            method=config.method.name,
            precision=config.train.precision,
            device=config.hardware.device,
            for_training=True,
            tokenizer=self.checkpointer.loaded.tokenizer,
            keep_16bit=kept_patterns(config.model.keep_16bit),
        )
        for name, parameter in fresh.model.named_parameters():
            parameters[name].data = parameter.data


def _sentence(found: Checkpoint | None) -> str:
    if found is None:
        return "There is no checkpoint yet: the run begins again with the untouched base, with activations recomputed."
    return f"The run goes on from {found.path.name}, with activations recomputed."
