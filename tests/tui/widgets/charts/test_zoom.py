"""The part of the axis of steps that is shown: always on the axis, where the cursor or the newest step is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tui.widgets.charts.line_chart import FEWEST, Zoom
from tui.widgets.charts.plot_geometry import Scale

WHOLE = Scale(1.0, 1001.0)
#: What keys do: zoom, pan, and hold a step in sight.
KEYS = st.lists(st.tuples(st.sampled_from("+-<>h"), st.integers(-50, 2000)), max_size=30)


def press(zoom: Zoom, key: str, step: int, whole: Scale, newest: float) -> Zoom:
    if key in "+-":
        return zoom.scaled(0.5 if key == "+" else 2.0, whole, newest, step if step > 0 else None)
    if key in "<>":
        return zoom.panned(-1 if key == "<" else 1, whole, newest)
    return zoom.holding(min(max(step, whole.low), newest), whole, newest)


@given(KEYS, st.integers(0, 5), st.integers(1, 10**6), st.floats(0, 1))
def test_whatever_is_pressed_the_part_is_on_the_axis(
    keys: list[tuple[str, int]], low: int, length: int, done: float
) -> None:
    whole, zoom = Scale(float(low), float(low + length)), Zoom()
    newest = float(low + round(length * done))
    for key, step in keys:
        zoom = press(zoom, key, step, whole, newest)
        window = zoom.window(whole, newest)
        assert whole.low <= window.low < window.high <= whole.high
        assert window.high - window.low >= min(FEWEST, length)
        assert (window.low, window.high) == (int(window.low), int(window.high))
        if key == "h":
            assert window.low <= min(max(step, whole.low), newest) <= window.high


@given(st.integers(1, 1001), st.integers(1, 5))
def test_the_cursor_stays_where_it_is(step: int, times: int) -> None:
    zoom = Zoom()
    for _ in range(times):
        before = zoom.window(WHOLE, 1001)
        zoom = zoom.scaled(0.5, WHOLE, 1001, step)
        window = zoom.window(WHOLE, 1001)
        shares = [(step - each.low) / (each.high - each.low) for each in (before, window)]
        # Steps are whole.
        assert abs(shares[0] - shares[1]) <= 1 / (window.high - window.low)


def test_without_a_cursor_the_newest_steps_are_shown_and_followed_in_jumps() -> None:
    zoom = Zoom().scaled(0.5, WHOLE, 700).scaled(0.5, WHOLE, 700)
    windows = [zoom.window(WHOLE, newest) for newest in range(700, 801)]
    assert all(window.low <= newest <= window.high for newest, window in zip(range(700, 801), windows, strict=True))
    assert len(set(windows)) <= 5
    assert all(window.high - window.low == 250 for window in windows)


def test_panning_back_stands_still_and_panning_on_follows_again() -> None:
    zoom = Zoom(200.0)
    back = zoom.panned(-1, WHOLE, 600).panned(-1, WHOLE, 600)
    assert back.window(WHOLE, 600) == back.window(WHOLE, 900)
    assert back.window(WHOLE, 600).high == 500
    assert back.panned(1, WHOLE, 600).panned(1, WHOLE, 600) == zoom
    assert Zoom().panned(-1, WHOLE, 600) == Zoom(), "where all is shown there is nothing to pan"


def test_zooming_out_ends_with_all_steps() -> None:
    zoom = Zoom(16.0, 300.0)
    for _ in range(6):
        zoom = zoom.scaled(2.0, WHOLE, 600, 290)
    assert zoom == Zoom()
    short = Scale(1.0, 5.0)
    assert Zoom().scaled(0.5, short, 5) == Zoom(), "few steps are always shown whole"
