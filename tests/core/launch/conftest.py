"""Runs in a home of its own for every test, as those of the files of runs have them."""

from __future__ import annotations

from tests.core.runs.conftest import home as home
from tests.core.runs.conftest import run as run
