"""Compiles every kernel for cards that are not here, as its wrapper launches it: dtypes, alignment, tiles and warps.

Triton's driver is replaced by one without a device, and a launch ends after compilation. Checked are spilled registers
and shared memory, as the compiler of the target counts them. Run by :mod:`test_kernels` in a separate process."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# A kernel that leaves the fusion of multiply and add to Triton's default, which differs between versions, is found.
os.environ["TRITON_DEFAULT_FP_FUSION"] = "0"

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from tests.core.worker.fused.triton.launches import BF16, LAUNCHES

ROOT = Path(__file__).resolve().parents[5]
#: Bytes of shared memory that every card of a maker gives to a program without a request for more.
SHARED = {"cuda": 48 << 10, "hip": 64 << 10}
#: Widest rows whose values must fit in registers.
WIDEST = 16384
#: A program launches kernels by name and grid.
_LAUNCHED = r"\b{}\["
_KERNEL = re.compile(r"^@triton\.jit.*\n(?:#.*\n)*def (\w+)", re.MULTILINE)


def compile_launch(target: str, which: int, width: int, dtype: torch.dtype) -> tuple[list[str], list[str]]:
    """Call a wrapper with a target's compiler beneath it.

    Args:
        target: An architecture, such as ``sm_89`` or ``gfx1100``.
        which: The place of the launch in the list, as functions do not pass between processes.
        width: The width of its rows.
        dtype: Their dtype.

    Returns:
        The names of the kernels, and a sentence for each fault.
    """
    launch = LAUNCHES[which]
    case = f"{target}: {launch.name}, {width}, {dtype}"
    made: list[tuple[str, Any]] = []
    usual = JITFunction.run

    def compiled(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        made.append((self.__name__, usual(self, *args, grid=grid, warmup=True, **options)))

    card = GPUTarget("cuda", int(target[3:]), 32) if target.startswith("sm_") else GPUTarget("hip", target, 32)
    driver.set_active(
        SimpleNamespace(
            # Compiled kernels are kept by device.
            get_current_device=lambda: target,
            get_current_stream=lambda _device=None: 0,
            get_current_target=lambda: card,
            get_active_torch_device=lambda: torch.device("cpu"),
        )
    )
    JITFunction.run = compiled
    try:
        launch.call(width, dtype)
    except Exception as error:  # the compiler raises errors of its own kinds
        return [], [f"{case}: {type(error).__name__}: {error}"]
    finally:
        JITFunction.run = usual
    faults = [
        f"{case}: {name} {fault}"
        for name, kernel in made
        for fault in _faults(kernel, SHARED[card.backend], may_spill=width > WIDEST)
    ]
    return [name for name, _ in made], faults


def _faults(kernel: Any, limit: int, *, may_spill: bool) -> Iterator[str]:
    spilled, shared = _usage(kernel)
    if spilled and not may_spill:
        yield f"spills {spilled} bytes of registers a thread"
    if shared > limit:
        yield f"takes {shared} bytes of shared memory, {limit} are there"
    if not kernel.metadata.enable_fp_fusion:
        yield "is launched without the options of all launches"


def _usage(kernel: Any) -> tuple[int, int]:
    """Bytes of a thread's memory outside registers, and of a program's shared memory."""
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]
        return _number(r"\.private_segment_fixed_size:\s*(\d+)", text), kernel.metadata.shared
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return _number(r"STACK:(\d+)", text) + _number(r"LOCAL:(\d+)", text), kernel.metadata.shared


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, f"no {pattern} in {text[:400]}"
    return int(found[1])


def kernels() -> set[str]:
    """The names of all kernels of the worker that are launched."""
    found: set[str] = set()
    for path in (ROOT / "core" / "worker").rglob("*.py"):
        text = path.read_text()
        found |= {name for name in _KERNEL.findall(text) if re.search(_LAUNCHED.format(name), text)}
    return found


def main(extent: str, *targets: str) -> int:
    """Compile launches; faults go to standard error.

    Args:
        extent: All launches, or those in ``make test``: ``all`` or ``short``.
        targets: The architectures.

    Returns:
        The exit code.
    """
    jobs = [
        (target, place, width, dtype)
        for target in targets
        for place, launch in enumerate(LAUNCHES)
        for width in (launch.widths if extent == "all" else launch.short)
        for dtype in (launch.dtypes if extent == "all" else (BF16,))
    ]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = pool.starmap(compile_launch, jobs, chunksize=1)
    faults = [fault for _, found in results for fault in found]
    if left_out := kernels() - {name for names, _ in results for name in names}:
        faults.append(f"not in the list of launches: {', '.join(sorted(left_out))}")
    sys.stderr.writelines(f"{fault}\n" for fault in faults)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
