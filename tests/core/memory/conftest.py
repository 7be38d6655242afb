"""Plans are by the rough bound, and in slow tests by measurements within the tests' process."""

from __future__ import annotations

from tests.measured_here import bounded_here, measured_here

__all__ = ["bounded_here", "measured_here"]
