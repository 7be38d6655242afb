from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from core.worker.generate.stops import StopTexts


def run(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    stream = StopTexts(stops)
    given = [stream.push(piece) for piece in pieces]
    given.append(stream.flush())
    assert "".join(given) == stream.text
    return stream.text, stream.found


def test_only_what_may_be_a_beginning_is_held_back() -> None:
    stream = StopTexts(["###"])
    assert [stream.push(piece) for piece in ("a", "b#", "#", "c")] == ["a", "b", "", "##c"]


@example(["END", "ND"], ["a EN", "D"])
@example(["\nUser:"], ["an answer\nUs", "eful"])
@given(st.lists(st.text("ab#", min_size=1, max_size=3), max_size=3), st.lists(st.text("ab#", max_size=4), max_size=8))
def test_an_answer_ends_before_the_first_stop_however_the_text_comes(stops: list[str], pieces: list[str]) -> None:
    whole = "".join(pieces)
    ends = (end for end in range(len(whole) + 1) if whole[:end].endswith(tuple(stops)))
    if (end := next(ends, None)) is None:
        assert run(stops, pieces) == (whole, False)
        return
    ending = max((stop for stop in stops if whole[:end].endswith(stop)), key=len)
    assert run(stops, pieces) == (whole[: end - len(ending)], True)
