"""A fake driver library, and a process that reads it through the real bindings."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Ask = Callable[..., Any]
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a fake ``libnvidia-ml.so.1``."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("not run: there is no C compiler to build the fake driver library with")
    directory = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("fake_nvml.c")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", directory / "libnvidia-ml.so.1", source],
        check=True,
    )
    return directory


@pytest.fixture
def ask_driver(fake_driver: Path) -> Ask:
    """Run a program in a process of its own that has the fake driver; its last line of output, as JSON."""

    def ask(program: str, mode: str = "") -> Any:
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(fake_driver),
            "FAKE_NVML": mode,
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return ask
