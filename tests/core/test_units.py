from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from core import units
from core.units import exact_number, format_number
from tests.cases import cases

SHOWN: dict[Callable[[Any], object], dict[object, object]] = {
    units.format_bytes: {
        None: "–", 0: "0 B", 999: "999 B", 1000: "1.0 kB", 39_000_000: "39.0 MB", 99_960_000: "100 MB",
        999_999: "1.0 MB", 24_000_000_000: "24.0 GB", 5 * 10**17: "500 PB", 5 * 10**18: "5000 PB", -1500: "-1.5 kB",
        math.inf: "∞ PB", 1e30: "1.0e15 PB", -2e15: "-2.0 PB",
    },
    units.short_count: {
        None: "–", 0: "0", 999: "999", 94_016: "94 k", 999_600: "1.0 M", 134_515_008: "135 M", 999_950_000: "1.0 B",
        7_615_616_512: "7.6 B", 70_553_706_496: "71 B", 10**400: "1000000 B",
    },
    units.format_count: {
        1_234_567: "1,234,567", 1234.6: "1,235", (1 << 60) + 1: "1,152,921,504,606,846,977",
    },
    units.format_duration: {
        None: "–", math.nan: "–", math.inf: "–", -1: "–", 0: "0.0s", 8.24: "8.2s", 9.97: "10s", 59.7: "1m 00s",
        72: "1m 12s", 3599.6: "1h 00m", 11_040: "3h 04m", 190_800: "2d 05h", 1e300: "–",
    },
    units.format_number: {
        None: "–", math.nan: "NaN", math.inf: "∞", -math.inf: "-∞", 0.0: "0", 0.412: "0.412", 0.9996: "1.00",
        9.996: "10.0", 2.4: "2.40", 83.0: "83.0", 1234.5: "1234", 999_999.7: "1.0e6", 8.1e-4: "8.1e-4",
        -8.1e-4: "-8.1e-4", 0.001: "0.00100", 1e9: "1.0e9", 5e-324: "4.9e-324", 10**400: "∞",
    },
    units.format_rate: {
        None: "–", math.nan: "–", 317.8: "318 tok/s", 12_345.6: "12,346 tok/s", 1e20: "1.0e20 tok/s",
    },
    units.parse_bytes: {
        "24GB": 24_000_000_000, "24 gb": 24_000_000_000, "24g": 24_000_000_000, "24GiB": 24 << 30,
        "22.5GiB": 45 << 29, "512": 512, "512B": 512, "1.5k": 1500, "": None, "GB": None, "-1GB": None, "1e9": None,
        "24iB": None, "24 GB free": None, "24\nGB\x1b": None, "9" * 400 + "PB": None,
    },
    units.exact_number: {
        1e-4: "1e-4", 2.5e-4: "2.5e-4", -5e-5: "-5e-5", 0.000123456789: "1.23456789e-4", 1e-3: "0.001", 0.02: "0.02",
        0.0: "0", 2.0: "2", 0.1 + 0.2: "0.30000000000000004", 1e-300: "1e-300", math.inf: "inf",
    },
}  # fmt: skip


@cases(
    ("function", "value", "shown"),
    [(function, value, shown) for function, table in SHOWN.items() for value, shown in table.items()],
    ids=lambda value: getattr(value, "__name__", str(value)[:20]),
)
def test_values_are_shown_and_sizes_read(function: Callable[[object], object], value: object, shown: object) -> None:
    assert function(value) == shown


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
