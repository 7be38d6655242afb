from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from core import units
from core.units import exact_number, format_number
from tests.cases import cases, tables

#: Numbers of so many digits that a float cannot hold them.
HUGE = [("short_count", 10**400, "1000000 B"), ("format_number", 10**400, "∞"), ("parse_bytes", "9" * 400 + "PB", None)]


@cases(
    ("function", "value", "shown"),
    [*((name, *row) for name, rows in tables(__file__).items() for row in rows), *HUGE],
    ids=lambda value: str(value)[:20],
)
def test_values_are_shown_and_sizes_read(function: str, value: object, shown: object) -> None:
    assert getattr(units, function)(value) == shown


def test_fixed_digits_moments_and_large_counts() -> None:
    shown = [units.format_fixed(value, 1) for value in (0.825, 1e300, None)]
    assert shown == ["0.8", "1.0e300", "–"]
    assert units.format_moment(1e18, "%Y") == "–"
    assert len(units.format_count(10**400)) == 534


@given(st.floats(min_value=-1e300, max_value=1e300), st.integers(2, 6))
def test_a_number_reads_as_its_value(value: float, digits: int) -> None:
    text = format_number(value, digits)
    assert math.isclose(float(text), value, rel_tol=0.5 * 10 ** (2 - digits) + 1e-9, abs_tol=1e-320)


@given(st.floats(allow_nan=False))
def test_a_number_of_a_configuration_loses_no_digit(value: float) -> None:
    assert float(exact_number(value)) == value


ANY_NUMBER = st.floats() | st.integers(-(10**400), 10**400) | st.sampled_from([10**400, -(10**400), 1e308, 5e-324])


@given(ANY_NUMBER, st.integers(0, 6))
def test_any_number_is_shown_in_a_few_characters(value: float, digits: int) -> None:
    functions = (units.format_bytes, units.format_duration, format_number, units.format_rate, exact_number)
    shown = [*(function(value) for function in functions), units.format_fixed(value, digits),
             units.format_moment(value, "%Y-%m-%d")]  # fmt: skip
    assert all(0 < len(text) < 30 for text in shown), shown
