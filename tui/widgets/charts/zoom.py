"""The part of a chart's axis of steps that is shown: zoom and pan. No widget in here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tui.widgets.charts.plot_geometry import Scale

#: Fewest steps that are shown.
FEWEST = 8.0
#: A part that follows the newest step moves on by this part of itself, so that the picture is seldom redrawn.
JUMPS = 8
#: Part of what is shown by which it is panned.
PAN = 1 / 4


@dataclass(frozen=True)
class Zoom:
    """A part of the axis of steps; all of it by default."""

    span: float | None = None
    """Steps from one end to the other; None for all."""
    end: float | None = None
    """The step at the right end; None where it follows the newest one."""

    def window(self, whole: Scale, newest: float) -> Scale:
        """The part that is shown.

        Args:
            whole: The whole axis; its ends are whole numbers.
            newest: The newest step.
        """
        if self.span is None or self.span >= whole.high - whole.low:
            return whole
        jump = max(round(self.span / JUMPS), 1)
        end = math.ceil(newest / jump) * float(jump) if self.end is None else self.end
        low = min(max(end - self.span, whole.low), whole.high - self.span)
        return Scale(low, low + self.span)

    def scaled(self, factor: float, whole: Scale, newest: float, around: float | None = None) -> Zoom:
        """The part with ``factor`` times as many steps, in which ``around`` stays where it is; without it the right end
        stays."""
        now = self.window(whole, newest)
        most = whole.high - whole.low
        span = max(float(round((now.high - now.low) * factor)), FEWEST)
        if span >= most:
            return Zoom()
        if around is None:
            return Zoom(span, self.end)
        share = (min(max(around, now.low), now.high) - now.low) / (now.high - now.low)
        low = min(max(float(round(around - share * span)), whole.low), whole.high - span)
        return Zoom(span, low + span)

    def panned(self, by: int, whole: Scale, newest: float) -> Zoom:
        """The part a quarter of itself further (``by`` 1) or back (-1). At the newest step it follows that again."""
        now = self.window(whole, newest)
        if self.span is None or now == whole:
            return self
        end = now.high + by * max(round(self.span * PAN), 1)
        end = min(max(end, whole.low + self.span), whole.high)
        following = Zoom(self.span)
        return following if by > 0 and end >= following.window(whole, newest).high else Zoom(self.span, end)

    def holding(self, step: float, whole: Scale, newest: float) -> Zoom:
        """The part, moved as little as needed for a step to be in it."""
        now = self.window(whole, newest)
        if self.span is None or now.low <= step <= now.high:
            return self
        return Zoom(self.span, step + self.span if step < now.low else step)
