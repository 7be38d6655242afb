"""Checks of what is there before anything trains: loading, the context, and which card is meant."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from bench.gpu_checks.models import EIGHT
from bench.gpu_checks.subjects import Found
from bench.gpu_checks.trainer import Stand
from core.units import format_bytes

#: Most that loading may take of the host beside the file, and of the card beside the 4-bit model.
HOST_MOST, CARD_MOST = 4_000_000_000, 300_000_000
#: Seconds between two looks at the memory.
_INTERVAL = 0.02
#: Program that tells what the context and the handles of both threads take.
_CONTEXT = """
import json, sys
from core.worker.process import environment
environment.prepare()
from core.worker.selftest.driver import free_memory
import torch
index = int(sys.argv[1])
before = free_memory(index)
from core.worker.oom.retry import multiply_both_ways
multiply_both_ways(torch.device("cuda"))
torch.cuda.synchronize()
print(json.dumps(before - free_memory(index) - torch.cuda.memory_reserved()))
"""
#: Program that tells the card of the plan and the one that torch computes on.
_CARDS = """
import json
from core.worker.process import environment
environment.prepare()
from core.hardware.card import find_card
import torch
card = find_card()
used = str(torch.cuda.get_device_properties(0).uuid) if torch.cuda.is_available() else None
print(json.dumps({"plan": card.uuid if card else None, "run": used}))
"""


def told_by(program: str, *arguments: str, **environment: str) -> Any:
    """Last line of a program run in its own process."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def check_1(stand: Stand) -> Found:
    """Load 8B in 4 bits."""
    import torch

    from core.worker.libraries import import_libraries

    import_libraries()
    from core.worker.model.model import load_model

    began = time.monotonic()
    base = stand.model(EIGHT)
    made = time.monotonic() - began
    if stand.is_cuda:
        torch.ones(1, device="cuda")
        torch.cuda.reset_peak_memory_stats()
    with HostPeak() as host:
        began = time.monotonic()
        loaded = load_model(base, method="qlora", precision="auto", device="auto", for_training=True)
        seconds = time.monotonic() - began
    figures: dict[str, Any] = {
        "making_seconds": made,
        "loading_seconds": seconds,
        "model_bytes": loaded.model.get_memory_footprint(),
        "host_bytes": host.most,
        "file_bytes": stand.shape(EIGHT).bytes,
    }
    said = f"8B in 4 bits in {seconds:.0f} s"
    if not stand.is_cuda:
        return Found("measured", f"{said}, {format_bytes(figures['host_bytes'])} of the machine's memory.", figures)
    peak = torch.cuda.max_memory_allocated()
    free, total = torch.cuda.mem_get_info()
    figures |= {"peak_bytes": peak, "free_bytes": free, "total_bytes": total}
    beside = peak - torch.cuda.memory_allocated()
    figures["beside_bytes"] = beside
    fine = figures["host_bytes"] <= HOST_MOST and beside <= CARD_MOST
    return Found(
        "pass" if fine else "fail",
        f"{said}, {format_bytes(figures['host_bytes'])} of the machine's memory where {format_bytes(HOST_MOST)} are "
        f"allowed, and {format_bytes(beside)} of the card beside the model where {format_bytes(CARD_MOST)} are.",
        figures,
    )


class HostPeak:
    """The most memory that this process takes within the context, beside what it had and mapped files."""

    def __init__(self) -> None:
        self.most = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._before = _anonymous()

    def __enter__(self) -> HostPeak:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.most = max(self.most, _anonymous() - self._before)
            if self._done.wait(_INTERVAL):
                break


def _anonymous() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def check_2(stand: Stand) -> Found:
    """Measure the context with torch's own workspaces and with fixed ones."""
    index = str(stand.device.get("index", 0))
    plain = int(told_by(_CONTEXT, index))
    fixed = int(told_by(_CONTEXT, index, CUBLAS_WORKSPACE_CONFIG=":4096:8"))
    return Found(
        "measured",
        f"{format_bytes(plain)} with both handles, {format_bytes(fixed)} with CUBLAS_WORKSPACE_CONFIG=:4096:8.",
        {"context_bytes": plain, "fixed_workspace_bytes": fixed},
    )


def check_20(stand: Stand) -> Found:
    """Ask plan and torch for their card under each kind of CUDA_VISIBLE_DEVICES."""
    every = told_by(_CARDS)
    cases = {"unset": every, "index": told_by(_CARDS, CUDA_VISIBLE_DEVICES=str(stand.device.get("index", 0)))}
    if every["plan"]:
        cases["UUID"] = told_by(_CARDS, CUDA_VISIBLE_DEVICES=every["plan"])
    cases["empty"] = told_by(_CARDS, CUDA_VISIBLE_DEVICES="")
    wrong = [name for name, case in cases.items() if not same_card(case["plan"], case["run"])]
    if wrong:
        return Found("fail", f"Plan and run mean different cards: {', '.join(wrong)}.", cases)
    return Found("pass", f"Plan and run mean the same card: {', '.join(cases)}.", cases)


def same_card(planned: str | None, used: str | None) -> bool:
    """True if two UUIDs name the same card, with or without the prefix, or both name none."""
    if planned is None or used is None:
        return planned is used
    return planned.removeprefix("GPU-") == used.removeprefix("GPU-")
