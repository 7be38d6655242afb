"""Modules of these tests, each in a process of its own that has llama.cpp and the converter."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from core.launch.launcher import worker_environment
from core.worker.export.gguf.converter import find_converter
from tests.forking import Forks


def lines_of(forks: Forks, name: str, *arguments: str, standard_input: str = "", seconds: float = 500) -> list[Any]:
    """Run a module of this package, and read the JSON lines that it prints.

    Args:
        forks: The fixture.
        name: Its name.
        arguments: Of its command line.
        standard_input: Its standard input.
        seconds: The longest that it may take.
    """
    done = forks.run(
        [sys.executable, "-m", f"{__package__}.{name}", *arguments],
        seconds,
        standard_input,
        env=worker_environment() | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=Path(__file__).parents[5],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def converter_in(home: Path) -> str:
    """The directory of the converter in a home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALTUNE_HOME", str(home))
        return str(find_converter())
