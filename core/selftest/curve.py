"""Loss curve: losses of the first steps on the sample data, recorded on a CPU in fp32 and shipped with the program.

``bench/loss_curve.py`` records it. The learning rate is constant, so a shorter run has the same losses.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sample_data
from core.config.schema import Config

FILE = Path(__file__).with_name("loss_curve.json")
#: Largest relative deviation from the recorded losses: of the first step, of later steps, and of their mean. In bf16
#: the first loss is 0.1 % off, and learning is slower than in fp32: later losses are off by 8 % from the second step
#: on, by 26 % at most, and by 10 % in the mean, with and without fused layers.
FIRST_SHARE, STEP_SHARE, MEAN_SHARE = 0.02, 0.35, 0.20
#: Deviation that is always allowed, as late losses are small.
LEAST = 0.1


@dataclass(frozen=True)
class LossCurve:
    """Recorded losses, by step from the first.

    Args:
        losses: Mean over the supervised tokens of each step.
        recorded: Processor, versions and precision of the recording.
    """

    losses: tuple[float, ...]
    recorded: str

    @classmethod
    def shipped(cls) -> LossCurve:
        """The curve shipped with the program."""
        data = json.loads(FILE.read_text(encoding="utf-8"))
        return cls(tuple(map(float, data["losses"])), str(data["recorded"]))

    def deviation(self, losses: Sequence[float]) -> Deviation:
        """Deviation of losses from the recorded ones; there may be fewer steps."""
        pairs = list(zip(losses, self.losses, strict=False))
        outside = [
            number
            for number, (found, wanted) in enumerate(pairs, start=1)
            if not abs(found - wanted) <= (FIRST_SHARE * wanted if number == 1 else max(STEP_SHARE * wanted, LEAST))
        ]
        most = max((_share(found, wanted) for found, wanted in pairs), default=math.inf)
        wanted_mean = sum(wanted for _, wanted in pairs) / max(len(pairs), 1)
        mean = _share(sum(found for found, _ in pairs) / max(len(pairs), 1), wanted_mean)
        return Deviation(len(pairs), most, mean, tuple(outside))


@dataclass(frozen=True)
class Deviation:
    """Relative deviation of losses from the recorded ones; infinite for a loss that is not finite."""

    steps: int
    most: float
    mean: float
    outside: tuple[int, ...]
    """Steps whose loss is outside the band."""

    @property
    def is_inside(self) -> bool:
        """True if every step and their mean are inside the band."""
        return self.steps > 0 and not self.outside and self.mean <= MEAN_SHARE


def _share(found: float, wanted: float) -> float:
    return abs(found - wanted) / wanted if math.isfinite(found) and wanted else math.inf


def curve_config(model: str, steps: int, *, device: str, precision: str = "auto") -> Config:
    """The configuration of the recording.

    Args:
        model: The base model.
        steps: Number of steps.
        device: ``auto``, ``cuda`` or ``cpu``.
        precision: ``train.precision``; ``fp32`` for a recording.
    """
    return Config.model_validate(
        {
            "model": {"base": model},
            "data": {"train": str(sample_data.path("tickets_train.jsonl")), "format": "messages"},
            "method": {"name": "qlora", "rank": 16, "alpha": 32.0},
            "train": {
                "max_steps": steps,
                "batch_size": 4,
                "max_length": 256,
                "learning_rate": 2e-4,
                "scheduler": "constant",
                "warmup": 0.0,
                "precision": precision,
                "seed": 42,
            },
            "eval": {"samples": 0},
            "checkpoint": {"every_steps": steps, "keep": 1},
            "hardware": {"device": device},
        }
    )
