"""Training state saved in checkpoints besides weights, optimizer and random generators; limits and intervals of a
run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.amp.grad_scaler import GradScaler

from core.config.schema import Config
from core.runs.outlook.time_left import checkpoints_by, evaluations_by
from core.units import exact_number
from core.worker.process.determinism import Determinism
from core.worker.progress.health import FiniteCheck, LossSpikes


@dataclass
class BestStep:
    """Early stopping: the best step by held-out loss, the remaining patience, and the newest good checkpoint.

    A checkpoint is good once its own weights have given a finite loss and gradient. The loss of its step was computed
    before the update it contains, and does not prove that.

    Args:
        patience: Evaluations without improvement after which the run ends; None for never.
        min_delta: Minimum decrease of the held-out loss that counts as an improvement.
    """

    patience: int | None = None
    min_delta: float = 0.0
    best_step: int | None = field(default=None, init=False)
    best_loss: float = field(default=math.inf, init=False)
    last_good: int | None = field(default=None, init=False)
    """Step of the newest good checkpoint."""
    waited: int = field(default=0, init=False)
    """Evaluations since the last improvement."""
    last_measured: int | None = field(default=None, init=False)
    """Step of the last completed evaluation."""
    _reference: float = field(default=math.inf, init=False)
    _proven: int | None = field(default=None, init=False)
    _saved: int | None = field(default=None, init=False)

    @property
    def is_exhausted(self) -> bool:
        """True if patience has run out."""
        return self.patience is not None and self.waited >= self.patience

    @property
    def protected(self) -> frozenset[int]:
        """Steps whose checkpoints survive the rotation."""
        return frozenset(step for step in (self.best_step, self.last_good) if step is not None)

    def measured(self, step: int, loss: float, *, proves: bool = True) -> bool:
        """Add an evaluation. The untrained model (step 0) is no candidate.

        Args:
            step: Step of the weights.
            loss: The held-out loss.
            proves: A finite loss proves the weights good; False during a loss spike.

        Returns:
            True if it is the best one so far.
        """
        if self.last_measured is not None and step <= self.last_measured:
            return False  # a resumed run measures its last step again
        self.last_measured = step
        if step == 0:
            return False
        if proves and math.isfinite(loss):
            self.proved(step)
        if loss < self._reference - self.min_delta:
            self._reference, self.waited = loss, 0
        else:
            self.waited += 1
        if loss < self.best_loss:
            self.best_step, self.best_loss = step, loss
            return True
        return False

    def begin_anew(self) -> None:
        """Forget earlier measurements, because other weights are measured from now on."""
        self.best_step, self.best_loss, self._reference, self.waited = None, math.inf, math.inf, 0

    def saved(self, step: int) -> None:
        """Note that a checkpoint was written. An evaluation may have proved its weights already."""
        self._saved = step
        if step == self._proven:
            self.last_good = step

    def proved(self, step: int) -> None:
        """Note that the weights after this step have given a finite loss and gradient."""
        self._proven = step
        if self._saved == step:
            self.last_good = step

    def facts(self) -> dict[str, Any]:
        """State as JSON, for a checkpoint."""
        return {
            "best": None if self.best_step is None else {"step": self.best_step, "loss": self.best_loss},
            "last_good": self.last_good,
            "proven": self._proven,
            "last_measured": self.last_measured,
            "waited": self.waited,
            "reference": self._reference if math.isfinite(self._reference) else None,
        }

    def restore(self, facts: dict[str, Any], step: int | None) -> None:
        """Restore :meth:`facts`.

        Args:
            facts: Facts of any earlier moment.
            step: Step of the checkpoint the run continues from; None for its beginning.
        """
        best = facts["best"]
        self.best_step, self.best_loss = (None, math.inf) if best is None else (int(best["step"]), float(best["loss"]))
        self.last_good, self.last_measured = facts["last_good"], facts["last_measured"]
        self.waited, self._proven = int(facts["waited"]), facts["proven"]
        self._reference = math.inf if facts["reference"] is None else float(facts["reference"])
        self._saved = None
        if step is not None:
            self.saved(step)


@dataclass
class Limits:
    """Limits on working hours and energy, summed over all starts of a run, after which it ends with its result.

    Args:
        hours: Maximum working hours; None for no limit.
        max_watt_hours: Maximum energy; None for no limit.
        energy: Returns the watt-hours of this process; None if no device reports its power.
        clock: Monotonic clock in seconds.
    """

    hours: float | None = None
    max_watt_hours: float | None = None
    energy: Callable[[], float | None] = lambda: None
    clock: Callable[[], float] = time.monotonic
    _paused: float = field(default=0.0, init=False)
    _seconds_before: float = field(default=0.0, init=False)
    _energy_before: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._began = self.clock()

    def pause(self, seconds: float) -> None:
        """Exclude finished seconds of pause."""
        self._paused += seconds

    @property
    def seconds(self) -> float:
        """Seconds of work over all starts."""
        return self._seconds_before + max(self.clock() - self._began - self._paused, 0.0)

    @property
    def watt_hours(self) -> float:
        """Energy over all starts, as far as devices report it."""
        return self._energy_before + (self.energy() or 0.0)

    @property
    def is_set(self) -> bool:
        """True if there is any limit."""
        return self.hours is not None or self.max_watt_hours is not None

    @property
    def is_blind(self) -> bool:
        """True if energy is limited but no device reports its power."""
        return self.max_watt_hours is not None and self.energy() is None

    def reached(self, pausing: float = 0.0) -> str | None:
        """The limit that was reached, as a reason; None if none was.

        Args:
            pausing: Seconds of pause not yet passed to :meth:`pause`.
        """
        if self.hours is not None and self.seconds - pausing >= self.hours * 3600:
            return f"train.max_hours = {exact_number(self.hours)} is reached"
        if self.max_watt_hours is not None and self.watt_hours >= self.max_watt_hours:
            return f"train.max_energy_wh = {exact_number(self.max_watt_hours)} is reached"
        return None

    def facts(self) -> dict[str, Any]:
        """Hours and energy spent, as JSON, for a checkpoint."""
        return {"seconds": self.seconds, "watt_hours": self.watt_hours}

    def resume(self, facts: Mapping[str, Any] | None) -> None:
        """Continue from the amounts in a checkpoint; None from earlier versions."""
        if facts is not None:
            self._seconds_before = float(facts["seconds"])
            self._energy_before = float(facts["watt_hours"])


@dataclass
class TrainState:
    """Progress of a run, shared and changed by its parts."""

    total_steps: int
    token_budget: int
    """Token budget of a micro-batch, padding included; smaller once memory has run out."""
    best: BestStep
    finite: FiniteCheck
    scaler: GradScaler | None = None
    reference_budget: int | None = None
    """Token budget of the precomputed reference, if there is one."""
    checkpointing: bool = False
    """True if activations are recomputed in backward."""
    kept_layers: int = 0
    """Number of last layers whose activations are kept despite ``checkpointing``."""
    offloading: bool = False
    """True if the inputs of recomputed layers are offloaded to host memory."""
    deterministic: Determinism = "strict"
    """Reproducibility of a resumed run: bit for bit, or to rounding."""
    file: dict[str, str] | None = None
    """Type (``type``) and merge dtype (``dtype``) of the file whose weights are trained now; None if there is none."""
    limits: Limits = field(default_factory=Limits)
    """Limits on hours and energy, and the amounts spent."""
    spikes: LossSpikes = field(default_factory=LossSpikes)
    """Loss spikes, and the steps skipped because of them."""
    step: int = 0
    """Optimizer steps done."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Options changed while running, by ``section.key``."""
    saved: int | None = None
    """Step of the newest whole checkpoint. This and all following fields are not saved in checkpoints."""
    paused: bool = False
    """True if the run pauses at the next control point."""
    paused_seconds: float = 0.0
    """Seconds of pause since the last step."""
    evaluated: int | None = None
    """Step of the last evaluation in this process, complete or not."""
    measures_baseline: bool = False
    """True during the evaluation before the first step."""
    skipping: bool = False
    """True if the current evaluation should be skipped."""

    @property
    def may_overflow(self) -> bool:
        """True if a non-finite gradient may come from the fp16 loss scale, which then shrinks."""
        return self.scaler is not None and self.scaler.get_scale() > 1.0

    def facts(self) -> dict[str, Any]:
        """State as JSON, under the keys of a checkpoint's manifest. ``limits`` and ``spikes`` are only written if the
        run has limits or acts on spikes; otherwise equal runs would have unequal checkpoints."""
        spent = {"limits": self.limits.facts()} if self.limits.is_set else {}
        spikes = {"spikes": self.spikes.facts()} if self.spikes.acts else {}
        return {
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "total_steps": self.total_steps,
            "token_budget": self.token_budget,
            "reference_budget": self.reference_budget,
            "gradient_checkpointing": self.checkpointing,
            "activation_offload": self.offloading,
            # Earlier versions could use Liger's loss kernel, and wrote its version here.
            "liger": None,
            "overrides": self.overrides,
            "selection": self.best.facts(),
            "health": self.finite.facts(),
            "deterministic": self.deterministic,
            "kept_layers": self.kept_layers,
            "file": self.file,
            **spent,
            **spikes,
        }

    def restore(self, manifest: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint. Options changed while running (``overrides``) and settings fixed before
        the first step (``reference_budget``, ``deterministic``) stay.

        Args:
            manifest: Manifest of the checkpoint: its ``step``, and :meth:`facts`.
        """
        if self.scaler is not None and manifest["scaler"] is not None:
            self.scaler.load_state_dict(manifest["scaler"])
        self.step = self.saved = int(manifest["step"])
        self.token_budget = int(manifest["token_budget"])
        self.checkpointing = bool(manifest["gradient_checkpointing"])
        # Manifests of earlier versions lack these keys.
        self.kept_layers = int(manifest.get("kept_layers", 0))
        self.offloading = bool(manifest.get("activation_offload", False))
        self.best.restore(manifest["selection"], self.step)
        self.finite.restore(manifest["health"])
        self.spikes.restore(manifest.get("spikes"))

    def restart(self, beginning: Mapping[str, Any]) -> None:
        """Return to the moment before the first step. Everything given up for memory stays given up.

        Args:
            beginning: The :meth:`facts` of that moment.
        """
        self.step, self.saved = 0, None
        self.best.restore(beginning["selection"], None)
        self.finite.restore(beginning["health"])
        self.spikes.restore(beginning.get("spikes"))


@dataclass(frozen=True)
class Intervals:
    """Evaluation and checkpoint intervals, and whether they are due after the last step.

    Args:
        config: Configured intervals.
        state: Current step, and intervals changed while running.
        steps_per_epoch: Optimizer steps in one pass over the rows.
    """

    config: Config
    state: TrainState
    steps_per_epoch: int

    @property
    def is_evaluation_due(self) -> bool:
        """True if an evaluation is due. An interval changed while running counts in steps."""
        step, config = self.state.step, self.config.eval
        every: int | None = self.state.overrides.get("eval.every_steps", config.every_steps)
        now, before = (evaluations_by(at, every, config.every_epochs, self.steps_per_epoch) for at in (step, step - 1))
        return now > before

    @property
    def is_checkpoint_due(self) -> bool:
        """True if a checkpoint is due."""
        step, total = self.state.step, self.state.total_steps
        every: int | None = self.state.overrides.get("checkpoint.every_steps", self.config.checkpoint.every_steps)
        return checkpoints_by(step, every, total) > checkpoints_by(step - 1, every, total)
