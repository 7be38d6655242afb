"""A job in progress, as its views see it: its stage, the time left, and its end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Generic, Literal

from core.errors import UserError
from core.jobs.job import JobCancelledError, ProgressType, ResultType
from core.units import format_duration

#: Factor by which a new estimate must exceed the shown one to replace it; smaller rises are not shown.
_CORRECTION = 1.5


class RunningJob(Generic[ProgressType, ResultType]):
    """A job with its progress and end; the thread that runs it writes, others read.

    Args:
        kind: The job in a word: ``export``.
        about: The object of the job; empty for none.
        expected: Seconds that such a job takes, as far as known; None if only its progress tells.
        clock: Monotonic clock, in seconds.
    """

    def __init__(
        self, kind: str, about: str = "", *, expected: float | None = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.kind, self.about = kind, about
        self.stage: Literal["asked", "on", "ended", "canceled"] = "asked"
        self.progress: ProgressType | None = None
        """The newest progress; None before the first."""
        self.result: ResultType | None = None
        self.error: UserError | None = None
        """The error of a job that ended without a result."""
        self.expected, self.seconds_left = expected, math.inf
        self._clock, self._began, self._ended, self._share = clock, 0.0, 0.0, 0.0
        self._is_canceled = False

    @property
    def title(self) -> str:
        """Subject of sentences: ``The export of tickets``."""
        return f"The {self.kind} of {self.about}" if self.about else f"The {self.kind}"

    @property
    def is_over(self) -> bool:
        """True once it has ended or was canceled."""
        return self.stage in ("ended", "canceled")

    @property
    def is_ending(self) -> bool:
        """True from the request to cancel it to its end."""
        return self._is_canceled and not self.is_over

    @property
    def seconds(self) -> float:
        """Seconds since it began, until its end."""
        return (self._ended if self.is_over else self._clock()) - self._began if self._began else 0.0

    @property
    def share(self) -> float:
        """The largest share that was reported, from 0 to 1."""
        return self._share

    @property
    def left(self) -> str:
        """The time left in words, in steps: ``3m left``, ``40s left``; ``starting`` while nothing tells it."""
        if self.seconds_left == math.inf:
            return "starting"
        if self.seconds_left < 90:
            return f"{max(math.ceil(self.seconds_left / 5), 1) * 5}s left"
        return f"{format_duration(round(self.seconds_left / 60) * 60).removesuffix(' 00s')} left"

    @property
    def state(self) -> str:
        """The state in a few words: ``64%, 3m left``."""
        if self.is_over:
            return "failed" if self.error is not None else "done"
        return f"{self.share:.0%}, {self.left}" if self.share else self.left

    def begin(self) -> None:
        """Note its begin."""
        self.stage, self._began = "on", self._clock()

    def run(self, work: Callable[[Callable[[ProgressType], None]], ResultType], changed: Callable[[], object]) -> None:
        """Run the work to its end, in a thread.

        Args:
            work: The work, called with a callback for its progress, which raises :class:`JobCancelledError` once the
                job is canceled.
            changed: Called after each change.
        """

        def tell(progress: ProgressType) -> None:
            self.tell(progress)
            changed()

        try:
            self.end(work(tell))
        except JobCancelledError:
            self.end()
        except UserError as error:
            # A process that was ended to cancel it may say so.
            self.end(error=None if self._is_canceled else error)
        changed()

    def tell(self, progress: ProgressType) -> None:
        """Note progress.

        Raises:
            JobCancelledError: If the job was canceled.
        """
        if self._is_canceled:
            raise JobCancelledError
        self.progress, self._share = progress, max(self._share, min(progress.share or 0.0, 1.0))
        # At first what is expected, at the end the pace so far: share s took t seconds, so that the rest takes
        # (1 - s) * t / s, weighted by s, and (1 - s) of what is expected, weighted by 1 - s.
        rest = 1 - self._share
        if self.expected is not None:
            estimate = rest * (self.seconds + rest * self.expected)
        else:
            estimate = rest * self.seconds / self._share if self._share else math.inf
        if not self.seconds_left <= estimate <= self.seconds_left * _CORRECTION:
            self.seconds_left = estimate

    def end(self, result: ResultType | None = None, error: UserError | None = None) -> None:
        """Note its end: with a result, an error, or neither if it was canceled."""
        self.result, self.error, self._ended = result, error, self._clock()
        self.stage = "ended" if result is not None or error is not None else "canceled"

    def cancel(self) -> None:
        """End it at its next progress."""
        self._is_canceled = True
