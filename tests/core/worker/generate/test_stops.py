from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from core.worker.generate.stops import StopTexts
from tests.cases import cases


def run(stops: list[str], pieces: list[str]) -> tuple[str, bool, list[str]]:
    stream = StopTexts(stops)
    given = [stream.push(piece) for piece in pieces]
    given.append(stream.flush())
    assert "".join(given) == stream.text
    return stream.text, stream.found, given


@cases(
    ("stops", "pieces", "text", "found"),
    [
        ([], ["one ", "two"], "one two", False),
        (["\nUser:"], ["an answer\nUs", "er: more"], "an answer", True),
        (["\nUser:"], ["an answer\nUs", "eful"], "an answer\nUseful", False),
        (["END", "ND"], ["a EN", "D"], "a ", True),
        (["aab"], ["aa", "aab", "c"], "aa", True),
        (["x"], ["x"], "", True),
    ],
)
def test_an_answer_ends_before_the_first_of_them(stops: list[str], pieces: list[str], text: str, found: bool) -> None:
    assert run(stops, pieces)[:2] == (text, found)


def test_only_what_may_be_a_beginning_is_held_back() -> None:
    stream = StopTexts(["###"])
    assert [stream.push(piece) for piece in ("a", "b#", "#", "c")] == ["a", "b", "", "##c"]


@given(st.lists(st.text("ab#", min_size=1, max_size=3), max_size=3), st.lists(st.text("ab#", max_size=4), max_size=8))
def test_it_does_not_depend_on_how_the_text_comes(stops: list[str], pieces: list[str]) -> None:
    whole = "".join(pieces)
    text, found, _ = run(stops, pieces)
    assert found is any(stop in whole for stop in stops)
    assert whole.startswith(text)
    if not found:
        assert text == whole
    else:
        # The earliest end decides: no stop is in the text, and one follows it or has begun in it.
        assert not any(stop in text for stop in stops)
