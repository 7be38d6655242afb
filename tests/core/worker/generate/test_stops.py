from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from core.worker.generate.stops import StopTexts


def run(stops: list[str], pieces: list[str]) -> tuple[str, bool, list[str]]:
    stream = StopTexts(stops)
    given = [stream.push(piece) for piece in pieces]
    given.append(stream.flush())
    assert "".join(given) == stream.text
    return stream.text, stream.found, given


def test_only_what_may_be_a_beginning_is_held_back() -> None:
    stream = StopTexts(["###"])
    assert [stream.push(piece) for piece in ("a", "b#", "#", "c")] == ["a", "b", "", "##c"]
    assert run(["END", "ND"], ["a EN", "D"])[:2] == ("a ", True), "of stops that end together the longest counts"


@example(["\nUser:"], ["an answer\nUs", "eful"])
@given(st.lists(st.text("ab#", min_size=1, max_size=3), max_size=3), st.lists(st.text("ab#", max_size=4), max_size=8))
def test_it_does_not_depend_on_how_the_text_comes(stops: list[str], pieces: list[str]) -> None:
    whole = "".join(pieces)
    text, found, _ = run(stops, pieces)
    assert found is any(stop in whole for stop in stops)
    assert whole.startswith(text)
    assert not any(stop in text for stop in stops)
    assert any(whole.startswith(stop, len(text)) for stop in stops) if found else text == whole
