"""Energy and power of the processor packages, by the kernel's counters (RAPL).

Root alone may read them since Linux 5.10 (CVE-2020-8694: they tell much about what other programs compute).
"""

from __future__ import annotations

import time
from pathlib import Path

#: The directory of the counters.
POWERCAP = Path("/sys/class/powercap")
#: Seconds between two readings below which power is not computed: the counter is renewed every millisecond.
_SHORTEST_SPAN = 0.05


class Rapl:
    """Energy of the processor packages by RAPL; None where there are no counters, or they
    may not be read.

    Args:
        root: The directory of the counters.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        self._packages = [
            path for path in sorted(root.glob("intel-rapl:*")) if _read(path / "name").startswith("package")
        ]
        self._ranges = {path: _whole(path / "max_energy_range_uj") for path in self._packages}
        self._before: dict[Path, int] = {}
        self._moment = 0.0
        self.energy_j: float | None = None
        """Joules since the first reading; None where the counters cannot be read."""
        self.power_w: float | None = None
        """Mean power since the reading before; None at the first."""

    def read(self, moment: float | None = None) -> None:
        """Read the counters.

        Args:
            moment: Seconds on a clock that is not set; None: now.
        """
        now = time.monotonic() if moment is None else moment
        counts = {path: count for path in self._packages if (count := _whole(path / "energy_uj")) is not None}
        if not counts or (self._before and now - self._moment < _SHORTEST_SPAN):
            self.energy_j = self.energy_j if counts else None
            self.power_w = self.power_w if counts else None
            return
        if self._before:
            used = sum(self._used(path, count) for path, count in counts.items()) / 1e6
            self.energy_j = (self.energy_j or 0.0) + used
            self.power_w = round(used / (now - self._moment), 1)
        else:
            self.energy_j = 0.0
        self._before, self._moment = counts, now

    def _used(self, path: Path, count: int) -> int:
        before = self._before.get(path, count)
        # The counter starts again at its end, every few minutes under load.
        return count - before if count >= before else count - before + (self._ranges[path] or before - count)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _whole(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text.isdecimal() else None
