"""Kernels through Triton's compiler, for which no card is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.short_list import long_but

ROOT = Path(__file__).resolve().parents[5]


@pytest.mark.slow
@pytest.mark.parametrize("which", long_but(["some"], ["some", "all"]))
def test_the_kernels_compile_for_the_cards(which: str) -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.core.worker.fused.triton.compiled", which],
        cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
