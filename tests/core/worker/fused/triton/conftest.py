from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

pytest.importorskip("triton")

NAMES = ("rms_norm", "gated", "rotary")
PACKAGE = "core.worker.fused.triton"


@pytest.fixture(scope="session")
def interpreted() -> Iterator[dict[str, ModuleType]]:
    """The modules of kernels, run by Triton's interpreter on the CPU: it decides so when a kernel is defined."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TRITON_INTERPRET", "1")
    names = [f"{PACKAGE}.{name}" for name in NAMES]
    for name in names:
        sys.modules.pop(name, None)
    yield {name: importlib.import_module(f"{PACKAGE}.{name}") for name in NAMES}
    patch.undo()
    for name in names:
        sys.modules.pop(name, None)
