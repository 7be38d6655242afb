from __future__ import annotations

import pytest

from core.analysis.preflight import Preflight
from core.data.conversation import Example, Message
from core.errors import UserError


class Notices(list[tuple[str, str, str]]):
    """Collected notices."""

    def __call__(self, code: str, message: str, hint: str) -> None:
        self.append((code, message, hint))


def chat(question: str, answer: str = "a") -> Example:
    return Example((Message("user", question), Message("assistant", answer)))


def test_what_is_within_the_shares_goes_on() -> None:
    notices = Notices()
    preflight = Preflight((), notices)
    preflight.check_format("rows.jsonl", "")
    preflight.check_supervised(40, 4, "")
    preflight.check_supervised(0, 0, "")
    preflight.check_stop(40, 20)
    preflight.check_stop(0, 0)
    preflight.check_leak([chat("a")], [])
    preflight.check_leak([chat("a")], [chat("b")])
    assert notices == []


def test_a_small_leak_is_reported() -> None:
    notices = Notices()
    held_out = [chat(f"question {number}") for number in range(20)]
    Preflight((), notices).check_leak([chat("Question  3"), chat("else")], held_out)
    ((code, message, _),) = notices
    assert code == "eval_leak"
    assert message == "1 of 20 held-out rows are also trained on."
    with pytest.raises(UserError, match=r"2 of 20 held-out rows \(10%\)"):
        Preflight().check_leak([chat("question 3"), chat("question 4")], held_out)
