from __future__ import annotations

import pytest

from tests.cases import cases


def test_every_row_runs_and_each_failure_is_listed() -> None:
    seen = []

    @cases("number, text", [(1, "1"), (2, "two"), pytest.param(3, "drei", id="the third"), (4, "4")])
    def check(number: int, text: str) -> None:
        seen.append(number)
        assert str(number) == text

    with pytest.raises(AssertionError) as failure:
        check()  # type: ignore[call-arg]
    assert seen == [1, 2, 3, 4]
    assert "2 of 4 cases failed" in str(failure.value)
    assert "number=2, text='two'" in str(failure.value)
    assert "the third" in str(failure.value)
    assert isinstance(failure.value.__cause__, AssertionError)


def test_a_mark_of_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="belongs to the test"):
        cases("number", [1, pytest.param(2, marks=pytest.mark.long)])
