from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.runs import series as series_module
from core.runs.series import Series

VALUES = st.one_of(
    st.floats(min_value=-1e12, max_value=1e12, allow_nan=False), st.sampled_from([math.nan, math.inf, -math.inf])
)
POINTS = st.lists(st.tuples(st.integers(1, 4), VALUES), max_size=120)


def build(points: list[tuple[int, float]], smoothing: float = 0.9) -> Series:
    """A series from (distance to the step before, value)."""
    series, step = Series(smoothing), 0
    for distance, value in points:
        step += distance
        series.append(step, value)
    return series


def same(a: list[float], b: list[float]) -> bool:
    return len(a) == len(b) and all(
        x == y or (math.isnan(x) and math.isnan(y)) or math.isclose(x, y, rel_tol=1e-6, abs_tol=1e-6)
        for x, y in zip(a, b, strict=True)
    )


def test_the_window_of_the_average_grows_with_the_points() -> None:
    series = build([(1, 5.0), (1, 5.0), (1, 5.0)])
    assert series.smoothed == pytest.approx([5.0, 5.0, 5.0])
    series = build([(1, 1.0), (1, 3.0)], smoothing=0.5)
    # The second point weighs 4/5 as long as that is more than its share of 1/2.
    assert series.smoothed[1] == pytest.approx(1.0 + 0.8 * 2.0)
    assert build([(1, 1.0), (1, 3.0)], smoothing=0.0).smoothed == [1.0, 3.0]


def test_a_short_run_is_smoothed_close_to_its_points() -> None:
    series = build([(1, 2.0 * math.exp(-step / 3) + 0.4) for step in range(12)])
    assert abs(series.smoothed[-1] - (series.last or 0.0)) < 0.2
    long = build([(1, float(step % 2)) for step in range(400)])
    assert abs(long.smoothed[-1] - 0.5) < 0.1, "where there are many points, noise is averaged out"


def test_gaps_interrupt_without_touching_bounds_or_average() -> None:
    series = build([(1, 1.0), (1, math.nan), (1, math.inf), (1, 3.0)])
    assert series.gaps == [2, 3]
    assert series.bounds() == (1.0, 3.0)
    assert math.isnan(series.smoothed[1])
    assert series.smoothed[3] == build([(1, 1.0), (1, 3.0)]).smoothed[1]
    assert [bucket.joined for bucket in series.bucket(4)] == [False, False]
    assert math.isnan(build([(1, 1.0), (1, math.nan)]).smoothed[-1])
    assert math.isnan(build([(1, 1.0), (1, math.nan)]).last or 0.0)


def test_an_empty_series_has_nothing_to_show() -> None:
    series = Series()
    assert (series.last, series.last_step, series.bounds(), series.bucket(10), series.at(3)) == (
        None,
        None,
        None,
        [],
        None,
    )
    series.truncate(0)
    series.append(4, math.nan)
    assert series.bounds() is None
    assert series.bucket(10) == []


def test_a_step_again_replaces_what_came_after() -> None:
    series = build([(1, float(step)) for step in range(10)])
    series.append(4, -1.0)
    assert series.steps == [1, 2, 3, 4]
    assert series.values == [0.0, 1.0, 2.0, -1.0]
    assert series.bounds() == (-1.0, 2.0)


def test_the_value_at_a_step_is_the_newest_not_beyond_it() -> None:
    series = build([(2, 1.0), (2, 2.0)])
    assert [series.at(step) for step in (1, 2, 3, 4, 9)] == [None, 1.0, 1.0, 2.0, 2.0]


def test_columns_lie_where_their_steps_are() -> None:
    series = build([(1, 1.0), (49, 2.0), (50, 3.0)])
    assert [(b.x, b.low, b.high, b.first, b.last) for b in series.bucket(100, 1, 100)] == [
        (0, 1.0, 1.0, 1.0, 1.0),
        (49, 2.0, 2.0, 2.0, 2.0),
        (99, 3.0, 3.0, 3.0, 3.0),
    ]
    assert [bucket.x for bucket in series.bucket(11, 0, 1000)] == [0, 1]
    assert [bucket.x for bucket in series.bucket(1)] == [0]
    assert series.bucket(0) == []
    assert [bucket.x for bucket in series.bucket(5, 50, 50)] == [0]


@given(POINTS, st.integers(1, 40), st.booleans())
def test_no_extreme_is_lost_and_none_is_invented(points: list[tuple[int, float]], width: int, smooth: bool) -> None:
    series = build(points)
    buckets = series.bucket(width, smooth=smooth)
    finite = [value for value in (series.smoothed if smooth else series.values) if math.isfinite(value)]
    assert series.bounds(smooth=smooth) == ((min(finite), max(finite)) if finite else None)
    assert bool(buckets) == bool(finite)
    if finite:
        assert min(bucket.low for bucket in buckets) == min(finite)
        assert max(bucket.high for bucket in buckets) == max(finite)
        assert buckets[0].first == finite[0]
        assert buckets[-1].last == finite[-1]
    columns = [bucket.x for bucket in buckets]
    assert columns == sorted(set(columns))
    assert all(0 <= x < width for x in columns)
    assert all(
        bucket.low <= bucket.first <= bucket.high and bucket.low <= bucket.last <= bucket.high for bucket in buckets
    )


@given(POINTS, st.integers(1, 60), st.integers(-5, 300), st.integers(0, 300))
def test_buckets_of_a_range_hold_the_points_of_the_range(
    points: list[tuple[int, float]], width: int, first: int, length: int
) -> None:
    series, last = build(points), first + length
    inside = [
        (step, value)
        for step, value in zip(series.steps, series.values, strict=True)
        if first <= step <= last and math.isfinite(value)
    ]
    expected: dict[int, list[float]] = {}
    for step, value in inside:
        x = int((step - first) * (width - 1) / length + 0.5) if length and width > 1 else 0
        expected.setdefault(x, []).append(value)
    found = {
        bucket.x: (bucket.low, bucket.high, bucket.first, bucket.last) for bucket in series.bucket(width, first, last)
    }
    assert found == {x: (min(v), max(v), v[0], v[-1]) for x, v in expected.items()}
    values = [value for _, value in inside]
    assert series.bounds(first, last) == ((min(values), max(values)) if values else None)


@given(POINTS, st.integers(0, 300), st.floats(0, 0.99))
def test_truncating_is_as_if_the_rest_had_never_come(
    points: list[tuple[int, float]], step: int, smoothing: float
) -> None:
    series = build(points, smoothing)
    series.truncate(step)
    fresh = Series(smoothing)
    total = 0
    for distance, value in points:
        total += distance
        if total < step:
            fresh.append(total, value)
    for each in (series, fresh):
        each.append(1000, 2.0)
    assert series.steps == fresh.steps
    assert series.gaps == fresh.gaps
    assert series.bounds() == fresh.bounds()
    assert same(series.smoothed[:-1], fresh.smoothed[:-1])


def test_smoothing_anew_keeps_the_points() -> None:
    series = build([(1, 1.0), (1, 3.0), (1, math.nan), (1, 4.0)])
    series.smooth(0.0)
    assert same(series.smoothed, [1.0, 3.0, math.nan, 4.0])
    assert series.gaps == [3]
    assert len(series) == 4


@given(POINTS, st.integers(3, 9), st.integers(2, 60), st.booleans())
def test_many_points_become_few_and_lose_no_extreme(
    points: list[tuple[int, float]], most: int, width: int, smooth: bool
) -> None:
    whole = build(points)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series_module, "MOST_POINTS", most)
        series = build(points)
    assert len(series) <= most
    assert series.bounds(smooth=smooth) == whole.bounds(smooth=smooth)
    assert series.last_step == whole.last_step
    assert series.steps == sorted(set(series.steps))
    assert set(series.steps) <= set(whole.steps)
    buckets = series.bucket(width, smooth=smooth)
    if buckets:
        assert (min(b.low for b in buckets), max(b.high for b in buckets)) == whole.bounds(smooth=smooth)
        assert all(b.low <= b.first <= b.high and b.low <= b.last <= b.high for b in buckets)


@given(POINTS, st.integers(3, 9), st.lists(st.integers(0, 300), max_size=4))
def test_what_is_dropped_of_few_points_stays_dropped(
    points: list[tuple[int, float]], most: int, steps: list[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series_module, "MOST_POINTS", most)
        series = build(points)
        for step in steps:
            series.truncate(step)
            assert series.last_step is None or series.last_step < step or not steps
            assert all(each < step for each in series.steps)
            assert (series.last_step is None) == (len(series) == 0)
            series.append(max(step, 1) + 1, 1.0)
            assert series.last_step == max(step, 1) + 1
            assert len(series.values) == len(series.smoothed) == len(series.steps)
            assert (series.bounds() is None) or series.bounds()[0] <= 1.0 <= series.bounds()[1]  # type: ignore[index]


def test_the_least_positive_value_is_known() -> None:
    assert build([(1, -1.0), (1, math.nan), (1, 3.0), (1, 0.5), (1, math.inf)]).least_positive() == 0.5
    assert build([(1, -1.0)]).least_positive() is None


def test_the_greatest_floats_are_smoothed() -> None:
    series = build([(1, 1.7e308), (1, -1.7e308), (1, 1.7e308), (1, 1.0)])
    assert all(map(math.isfinite, series.smoothed))
    assert series.bounds() == (-1.7e308, 1.7e308)
