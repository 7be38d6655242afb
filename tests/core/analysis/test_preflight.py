from __future__ import annotations

import pytest

from core.analysis.preflight import Preflight
from core.config.choices import RefusalCode
from core.data.conversation import Example, Message
from core.errors import UserError


class Notices(list[tuple[str, str, str]]):
    """Collected notices."""

    def __call__(self, code: str, message: str, hint: str) -> None:
        self.append((code, message, hint))


def chat(question: str, answer: str = "a") -> Example:
    return Example((Message("user", question), Message("assistant", answer)))


def refusal(preflight: Preflight, *arguments: object, check: str) -> UserError:
    with pytest.raises(UserError) as caught:
        getattr(preflight, check)(*arguments)
    return caught.value


def test_what_is_refused_names_the_key_and_the_code() -> None:
    cases: dict[str, tuple[tuple[object, ...], str]] = {
        "format_ambiguous": (("rows.jsonl", "The rows have two sets of columns."), "check_format"),
        "template_missing": (("some-base",), "check_template"),
        "nothing_supervised": ((40, 5, "rows.jsonl, line 3: No token of the row is learned."), "check_supervised"),
        "stop_untrained": ((40, 19), "check_stop"),
        "eval_leak": (([chat("q")], [chat("Q "), chat("other")]), "check_leak"),
    }
    keys = {
        "format_ambiguous": "data.format",
        "template_missing": "template.name",
        "nothing_supervised": "data.supervise",
        "stop_untrained": "train.max_length",
        "eval_leak": "data.eval",
    }
    for code, (arguments, check) in cases.items():
        error = refusal(Preflight(), *arguments, check=check)
        assert keys[code] in error.hint
        assert f"--allow {code}" in error.hint
        assert error.message.endswith(".")

        notices = Notices()
        wanted: list[RefusalCode] = [code]  # type: ignore[list-item]
        getattr(Preflight(wanted, notices), check)(*arguments)
        ((told, message, _),) = notices
        assert (told, message) == (code, error.message)


def test_one_code_allows_nothing_else() -> None:
    preflight = Preflight(["eval_leak"])
    assert "stop" in refusal(preflight, 10, 0, check="check_stop").message


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


def test_a_small_leak_is_told() -> None:
    notices = Notices()
    held_out = [chat(f"question {number}") for number in range(20)]
    Preflight((), notices).check_leak([chat("Question  3"), chat("else")], held_out)
    ((code, message, _),) = notices
    assert code == "eval_leak"
    assert message == "1 of 20 held-out rows are also trained on."
    error = refusal(Preflight(), [chat("question 3"), chat("question 4")], held_out, check="check_leak")
    assert "2 of 20 held-out rows (10%)" in error.message
