"""Kernels under Triton's interpreter, which needs a process that has not imported Triton without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.short_list import long_but

ROOT = Path(__file__).resolve().parents[5]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("chosen", long_but(["not long"], ["not long", "long"]))
def test_the_kernels_compute_what_torch_does(chosen: str) -> None:
    pytest.importorskip("triton")
    arguments = ["-q", "-p", "no:cacheprovider", "-m", chosen, str(Path(__file__).with_name("interpreted.py"))]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
