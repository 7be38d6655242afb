"""Models are measured within the tests' process."""

from __future__ import annotations

from tests.measured_here import measured_here

__all__ = ["measured_here"]
