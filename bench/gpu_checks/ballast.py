"""Ballast: ``python -m bench.gpu_checks.ballast BYTES`` takes all of a card's memory but so many bytes, and sleeps.

For every other process the card is one with that much: what is free, the plan and running out of memory are as there.
It says ``{"taken", "free"}`` once it has it, and ends with its standard input, or with the process that started it.
"""

from __future__ import annotations

import json
import sys

from core.helper import tie_to_parent
from core.worker.process import environment

#: Sizes of pieces, from the largest.
_LARGEST, _SMALLEST = 1 << 30, 2 << 20


def piece(free: int, leave: int) -> int:
    """The size of the next piece; 0 where nothing more is to be taken.

    Args:
        free: Bytes that are free.
        leave: Bytes that are to be.
    """
    size = _LARGEST
    while size > max(free - leave, 0):
        size //= 2
    return size if size >= _SMALLEST else 0


def main(leave: int) -> None:
    """Take it, say so, and wait."""
    tie_to_parent()
    environment.prepare()
    import torch

    held: list[torch.Tensor] = []
    torch.ones(1, device="cuda")
    free, total = torch.cuda.mem_get_info()
    while size := piece(free, leave):
        held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        now, _ = torch.cuda.mem_get_info()
        if now >= free and len(held) > 1:
            break
        free = now
    sys.stdout.write(json.dumps({"taken": sum(tensor.nbytes for tensor in held), "free": free, "total": total}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]))
