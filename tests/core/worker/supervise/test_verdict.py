"""Verdicts on the processes of a run."""

from __future__ import annotations

from core.runs.record.state import EXIT_CODES
from core.worker.supervise.verdict import EXIT_CRASHED, EXIT_LOST, FINAL, Ended, Lost, Refused, Sign, Verdict, judge
from tests.cases import cases

TIMEOUT = 60.0


@cases(
    ("signs", "settled", "verdict"),
    [
        ([Sign(0), Sign(1)], False, None),
        ([Sign(0), Sign(1, status=0)], False, None),
        ([Sign(0, status=0), Sign(1)], False, Ended(0)),
        ([Sign(0, status=3), Sign(1, status=-9)], False, Ended(3)),
        ([Sign(0, status=5), Sign(1, status=0)], False, Ended(5)),
        ([Sign(0, status=0, following=("--parked", "x")), Sign(1)], False, Ended(0, ("--parked", "x"))),
        ([Sign(0), Sign(1, status=4, error="No.", hint="Do.")], False, Refused(1, "No.", "Do.")),
        ([Sign(0), Sign(1, status=4, error="No.", hint="Do.", pid=7)], False, Refused(1, "No.", "Do.")),
        ([Sign(0), Sign(1, status=4)], False, Lost(1, "ended with code 4")),
        ([Sign(0), Sign(1, status=-9)], False, Lost(1, "was ended by SIGKILL")),
        ([Sign(0, status=-9), Sign(1, status=EXIT_LOST)], False, Lost(0, "was ended by SIGKILL")),
        ([Sign(0, status=1), Sign(1)], False, Lost(0, "ended with code 1")),
        ([Sign(0), Sign(1, silent=61.0)], False, Lost(1, "gave no sign of life for 61 s")),
        ([Sign(0), Sign(1, silent=61.0, has_begun=False)], False, None),
        ([Sign(0), Sign(1, silent=121.0, has_begun=False)], False, Lost(1, "gave no sign of life for 121 s")),
        ([Sign(0), Sign(1, status=EXIT_LOST, has_begun=False)], False, Lost(1, "ended with code 2")),
        # Who has lost another is not lost; whose end is not known yet is waited for.
        ([Sign(0, status=EXIT_LOST), Sign(1)], False, None),
        ([Sign(0, status=EXIT_LOST), Sign(1, silent=9.0)], True, Lost(1, "gave no sign of life for 9 s")),
        (
            [Sign(0, status=EXIT_LOST), Sign(1, is_waiting=True), Sign(2)],
            True,
            Lost(2, "did not come to where the others waited for it"),
        ),
        (
            [Sign(0, status=EXIT_LOST, error="Timed out"), Sign(1, status=EXIT_LOST)],
            True,
            Lost(None, "cannot reach each other (Timed out)"),
        ),
        # The first process lives and does nothing, and all others bear witness.
        (
            [Sign(0, still=70.0, at="loop (core.worker.train)"), Sign(1, is_waiting=True, waits=66.0)],
            False,
            Lost(0, "hangs at loop (core.worker.train), where the others have waited for it for 66 s"),
        ),
        ([Sign(0, still=70.0), Sign(1, waits=64.0)], False, None),
        ([Sign(0, still=64.0), Sign(1, waits=70.0)], False, None),
        ([Sign(0, still=70.0), Sign(1, waits=70.0), Sign(2)], False, None),
        ([Sign(0, still=70.0), Sign(1, waits=70.0), Sign(2, status=0)], False, None),
        ([Sign(0, still=70.0, is_waiting=True), Sign(1, waits=70.0)], False, None),
        ([Sign(0, still=70.0, silent=6.0), Sign(1, waits=70.0)], False, None),
        ([Sign(0, still=70.0), Sign(1, waits=70.0, silent=6.0)], False, None),
        ([Sign(0, still=700.0)], False, None),
    ],
)
def test_signs_of_life_make_the_verdict(signs: list[Sign], settled: bool, verdict: Verdict | None) -> None:
    assert judge(signs, TIMEOUT, settled=settled) == verdict


def test_srun_reports_the_end_of_the_first_process_before_the_processes_it_ends() -> None:
    assert max(EXIT_LOST, EXIT_CRASHED) < min(FINAL - {EXIT_CODES["finished"]})
