"""Training health: non-finite losses and gradients, and loss spikes, with the rows behind them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from core.analysis.problems import FileLine, name_places
from core.errors import UserError
from core.units import exact_number, format_number

#: ``notice(code, message, hint)``.
Told = Callable[[str, str, str], None]
#: Number of consecutive non-finite updates after which a run gives up.
NONFINITE_LIMIT = 5


class NotFiniteError(UserError):
    """Error of a run that gave up because losses or gradients stayed non-finite. ``good`` is the step of its newest
    good checkpoint, if there is one."""

    def __init__(self, message: str, hint: str, good: int | None) -> None:
        super().__init__(message, hint)
        self.good = good


@dataclass
class FiniteCheck:
    """Checks the loss and the gradient of each step.

    Args:
        notice: Receives warnings: ``notice(code, message, hint)``.
        places: Source of each training row, by index.
    """

    notice: Told
    places: Sequence[FileLine]
    skipped: int = field(default=0, init=False)
    """Number of updates skipped so far."""
    _streak: int = field(default=0, init=False)
    _zero_told: bool = field(default=False, init=False)
    _where: str = field(default="", init=False)

    @property
    def is_hopeless(self) -> bool:
        """True if :data:`NONFINITE_LIMIT` updates in a row were skipped."""
        return self._streak >= NONFINITE_LIMIT

    def accepts(self, step: int, loss: float, norm: float, window: Sequence[int], *, overflow: bool = False) -> bool:
        """True if a step may update the weights.

        Args:
            step: Current step, counted from 1.
            loss: Its mean loss.
            norm: The norm of its gradient, before clipping.
            window: Indices of its rows.
            overflow: A non-finite gradient comes from the fp16 loss scale, which a smaller scale fixes; it does not
                count.
        """
        if math.isfinite(loss) and math.isfinite(norm):
            self._streak = 0
            if norm == 0 and not self._zero_told:
                self._zero_told = True
                self._tell_zero(step, loss)
            return True
        if overflow and math.isfinite(loss):
            return False
        self._streak += 1
        self.skipped += 1
        self._where = f"step {step}, {_name_rows(self.places, window)}"
        what = "gradient" if math.isfinite(loss) else "loss"
        self.notice(
            "nonfinite",
            f"The {what} of step {step} is not finite (loss {loss:g}, gradient {norm:g}); the update is skipped "
            f"({self._streak} in a row). Its rows: {_name_rows(self.places, window)}.",
            f"After {NONFINITE_LIMIT} in a row the run ends at its last good checkpoint.",
        )
        return False

    def verdict(self, good: int | None) -> NotFiniteError:
        """Error that ends a hopeless run.

        Args:
            good: Step of its newest good checkpoint.
        """
        kept = f"the last good checkpoint is that of step {good}" if good else "no checkpoint is known to be good"
        return NotFiniteError(
            f"Loss or gradient have not been finite for {NONFINITE_LIMIT} steps, up to {self._where}; {kept}.",
            "Look at these rows; if they are sound, lower train.learning_rate, set train.max_grad_norm, or set "
            "train.precision to bf16 or fp32, and start anew.",
            good,
        )

    def facts(self) -> dict[str, Any]:
        """State as JSON, for a checkpoint."""
        return {"skipped": self.skipped, "streak": self._streak, "zero_told": self._zero_told}

    def restore(self, facts: dict[str, Any]) -> None:
        """Restore :meth:`facts`."""
        self.skipped, self._streak = int(facts["skipped"]), int(facts["streak"])
        self._zero_told = bool(facts["zero_told"])

    def _tell_zero(self, step: int, loss: float) -> None:
        if loss == 0:
            message = f"Loss and gradient of step {step} are zero: nothing is learned from its rows."
            hint = "Look at what is learned of them with 'localtune-tui data', and at data.supervise."
        else:
            message = f"The gradient of step {step} is zero although its loss is {loss:.3g}: nothing is trained by it."
            hint = "Look at method.target_modules: the layers named there may not be what the model computes with."
        self.notice("zero_gradient", message, hint)


def _name_rows(places: Sequence[FileLine], rows: Sequence[int]) -> str:
    # Rows made in memory, as in tests, have no source.
    return name_places([places[row] for row in rows if row < len(places)])


#: Number of rollbacks for spikes; at the next spike the run stops.
ROLLBACK_LIMIT = 3
#: Number of losses whose median is the level; of residuals that give the noise; minimum number of residuals.
LEVEL, NOISE, FEWEST = 16, 128, 20
#: Minimum noise, in nats: once rows are memorized, any new row would stand out.
LEAST_NOISE = 0.05
#: Maximum number of spikes reported per start of a run.
MOST_TOLD = 10

Action = Literal["warn", "skip", "rollback", "stop"]


class RecentLosses:
    """Robust statistics of the last losses: their level, and how far above it a step is.

    The level is the median of the last :data:`LEVEL` losses, shifted by the median of the residuals (the trend). The
    noise is the greater of two robust deviations of the residuals: one from their median, and one from their 95th
    percentile, which catches a few steps in twenty of another kind, such as steps of the shortest rows.
    """

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=LEVEL)
        self._residuals: deque[float] = deque(maxlen=NOISE)
        self._tokens: deque[int] = deque(maxlen=NOISE)

    @property
    def is_enough(self) -> bool:
        """True if there are enough losses to judge by."""
        return len(self._residuals) >= FEWEST

    def add(self, loss: float, tokens: int) -> None:
        """Add a step.

        Args:
            loss: Its mean loss, in nats.
            tokens: Number of supervised tokens behind the mean.
        """
        if self._losses:
            self._residuals.append(loss - median(self._losses))
            self._tokens.append(tokens)
        self._losses.append(loss)

    def expected(self) -> float:
        """Expected loss of the next step."""
        return median(self._losses) + median(self._residuals)

    def deviations(self, loss: float, tokens: int) -> float:
        """Number of deviations of a loss above the expected one; 0 if a recent step was as far above the level. The
        mean of few tokens deviates more, by the square root of their number."""
        level, trend, usual = median(self._losses), median(self._residuals), median(self._tokens)
        if loss - level <= max(self._residuals):
            return 0.0
        apart = sorted(
            (residual - trend) / _widening(count, usual)
            for residual, count in zip(self._residuals, self._tokens, strict=True)
        )
        typical = 1.4826 * median([abs(residual) for residual in apart])
        upper = apart[math.ceil(0.95 * (len(apart) - 1))] / 1.645
        return (loss - level - trend) / (max(typical, upper, LEAST_NOISE) * _widening(tokens, usual))

    def forget(self) -> None:
        """Start over at another level."""
        for each in (self._losses, self._residuals, self._tokens):
            each.clear()

    def facts(self) -> dict[str, Any]:
        """State as JSON, for a checkpoint."""
        return {"losses": list(self._losses), "residuals": list(self._residuals), "tokens": list(self._tokens)}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Restore :meth:`facts`."""
        self.forget()
        self._losses.extend(map(float, facts["losses"]))
        self._residuals.extend(map(float, facts["residuals"]))
        self._tokens.extend(map(int, facts["tokens"]))


@dataclass(frozen=True)
class Spike:
    """Consecutive steps whose losses were far too high."""

    first: int
    """First step, counted from 1."""
    last: int
    loss: float
    """The highest loss."""
    expected: float | None
    """Expected loss of the first step; None if not known yet."""
    rows: tuple[int, ...]
    """Indices of the rows of these steps."""

    @property
    def count(self) -> int:
        """Number of steps."""
        return self.last - self.first + 1

    def followed_by(self, step: int, loss: float, window: Sequence[int]) -> Spike:
        """The spike with one more step."""
        return Spike(self.first, step, max(loss, self.loss), self.expected, (*self.rows, *window))

    @property
    def sentence(self) -> str:
        """Description: ``7.13 at step 41, where about 1.2 was expected``."""
        at = f"step {self.first}" if self.count == 1 else f"steps {self.first} to {self.last}"
        about = "" if self.expected is None else f", where about {format_number(self.expected)} was expected"
        return f"{format_number(self.loss)} at {at}{about}"


@dataclass
class LossSpikes:
    """Detects loss spikes of a run and decides the response.

    Args:
        action: The option ``train.on_loss_spike``.
        threshold: Deviations above the expected loss that make a spike; 0 to not compare losses.
        patience: Consecutive steps after which the run goes back or stops; with ``skip``, the most updates skipped.
        limit: A loss above which any step is a spike; None for no limit.
        warmup: Warm-up steps, which are ignored.
        notice: Receives warnings: ``notice(code, message, hint)``.
        places: Source of each training row, by index.
    """

    action: Action = "warn"
    threshold: float = 8.0
    patience: int = 3
    limit: float | None = None
    warmup: int = 0
    notice: Told = lambda *_: None
    places: Sequence[FileLine] = ()
    spike: Spike | None = field(default=None, init=False)
    """Current spike; None while losses are as expected."""
    left_out: set[int] = field(default_factory=set, init=False)
    """Steps, counted from 1, that are skipped because a spike began with their rows."""
    rollbacks: int = field(default=0, init=False)
    """Number of rollbacks for spikes."""
    _recent: RecentLosses = field(default_factory=RecentLosses, init=False)
    _told: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.threshold = self.threshold or math.inf

    @property
    def acts(self) -> bool:
        """True if spikes change the training."""
        return self.action != "warn"

    @property
    def _ends(self) -> bool:
        """True if a spike returns the run to a good checkpoint."""
        return self.action in ("rollback", "stop")

    @property
    def is_trusted(self) -> bool:
        """True if the weights may be called good."""
        return self.spike is None or not self._ends

    @property
    def needs_checkpoint(self) -> bool:
        """True if the run needs a checkpoint to return to."""
        return self._ends and self.spike is None and (self._recent.is_enough or self.limit is not None)

    @property
    def due(self) -> Spike | None:
        """Spike for which the run must go back or stop now."""
        return self.spike if self.spike is not None and self._ends and self.spike.count >= self.patience else None

    @property
    def may_go_back(self) -> bool:
        """True if the run continues after a rollback instead of stopping."""
        return self.action == "rollback" and self.rollbacks < ROLLBACK_LIMIT

    def accepts(self, step: int, loss: float, tokens: int, window: Sequence[int]) -> bool:
        """True if a step may update the weights.

        Args:
            step: Current step, counted from 1.
            loss: Its mean loss, which is finite.
            tokens: Its supervised tokens.
            window: Indices of its rows.
        """
        above = 0.0
        if self._recent.is_enough and step > self.warmup:
            above = self._recent.deviations(loss, tokens)
        is_over = self.limit is not None and loss > self.limit
        if above <= self.threshold and not is_over:
            self.spike = None
            if step > self.warmup:
                self._recent.add(loss, tokens)
            return True
        if self.spike is None:
            expected = self._recent.expected() if self._recent.is_enough else None
            self.spike = Spike(step, step, loss, expected, tuple(window))
            self._tell(self.spike, above)
        else:
            # Rows of a lasting spike are only kept up to the step that triggers the response.
            rows = window if self.spike.count < self.patience else ()
            self.spike = self.spike.followed_by(step, loss, rows)
        if self._ends or self.spike.count <= self.patience:
            return self.action != "skip"
        self._settle(self.spike, loss, tokens)
        return True

    def _settle(self, spike: Spike, loss: float, tokens: int) -> None:
        """Accept a loss that has stayed high as the new level."""
        if spike.count == self.patience + 1:
            self._recent.forget()
            if self.action == "skip":
                self.notice(
                    "loss_spike_stays",
                    f"The loss stays high after {self.patience} steps whose update was skipped: updates are made "
                    "again, as it is not a matter of a few rows.",
                    "With train.on_loss_spike = rollback the run would go back to before.",
                )
        self._recent.add(loss, tokens)

    def _tell(self, spike: Spike, above: float) -> None:
        self._told += 1
        if self._told > MOST_TOLD:
            return
        if above > self.threshold:
            why = f"{spike.sentence} ({format_number(above)} deviations above it)"
        else:
            why = f"{spike.sentence}; train.loss_limit is {exact_number(self.limit or 0.0)}"
        hint = {
            "warn": "Look at these rows; train.on_loss_spike says what a run does about it.",
            "skip": "Its update is skipped. Look at these rows.",
            "rollback": f"After {self.patience} such steps in a row the run goes back to its last good checkpoint.",
            "stop": f"After {self.patience} such steps in a row the run stops at its last good checkpoint.",
        }[self.action]
        more = " Further spikes of this start are not told." if self._told == MOST_TOLD else ""
        self.notice("loss_spike", f"The loss spikes: {why}. Its rows: {self.name(spike)}.{more}", hint)

    def name(self, spike: Spike) -> str:
        """Sources of the rows of a spike."""
        return _name_rows(self.places, spike.rows)

    def begin_anew(self) -> None:
        """Forget earlier losses, because other weights are trained from now on."""
        self._recent.forget()
        self.spike = None

    def leave_out(self, spike: Spike) -> None:
        """Skip the steps of a spike after a rollback."""
        self.left_out.update(range(spike.first, spike.last + 1))
        self.rollbacks += 1

    def facts(self) -> dict[str, Any]:
        """State as JSON, for a checkpoint."""
        return {
            "recent": self._recent.facts(),
            "spike": None if self.spike is None else vars(self.spike),
            "left_out": sorted(self.left_out),
            "rollbacks": self.rollbacks,
        }

    def restore(self, facts: Mapping[str, Any] | None) -> None:
        """Restore :meth:`facts`; steps skipped since stay skipped.

        Args:
            facts: None if the checkpoint has none, because the run only warned of spikes then.
        """
        self._recent.forget()
        self.spike = None
        if facts is None:
            return
        self._recent.restore(facts["recent"])
        if (spike := facts["spike"]) is not None:
            self.spike = Spike(**{**spike, "rows": tuple(spike["rows"])})
        self.left_out |= set(facts["left_out"])
        self.rollbacks = max(self.rollbacks, int(facts["rollbacks"]))


def _widening(tokens: int, usual: float) -> float:
    """Factor by which the mean of few tokens deviates more than the mean of the usual number."""
    return math.sqrt(max(usual / max(tokens, 1), 1.0))
