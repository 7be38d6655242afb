from __future__ import annotations

import math
import random
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.runs.record import series as series_module
from core.runs.record.series import Series
from tests.cases import cases

VALUES = st.one_of(
    st.floats(min_value=-1e12, max_value=1e12, allow_nan=False), st.sampled_from([math.nan, math.inf, -math.inf])
)
POINTS = st.lists(st.tuples(st.integers(1, 4), VALUES), max_size=120)


def build(points: list[tuple[int, float]]) -> Series:
    """A series from (distance to the step before, value)."""
    series, step = Series(), 0
    for distance, value in points:
        step += distance
        series.append(step, value)
    return series


def curve(count: int) -> list[float]:
    """A loss without noise, at steps from 1 on: steep, then flat."""
    return [2.0 * math.exp(-step / (count / 8)) + 0.4 for step in range(count)]


def noisy(count: int, seed: int, noise: float = 0.1) -> Series:
    """The same with noise on it."""
    source = random.Random(seed)
    return build([(1, value + source.gauss(0, noise)) for value in curve(count)])


def smoothed(series: Series) -> list[float]:
    """The smoothed curve at every step of a series whose steps are 1, 2, 3 and so on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series_module, "SMOOTH_COLUMNS", len(series))
        return [bucket.last for bucket in series.smooth_bucket(len(series), 1, len(series))]


def error(values: list[float], wanted: list[float]) -> float:
    """Root of the mean square of the difference."""
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(values, wanted, strict=True)) / len(wanted))


@cases(("count", "part"), [(30, 0.8), (60, 0.6), (120, 0.5), (1000, 0.25)])
def test_a_smoothed_curve_is_nearer_to_the_truth_than_its_points_and_does_not_lag(count: int, part: float) -> None:
    truth, errors, lags, ends = curve(count), [], [], []
    for seed in range(10):
        series = noisy(count, seed)
        found = smoothed(series)
        errors.append(error(found, truth) / error(list(series.values), truth))
        lags.append(sum(found) - sum(truth))
        ends.append(found[-1] - truth[-1])
    assert max(errors) < 1.0
    assert sum(errors) / 10 < part
    # Where it lags, it lies above a falling curve, at the end as well.
    assert abs(sum(lags) / 10 / count) < 0.01
    assert abs(sum(ends) / 10) < 0.05


def test_without_noise_a_straight_line_stays_what_it_is() -> None:
    series = build([(1, 5.0 - step / 50) for step in range(200)])
    assert smoothed(series) == pytest.approx(list(series.values))


def test_a_short_run_is_not_smoothed() -> None:
    for count in (1, 2, 29):
        series = noisy(count, 1)
        assert series.smooth_bucket(50, 1, 40) == series.bucket(50, 1, 40)
        assert not series.is_smoothed
    assert noisy(30, 1).is_smoothed


def test_the_picture_of_what_is_done_stays_as_the_run_goes_on() -> None:
    series = noisy(600, 3)
    before = smoothed(series)
    changed = 0
    for step in range(601, 621):
        series.append(step, 0.4)
        now = smoothed(series)
        changed += error(now[:450], before[:450]) > 1e-12
        before = now[: len(before)] + now[len(before) :]
    assert changed <= 1


def test_a_wide_chart_of_a_long_run_has_a_bucket_in_every_few_columns() -> None:
    series = noisy(2000, 5)
    buckets = series.smooth_bucket(380, 1, 2000)
    assert len(buckets) == series_module.SMOOTH_COLUMNS
    assert (buckets[0].x, buckets[-1].x) == (0, 379)
    assert all(bucket.joined for bucket in buckets[1:])
    truth = curve(2000)
    assert all(abs(bucket.last - truth[round(bucket.x * 1999 / 379)]) < 0.1 for bucket in buckets[5:])


def test_gaps_interrupt_without_touching_bounds_or_average() -> None:
    series = build([(1, 1.0), (1, math.nan), (1, math.inf), (1, 3.0)])
    assert list(series.gaps) == [2, 3]
    assert series.bounds() == (1.0, 3.0)
    assert [bucket.joined for bucket in series.bucket(4)] == [False, False]
    assert math.isnan(build([(1, 1.0), (1, math.nan)]).last or 0.0)
    assert (series.mean(), series.mean(1, 2), series.mean(2, 2)) == (2.0, 1.0, None)


def test_the_value_at_a_step_is_the_newest_not_beyond_it() -> None:
    series = build([(2, 1.0), (2, 2.0)])
    assert [series.at(step) for step in (1, 2, 3, 4, 9)] == [None, 1.0, 1.0, 2.0, 2.0]
    series = Series()
    assert (series.last, series.last_step, series.mean(), series.at(3)) == (None,) * 4


@given(POINTS, st.integers(1, 60), st.integers(-5, 300), st.integers(0, 300))
def test_buckets_hold_their_points(points: list[tuple[int, float]], width: int, first: int, length: int) -> None:
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


@given(POINTS, st.integers(1, 60))
def test_the_smoothed_curve_is_broken_where_the_curve_is(points: list[tuple[int, float]], width: int) -> None:
    series = build(points)
    smooth, plain = series.smooth_bucket(width), series.bucket(width)
    assert [(bucket.x, bucket.joined) for bucket in smooth] == [(bucket.x, bucket.joined) for bucket in plain]
    assert all(math.isfinite(value) for bucket in smooth for value in bucket[1:5])


@given(POINTS, st.integers(0, 300))
def test_truncating_is_as_if_the_rest_had_never_come(points: list[tuple[int, float]], step: int) -> None:
    series = build(points)
    series.truncate(step)
    fresh = Series()
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
    assert series.mean() == fresh.mean()


@given(POINTS, st.integers(3, 9), st.integers(2, 60))
def test_many_points_become_few_and_lose_no_extreme(points: list[tuple[int, float]], most: int, width: int) -> None:
    whole = build(points)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series_module, "MOST_POINTS", most)
        series = build(points)
    assert len(series) <= most
    assert series.bounds() == whole.bounds()
    assert series.last_step == whole.last_step
    assert (series.mean() is None) == (whole.mean() is None)
    assert series.mean() is None or series.mean() == pytest.approx(whole.mean(), rel=1e-6, abs=1.0)
    assert list(series.steps) == sorted(set(series.steps))
    assert set(series.steps) <= set(whole.steps)
    buckets = series.bucket(width)
    if buckets:
        assert (min(b.low for b in buckets), max(b.high for b in buckets)) == whole.bounds()
        assert all(b.low <= b.first <= b.high and b.low <= b.last <= b.high for b in buckets)


@given(POINTS, st.integers(3, 9), st.lists(st.integers(0, 300), max_size=4))
def test_truncated_points_stay_dropped(points: list[tuple[int, float]], most: int, steps: list[int]) -> None:
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
            assert len(series.values) == len(series.steps)
            assert (series.bounds() is None) or series.bounds()[0] <= 1.0 <= series.bounds()[1]  # type: ignore[index]


def test_the_greatest_floats_are_smoothed() -> None:
    series = build([(1, 1.7e308), (1, -1.7e308), (1, 1.7e308), (1, 1.0)] * 20)
    assert all(map(math.isfinite, smoothed(series)))
    assert series.bounds() == (-1.7e308, 1.7e308)


@given(st.lists(st.tuples(st.integers(0, 2), VALUES), max_size=120), st.integers(3, 9))
def test_measurements_of_a_step_become_one_point(points: list[tuple[int, float]], most: int) -> None:
    series, step = Series(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series_module, "MOST_POINTS", most)
        for distance, value in points:
            step += distance
            series.gather(step, value)
    assert len(series) <= most
    assert list(series.steps) == sorted(set(series.steps))
    finite = [value for _, value in points if math.isfinite(value)]
    assert series.bounds() == ((min(finite), max(finite)) if finite else None)
    assert series.last_step == (step if points else None)
    assert sum(series._counts) == len(finite)


def test_steps_beyond_64_bits_are_kept_within() -> None:
    series = build([(1 << 70, 1.0), (1, 2.0)])
    assert list(series.steps) == [(1 << 63) - 1]
    assert list(series.values) == [2.0]


@given(POINTS, st.integers(0, 100), st.integers(0, 100))
def test_the_least_positive_value_of_a_range(points: list[tuple[int, float]], first: int, length: int) -> None:
    series = build(points)
    inside = [v for s, v in zip(series.steps, series.values, strict=True) if first <= s <= first + length]
    positive = [value for value in inside if 0 < value < math.inf]
    assert series.least_positive(first, first + length) == min(positive, default=None)


@pytest.mark.long
def test_a_curve_of_a_million_steps_takes_some_megabytes() -> None:
    series = Series()
    for step in range(1_000_000):
        series.append(step, 1.0 + step % 7)
    kept = [*vars(series).values(), *vars(series._extremes).values()]
    assert sum(each.itemsize * len(each) for each in kept if isinstance(each, array)) < 5_000_000
    assert not any(isinstance(each, list) for each in kept)
