"""Sums over the steps of a run, which can be rolled back to an earlier step."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

#: Newest steps that can be rolled back one by one.
REWOUND_STEPS = 1 << 15
_LONGEST_SECONDS = 3e9


def sound(seconds: float) -> float:
    """A plausible duration: not negative (a clock may have been set back), and no longer than a life."""
    return seconds if 0 < seconds < _LONGEST_SECONDS else 0.0


@dataclass
class StepTotals:
    """Cumulative sums at each of the newest steps, so that replayed steps can be rolled back.

    If a run goes back further than is kept, they start from zero.
    """

    steps: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    paused: list[float] = field(default_factory=list)
    dropped: int = 0
    """Number of older steps, which have been dropped."""

    def append(self, step: int, tokens: int, seconds: float, paused: float) -> None:
        """Add a step: its tokens without padding, its seconds, and the seconds of pause before it."""
        self.steps.append(step)
        self.tokens.append((self.tokens[-1] if self.tokens else 0) + max(tokens, 0))
        self.seconds.append((self.seconds[-1] if self.seconds else 0.0) + sound(seconds))
        self.paused.append((self.paused[-1] if self.paused else 0.0) + sound(paused))
        if len(self.steps) >= 2 * REWOUND_STEPS:
            self.dropped += len(self.steps) - REWOUND_STEPS
            for sums in (self.steps, self.tokens, self.seconds, self.paused):
                del sums[:-REWOUND_STEPS]

    def truncate(self, step: int) -> None:
        """Roll back the steps from ``step`` on."""
        keep = bisect_left(self.steps, step)
        for sums in (self.steps, self.tokens, self.seconds, self.paused):
            del sums[keep:]
        self.dropped = self.dropped if keep else 0

    @property
    def rate(self) -> float | None:
        """Tokens over the seconds of all steps; None before the first."""
        return self.tokens[-1] / self.seconds[-1] if self.seconds and self.seconds[-1] > 0 else None
