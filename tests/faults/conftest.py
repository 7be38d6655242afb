"""Workers for the faults, and one undisturbed run that others are compared with."""

from __future__ import annotations

from tests.e2e.conftest import reference as reference
from tests.e2e.conftest import workers as workers
