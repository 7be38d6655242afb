from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.families.tiny import write_family


@pytest.fixture(scope="session")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a tiny model of a family, once in a process; nobody writes to it."""
    folder = tmp_path_factory.mktemp("families")
    return functools.cache(lambda name: write_family(name, folder / name))
