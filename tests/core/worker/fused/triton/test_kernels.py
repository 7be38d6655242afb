"""Triton kernels without a card: through the compiler, and under the interpreter, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.short_list import long_but

ROOT = Path(__file__).resolve().parents[5]


def run(*arguments: str, **variables: str) -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("which", long_but(["some"], ["some", "all"]))
def test_the_kernels_compile_for_the_cards(which: str) -> None:
    run("tests.core.worker.fused.triton.compiled", which)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("chosen", long_but(["not long"], ["not long", "long"]))
def test_the_kernels_match_torch(chosen: str) -> None:
    """In a process that has not imported Triton without its interpreter."""
    tests = str(Path(__file__).with_name("interpreted.py"))
    run("pytest", "-q", "-p", "no:cacheprovider", "-m", chosen, tests, TRITON_INTERPRET="1")
