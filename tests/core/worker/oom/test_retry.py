from __future__ import annotations

import builtins
import ctypes
import gc
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from core.worker.oom.retry import MemoryShortageError, attempt, is_out_of_memory, shortage_explained
from tests.cases import cases


@cases(
    ("kind", "message", "is_shortage"),
    yaml.safe_load((Path(__file__).parent / "errors.yaml").read_text(encoding="utf-8")),
)
def test_errors_that_count_as_running_out_of_memory(kind: str, message: str, is_shortage: bool) -> None:
    error = (getattr(builtins, kind, None) or getattr(torch, kind))(message)
    assert is_out_of_memory(error) is is_shortage


def test_errors_of_the_cpu_allocator_and_a_null_pointer_to_managed_memory_are_recognized() -> None:
    tried = attempt(lambda: torch.empty(1 << 60))
    assert (tried.failed, tried.result) == (True, None)
    # As in bitsandbytes, which wraps the pointer from its library.
    pointer = ctypes.cast(ctypes.c_void_p(None), ctypes.POINTER(ctypes.c_int))
    assert attempt(lambda: np.ctypeslib.as_array(pointer, shape=(4,))).failed


def test_an_attempt_that_failed_holds_nothing_alive() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def work() -> None:
        tensor = torch.zeros(8)
        alive.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

    gc.disable()
    try:
        tried = attempt(work)
    finally:
        gc.enable()
    assert tried.reason == "CUDA out of memory."
    assert alive[0]() is None


def test_work_that_cannot_be_retried_ends_with_an_explained_error_and_other_errors_are_passed_on() -> None:
    with pytest.raises(MemoryShortageError) as caught, shortage_explained("in attaching", "Lower method.rank."):
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore")
    assert caught.value.message == "Memory ran out in attaching: CUDA out of memory."
    assert caught.value.hint == "Lower method.rank."
    with pytest.raises(RuntimeError, match="shape mismatch"), shortage_explained("in attaching", ""):
        raise RuntimeError("shape mismatch")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        attempt(lambda: torch.ones(1, 2) @ torch.ones(3, 1))


ROOT = Path(__file__).resolve().parents[4]

FAULTS = """
import resource, sys
from core.worker.oom.retry import give_back, keep_freed_memory
import torch
torch.set_num_threads(1)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [torch.ones(1 << 20) for _ in range(5)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
    return int(open("/proc/self/statm").read().split()[1])
before = faults()
assert keep_freed_memory()
faults()
after = faults()
blocks = [torch.ones(1 << 20) for _ in range(20)]
del blocks
held = resident()
give_back()
print(before, after, held - resident())
"""


def test_freed_memory_is_reused_without_page_faults_until_it_is_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    before, after, given_back = map(int, done.stdout.split())
    pages = (1 << 22) // 4096
    assert before >= 50 * pages // 2, "without it the tensors of each round are made of new pages"
    assert after <= pages
    assert given_back >= 10 * pages
