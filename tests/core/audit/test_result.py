from __future__ import annotations

from core.audit.result import Audit, ChainResult, Outcome, SpanResult, Verdict
from tests.cases import cases


def audit(*outcomes: Outcome, complete: bool = True) -> Audit:
    spans = tuple(SpanResult(begin=place, end=place + 1, outcome=outcome) for place, outcome in enumerate(outcomes))
    chain = ChainResult(head="f00d", links=3)
    return Audit(run="r", chain=chain, inputs=(), spans=spans, notes=(), seed=7, seconds=3.0, complete=complete)


@cases(
    ("outcomes", "verdict"),
    [
        (("equal", "equal"), "verified"),
        (("equal", "skipped"), "unproven"),
        (("equal", "inexact"), "unproven"),
        (("inexact", "differs"), "differs"),
        ((), "unproven"),
    ],
)
def test_only_what_was_all_equal_is_verified(outcomes: tuple[Outcome, ...], verdict: Verdict) -> None:
    assert audit(*outcomes).verdict == verdict


def test_a_part_of_a_run_does_not_verify_the_whole() -> None:
    assert audit("equal", complete=False).verdict == "unproven"
