"""Fixtures: runs in a separate home for every test, as for the tests of run files."""

from __future__ import annotations

from tests.core.runs.conftest import home as home
from tests.core.runs.conftest import run as run
