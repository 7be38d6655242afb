from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def test_what_is_freed_is_found_again_without_page_faults_until_it_is_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    before, after, given_back = map(int, done.stdout.split())
    pages = (1 << 22) // 4096
    assert before >= 50 * pages // 2, "without it the tensors of each round are made of new pages"
    assert after <= pages
    assert given_back >= 10 * pages
