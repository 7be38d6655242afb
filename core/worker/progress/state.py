"""Training state in a checkpoint, besides weights, optimizer and random generators; limits and intervals of a run."""

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


class BestStep:
    """Early stopping: the best step by held-out loss, the patience that is left, and the newest good checkpoint.

    A checkpoint is good when its very weights have given a finite loss and a finite gradient: the loss of its step was
    computed before the update that it contains, and says nothing of that.

    Args:
        patience: Evaluations without improvement after which the run ends; None: never.
        min_delta: By how much the held-out loss must fall to count as an improvement.
    """

    def __init__(self, patience: int | None = None, min_delta: float = 0.0) -> None:
        self.patience = patience
        self.min_delta = min_delta
        self.best_step: int | None = None
        self.best_loss = math.inf
        self.last_good: int | None = None
        """Step of the newest good checkpoint."""
        self.waited = 0
        """Evaluations since the last improvement."""
        self.last_measured: int | None = None
        """Step of the last evaluation that was carried through."""
        self._reference = math.inf
        self._proven: int | None = None
        self._saved: int | None = None

    @property
    def is_exhausted(self) -> bool:
        """True if the held-out loss has not improved for as many evaluations as there is patience."""
        return self.patience is not None and self.waited >= self.patience

    @property
    def protected(self) -> frozenset[int]:
        """Steps whose checkpoints outlive the rotation."""
        return frozenset(step for step in (self.best_step, self.last_good) if step is not None)

    def measured(self, step: int, loss: float, *, proves: bool = True) -> bool:
        """Take in an evaluation; the untouched model (step 0) is no candidate.

        Args:
            step: Of the weights.
            loss: The held-out loss.
            proves: Whether a finite one proves the weights good, as it does not while the training loss spikes.

        Returns:
            Whether it is the best one so far.
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
        """Forget earlier measurements: other weights are measured from now on."""
        self.best_step, self.best_loss, self._reference, self.waited = None, math.inf, math.inf, 0

    def saved(self, step: int) -> None:
        """A checkpoint of a step has been written. An evaluation of its weights may have proved them already."""
        self._saved = step
        if step == self._proven:
            self.last_good = step

    def proved(self, step: int) -> None:
        """The weights after so many steps have given a finite loss and gradient."""
        self._proven = step
        if self._saved == step:
            self.last_good = step

    def facts(self) -> dict[str, Any]:
        """All of it as JSON, for a checkpoint."""
        return {
            "best": None if self.best_step is None else {"step": self.best_step, "loss": self.best_loss},
            "last_good": self.last_good,
            "proven": self._proven,
            "last_measured": self.last_measured,
            "waited": self.waited,
            "reference": self._reference if math.isfinite(self._reference) else None,
        }

    def restore(self, facts: dict[str, Any], step: int | None) -> None:
        """Put :meth:`facts` back.

        Args:
            facts: Of whatever moment.
            step: The checkpoint that the run goes on from; None for its beginning.
        """
        best = facts["best"]
        self.best_step, self.best_loss = (None, math.inf) if best is None else (int(best["step"]), float(best["loss"]))
        self.last_good, self.last_measured = facts["last_good"], facts["last_measured"]
        self.waited, self._proven = int(facts["waited"]), facts["proven"]
        self._reference = math.inf if facts["reference"] is None else float(facts["reference"])
        self._saved = None
        if step is not None:
            self.saved(step)


class Limits:
    """Limits of a run: hours of work and energy, counted over all its starts, after which it ends with its result.

    Args:
        hours: Hours of work at most; None for no limit.
        watt_hours: Energy at most; None for no limit.
        energy: Watt-hours that this process has taken; None where no device reports its power.
        clock: Seconds, by a clock that nobody sets.
    """

    def __init__(
        self,
        hours: float | None = None,
        watt_hours: float | None = None,
        energy: Callable[[], float | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hours, self._watt_hours, self._energy, self._clock = hours, watt_hours, energy, clock
        self._began, self._paused = clock(), 0.0
        self._seconds_before = self._energy_before = 0.0

    def pause(self, seconds: float) -> None:
        """Seconds of pause that are over do not count."""
        self._paused += seconds

    @property
    def seconds(self) -> float:
        """Seconds of work over all starts."""
        return self._seconds_before + max(self._clock() - self._began - self._paused, 0.0)

    @property
    def watt_hours(self) -> float:
        """Energy over all starts, as far as devices report it."""
        return self._energy_before + (self._energy() or 0.0)

    @property
    def is_set(self) -> bool:
        """True if there is any limit."""
        return self._hours is not None or self._watt_hours is not None

    @property
    def is_blind(self) -> bool:
        """True if energy is limited, and no device reports its power."""
        return self._watt_hours is not None and self._energy() is None

    def reached(self, pausing: float = 0.0) -> str | None:
        """The limit that is reached, as the reason of an end; None while none is.

        Args:
            pausing: Seconds of pause that :meth:`pause` has not been told yet.
        """
        if self._hours is not None and self.seconds - pausing >= self._hours * 3600:
            return f"train.max_hours = {exact_number(self._hours)} is reached"
        if self._watt_hours is not None and self.watt_hours >= self._watt_hours:
            return f"train.max_energy_wh = {exact_number(self._watt_hours)} is reached"
        return None

    def facts(self) -> dict[str, Any]:
        """The hours and the energy spent, as JSON, for a checkpoint."""
        return {"seconds": self.seconds, "watt_hours": self.watt_hours}

    def resume(self, facts: Mapping[str, Any] | None) -> None:
        """Go on from what a checkpoint says was spent; None where it is of an earlier version."""
        if facts is not None:
            self._seconds_before = float(facts["seconds"])
            self._energy_before = float(facts["watt_hours"])


@dataclass
class TrainState:
    """Progress of a run: its parts share one, read it and change it."""

    total_steps: int
    token_budget: int
    """The most tokens of a micro-batch, padding included; smaller once memory has run out."""
    best: BestStep
    finite: FiniteCheck
    scaler: GradScaler | None = None
    reference_budget: int | None = None
    """The most tokens of a batch that the reference log-probabilities were computed with, where that is done once."""
    checkpointing: bool = False
    """True if activations are recomputed in backward."""
    kept_layers: int = 0
    """With that, the number of layers, the last ones, whose activations are kept nevertheless."""
    offloading: bool = False
    """True if what recomputing starts from is kept in host memory meanwhile."""
    deterministic: Determinism = "strict"
    """True if a run that goes on is equal bit for bit, or to rounding."""
    file: dict[str, str] | None = None
    """The type of the file whose weights are trained now (``type``), and the dtype that they are merged in
    (``dtype``); None where they are not."""
    limits: Limits = field(default_factory=Limits)
    """Hours and energy after which the run ends, and what is spent of them."""
    spikes: LossSpikes = field(default_factory=LossSpikes)
    """Steps whose loss is far too high, and those that are left out for it."""
    step: int = 0
    """Optimizer steps done."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Options changed while running, ``section.key`` to value."""
    saved: int | None = None
    """The step of the newest whole checkpoint; as what follows, no checkpoint holds it."""
    paused: bool = False
    """True if the run pauses at the next control point."""
    paused_seconds: float = 0.0
    """Seconds of pause since the last step."""
    evaluated: int | None = None
    """The step of the last evaluation in this process, whether or not it was carried through."""
    measures_baseline: bool = False
    """True if the evaluation before the first step is under way."""
    skipping: bool = False
    """True if the evaluation that is under way is to be left out."""

    @property
    def may_overflow(self) -> bool:
        """True if a gradient that is not finite may come of the scale of fp16, which then shrinks."""
        return self.scaler is not None and self.scaler.get_scale() > 1.0

    def facts(self) -> dict[str, Any]:
        """The state as JSON, under the keys of a checkpoint's manifest; ``limits`` and ``spikes`` only
        of a run that has some, or acts on them, as the checkpoints of two equal runs are equal otherwise."""
        spent = {"limits": self.limits.facts()} if self.limits.is_set else {}
        spikes = {"spikes": self.spikes.facts()} if self.spikes.acts else {}
        return {
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "total_steps": self.total_steps,
            "token_budget": self.token_budget,
            "reference_budget": self.reference_budget,
            "gradient_checkpointing": self.checkpointing,
            "activation_offload": self.offloading,
            # Earlier versions could sum the loss with Liger's kernel, and wrote its version here.
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
        """Go back to where a checkpoint was written. What was set while running (``overrides``) stays in force, and
        what a run settles before its first step (``reference_budget``, ``deterministic``) is settled.

        Args:
            manifest: The checkpoint's: its ``step``, and :meth:`facts`.
        """
        if self.scaler is not None and manifest["scaler"] is not None:
            self.scaler.load_state_dict(manifest["scaler"])
        self.step = self.saved = int(manifest["step"])
        self.token_budget = int(manifest["token_budget"])
        self.checkpointing = bool(manifest["gradient_checkpointing"])
        # Checkpoints of earlier versions do not say where activations were kept, and of which layers.
        self.kept_layers = int(manifest.get("kept_layers", 0))
        self.offloading = bool(manifest.get("activation_offload", False))
        self.best.restore(manifest["selection"], self.step)
        self.finite.restore(manifest["health"])
        self.spikes.restore(manifest.get("spikes"))

    def restart(self, beginning: Mapping[str, Any]) -> None:
        """Go back to before the first step, with what memory has asked for since still given up.

        Args:
            beginning: The :meth:`facts` of that moment.
        """
        self.step, self.saved = 0, None
        self.best.restore(beginning["selection"], None)
        self.finite.restore(beginning["health"])
        self.spikes.restore(beginning.get("spikes"))


@dataclass(frozen=True)
class Intervals:
    """Evaluation and checkpoint intervals, as configured or set since; due or not after the step just done.

    Args:
        config: The intervals at the start of the run.
        state: The step, and the intervals that were set since.
        steps_per_epoch: Optimizer steps in one pass over the rows.
    """

    config: Config
    state: TrainState
    steps_per_epoch: int

    @property
    def is_evaluation_due(self) -> bool:
        """True if an evaluation is due; an interval that was set counts in steps."""
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
