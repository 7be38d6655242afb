"""Times and energies of a night, as text."""

from __future__ import annotations

import time

from core.units import format_fixed, format_moment

#: Unix seconds beyond which no time is told: the year 9999.
_FAR = 253_370_764_800.0


def day_time(moment: float) -> str:
    """A time in the hours to come: ``06:40``, on another day than the next one ``Sat 06:40``; a begun minute counts
    whole, as an end that is told must not lie before the true one."""
    if not -_FAR < moment < _FAR:
        return "a day that is far off"
    moment = -(-moment // 60) * 60
    return format_moment(moment, "%H:%M" if moment - time.time() < 20 * 3600 else "%a %H:%M", "--:--")


def energy(kwh: float) -> str:
    """An energy: ``0.82 kWh``."""
    return f"{format_fixed(kwh, 2 if kwh < 10 else 0)} kWh"
