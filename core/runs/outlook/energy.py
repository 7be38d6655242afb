"""Energy of a run and its cost, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.text import one_line
from core.units import format_fixed

#: Least cost that is shown as a figure.
_LEAST = 0.01
#: Most characters of a currency that are shown.
_CURRENCY = 8


@dataclass(frozen=True)
class Tariff:
    """The price of electricity.

    Args:
        per_kwh: Price of a kilowatt-hour; None if unknown, and no cost is shown.
        currency: The currency, as it is shown after a sum.
    """

    per_kwh: float | None = None
    currency: str = ""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Tariff:
        """The tariff of a configuration.

        Args:
            values: ``section.key`` to value, unchecked, as in ``run.toml``.
        """
        price: Any = values.get("hardware.tariff")
        currency = values.get("hardware.currency")
        known = float(price) if type(price) in (int, float) and 0 <= price < math.inf else None
        return cls(known, currency if isinstance(currency, str) else "")

    def cost(self, energy_wh: float | None) -> float | None:
        """Cost of an energy in Wh; None if the energy or the price is unknown."""
        return None if self.per_kwh is None or energy_wh is None else energy_wh / 1000 * self.per_kwh

    def words(self, energy_wh: float | None) -> str:
        """Cost of an energy in Wh, ``0.42 EUR``, ``< 0.01 EUR``; empty if unknown."""
        cost = self.cost(energy_wh)
        if cost is None or not math.isfinite(cost):
            return ""
        figure = f"< {_LEAST}" if 0 < cost < _LEAST else format_fixed(cost, 2)
        return f"{figure} {one_line(self.currency, _CURRENCY)}".rstrip()


def energy_words(energy_wh: float | None, tariff: Tariff) -> list[str]:
    """An energy and its cost, ``1.9 Wh`` and ``0.42 EUR``; unknown figures are left out.

    Args:
        energy_wh: The energy in Wh.
        tariff: The price.
    """
    if energy_wh is None:
        return []
    return [text for text in (f"{format_fixed(energy_wh, 1)} Wh", tariff.words(energy_wh)) if text]


def expected_energy(watt_hours: float | None, *, is_most: bool = False) -> str:
    """An estimated energy: ``4.1 Wh``, ``at most 41 Wh``; empty if unknown.

    Args:
        watt_hours: The energy.
        is_most: Whether it is an upper bound.
    """
    if watt_hours is None:
        return ""
    return f"{'at most ' if is_most else ''}{watt_hours:.{1 if watt_hours < 9.95 else 0}f} Wh"
