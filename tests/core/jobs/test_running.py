from __future__ import annotations

import itertools

import pytest

from core.errors import UserError
from core.jobs.job import JobCancelledError, JobProgress
from core.jobs.running import RunningJob


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_is_never_empty_and_only_falls_while_the_pace_is_half_of_what_was_expected() -> None:
    clock = Clock()
    job: RunningJob[JobProgress, int] = RunningJob("export", expected=300, clock=clock)
    assert job.left == "starting"
    job.begin()
    seen = []
    for second in range(601):
        clock.now = 100 + second
        # Twice as fast in the first third.
        job.tell(JobProgress("work", int(second * 2.5 if second <= 200 else 500 + (second - 200) * 1.25), 1000))
        seen.append((job.seconds_left, job.left))
    assert all(after <= before for (before, _), (after, _) in itertools.pairwise(seen))
    assert seen[0][1] == "5m left"
    assert seen[-1][1] == "5s left"
    assert list(dict.fromkeys(left for _, left in seen))[:6] == [f"{m}m left" for m in (5, 4, 3, 2)] + [
        "90s left",
        "85s left",
    ]


def test_a_job_far_slower_than_expected_corrects_itself() -> None:
    clock = Clock()
    job: RunningJob[JobProgress, int] = RunningJob("export", expected=60, clock=clock)
    job.begin()
    clock.now += 300
    job.tell(JobProgress("work", 1, 10))
    assert job.seconds_left > 270


def test_its_end_is_a_result_an_error_or_neither() -> None:
    ends = []
    for raised in (None, UserError("No."), JobCancelledError()):
        job: RunningJob[JobProgress, int] = RunningJob("export", "tickets")
        job.begin()

        def work(_: object, raised: Exception | None = raised) -> int:
            if raised is not None:
                raise raised
            return 7

        job.run(work, lambda: None)
        ends.append((job.stage, job.result, str(job.error or ""), job.state))
    assert ends == [("ended", 7, "", "done"), ("ended", None, "No.", "failed"), ("canceled", None, "", "done")]
    job.cancel()
    with pytest.raises(JobCancelledError):
        job.tell(JobProgress("work"))
