"""Training state: what training changes besides weights, optimizer and random generators, and a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.amp.grad_scaler import GradScaler

from core.worker.process.determinism import Determinism
from core.worker.progress.best import BestStep
from core.worker.progress.finite import FiniteCheck
from core.worker.progress.limits import Limits
from core.worker.progress.spikes import LossSpikes


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
    """Whether activations are recomputed in backward."""
    kept_layers: int = 0
    """With that, the number of layers, the last ones, whose activations are kept nevertheless."""
    offloading: bool = False
    """Whether what recomputing starts from is kept in host memory meanwhile."""
    deterministic: Determinism = "strict"
    """Whether a run that goes on is equal bit for bit, or to rounding."""
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
    """Whether the run pauses at the next control point."""
    paused_seconds: float = 0.0
    """Seconds of pause since the last step."""
    evaluated: int | None = None
    """The step of the last evaluation in this process, whether or not it was carried through."""
    measures_baseline: bool = False
    """Whether the evaluation before the first step is under way."""
    skipping: bool = False
    """Whether the evaluation that is under way is to be left out."""

    @property
    def may_overflow(self) -> bool:
        """Whether a gradient that is not finite may come of the scale of fp16, which then shrinks."""
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
