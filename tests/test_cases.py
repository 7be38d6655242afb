from __future__ import annotations

from pathlib import Path

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


def test_a_failure_of_pytest_and_an_exception_are_failures() -> None:
    @cases("fails", [True, False], ids=["by pytest", "by itself"])
    def check(fails: bool) -> None:
        if fails:
            pytest.fail("on purpose")
        raise ValueError("not on purpose")

    with pytest.raises(AssertionError, match=r"(?s)2 of 2 .*by pytest.*on purpose.*by itself.*ValueError"):
        check()  # type: ignore[call-arg]


def test_a_mark_of_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="belongs to the test"):
        cases("number", [1, pytest.param(2, marks=pytest.mark.long)])


def test_a_test_is_skipped_where_every_row_is() -> None:
    @cases("number", [1, 2])
    def check(number: int) -> None:
        pytest.skip(f"{number} is not here")

    with pytest.raises(pytest.skip.Exception, match="1 is not here"):
        check()  # type: ignore[call-arg]


@cases("name", ["first", "second"])
async def test_rows_have_directories_and_patches_of_their_own(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not list(tmp_path.iterdir())
    (tmp_path / name).touch()
    assert not hasattr(cases, "changed")
    monkeypatch.setattr(cases, "changed", True, raising=False)


@cases("left", [1, 2])
@cases("right", [3, 4])
def test_tables_multiply(left: int, right: int) -> None:
    assert left < right
