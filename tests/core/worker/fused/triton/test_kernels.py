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
#: Architectures of the A100, RTX 3090, 4090, H100, RTX 5090 and RX 7900.
CARDS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_120", "gfx1100")
#: Few launches, for an RTX 4090, and for a 5090, which has an assembler of its own.
SHORT = "short sm_89 sm_120"


@pytest.mark.slow
@pytest.mark.parametrize("what", long_but([SHORT], [SHORT, *(f"all {card}" for card in CARDS)]))
def test_the_kernels_compile_for_the_cards_without_spills(what: str, forks: Forks) -> None:
    pytest.importorskip("triton")
    done = forks.run(
        [sys.executable, "-m", "tests.core.worker.fused.triton.compiled", *what.split()], timeout=590, cwd=ROOT
    )
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
