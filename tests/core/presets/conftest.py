"""Presets are planned by the rough bound, which measures nothing: where it fits, the measured plan does."""

from __future__ import annotations

from tests.measured_here import bounded_here

__all__ = ["bounded_here"]
