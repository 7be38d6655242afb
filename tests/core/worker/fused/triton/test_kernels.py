"""Triton kernels without a card: through the compiler, and under the interpreter, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forking import Forks
from tests.short_list import long_but

ROOT = Path(__file__).resolve().parents[5]


@pytest.mark.slow
@pytest.mark.parametrize("which", long_but(["some"], ["some", "all"]))
def test_the_kernels_compile_for_the_cards(which: str, forks: Forks) -> None:
    pytest.importorskip("triton")
    done = forks.run([sys.executable, "-m", "tests.core.worker.fused.triton.compiled", which], cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("chosen", long_but(["not long"], ["not long", "long"]))
def test_the_kernels_match_torch(chosen: str) -> None:
    """In a process that has not imported Triton without its interpreter."""
    pytest.importorskip("triton")
    tests = str(Path(__file__).with_name("interpreted.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", chosen, tests]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
