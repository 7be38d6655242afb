"""A fake driver library, and a process that reads it through the real bindings."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_for

Ask = Callable[..., Any]
ROOT = Path(__file__).parents[3]
#: A sampler that prints its readings when a line is written to it.
_SAMPLER = """
import json, sys
from core.hardware import nvml
nvml.REOPEN_SECONDS = nvml.SLOW_SECONDS = 0.0
from core.hardware import sampler as module
module.DEADLINE_SECONDS = 0.2
sampler = module.Sampler(1000.0)
for line in sys.stdin:
    devices = sampler.refresh(float(line))
    print(json.dumps([[device.to_dict() for device in devices], sampler.host() is not None]), flush=True)
"""


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a fake ``libnvidia-ml.so.1``."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("not run: there is no C compiler to build the fake driver library with")
    directory = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("fake_nvml.c")
    name = "libnvidia-ml.so.1"
    options = ("-shared", "-fPIC", f"-Wl,-soname,{name}", "-Wall", "-Wextra", "-Werror")
    subprocess.run([compiler, *options, "-o", directory / name, source], check=True)
    return directory


def with_driver(directory: Path, mode: str = "", scenario: Path | None = None) -> dict[str, str]:
    """The environment of a process that has the fake driver."""
    said = {} if scenario is None else {"FAKE_NVML_FILE": str(scenario)}
    paths = {"LD_LIBRARY_PATH": str(directory), "FAKE_NVML": mode, "PYTHONPATH": str(ROOT)}
    return {**os.environ, **paths, **said}


@pytest.fixture
def ask_driver(fake_driver: Path) -> Ask:
    """Run a program in a process of its own that has the fake driver; its last line of output, as JSON."""

    def ask(program: str, mode: str = "", scenario: Path | None = None) -> Any:
        command, environment = [sys.executable, "-c", program], with_driver(fake_driver, mode, scenario)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return ask


class Scene:
    """A sampler in a process of its own, on a fake driver whose state a test changes.

    Args:
        process: The process.
        path: The file of the driver's state.
    """

    def __init__(self, process: subprocess.Popen[str], path: Path) -> None:
        self._process, self._path = process, path
        self.has_host = False

    def read(self, timeout: float = 20.0, **values: object) -> list[dict[str, Any]]:
        """Set the state, at once and whole, and read all devices, waiting so many seconds at most."""
        part = self._path.with_suffix(".part")
        part.write_text("".join(f"{key}={value}\n" for key, value in values.items()), encoding="ascii")
        part.replace(self._path)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(timeout, file=self._process.stdin, flush=True)
        devices, self.has_host = json.loads(self._process.stdout.readline())
        return devices  # type: ignore[no-any-return]

    def read_until(self, condition: Callable[[list[dict[str, Any]]], bool], **values: object) -> list[dict[str, Any]]:
        """Set the state and read until a condition holds."""
        found: list[list[dict[str, Any]]] = []

        def holds() -> bool:
            found.append(self.read(1.0, **values))
            return condition(found[-1])

        wait_for(holds, 20.0, "what the driver was set to")
        return found[-1]


@pytest.fixture
def scene(fake_driver: Path, tmp_path: Path) -> Iterator[Scene]:
    """A sampler in a process of its own, on a driver whose state can be changed."""
    command, path, pipe = [sys.executable, "-c", _SAMPLER], tmp_path / "driver.txt", subprocess.PIPE
    environment = with_driver(fake_driver, "", path)
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield Scene(process, path)
        finally:
            process.kill()
