"""What a memory plan is made for, and what it says: the machine, the parts of the peak, and whether they fit.

docs/memory.md has the model, and how wrong it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from core.memory.phases import MicroBatch

DeviceKind = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Machine:
    """What it is to run on.

    Args:
        kind: The kind of device.
        limit_bytes: Memory that is free on it for the run; None where unknown.
        disk_free_bytes: Free bytes of the disk that holds the runs; None where unknown.
        bf16: Whether the CPU computes in bf16 natively.
        host_bytes: Memory that is free around a GPU; None where unknown.
    """

    kind: DeviceKind
    limit_bytes: int | None = None
    disk_free_bytes: int | None = None
    bf16: bool = True
    host_bytes: int | None = None


@dataclass(frozen=True)
class Part:
    """One part of the memory: its name, bytes, and what it is in one line."""

    name: str
    bytes: int
    what: str


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Args:
        parts: Of the memory at the peak; they sum up to it.
        phase: When the peak is: ``loading``, ``loss`` or ``backward``.
        micro_batch: The largest one.
        needed_bytes: Of the peak, what must be there: without the views of a file that the system takes back.
        trainable: Parameters that are trained.
        parameters: Of the base model.
        limit_bytes: What is free for it.
        checkpoint_bytes: One checkpoint.
        disk_bytes: All checkpoints that exist at once, and the final adapter.
        disk_free_bytes: What is free for them.
        checkpointing: Whether activations are recomputed.
        device: The kind of device.
        offload: Whether what recomputing starts from is in the machine's memory.
        host_bytes: The most that it takes there, pinned.
        host_free_bytes: What is free for it there.
        notes: What one should know about the figures, as sentences.
        targets: The last part of the names of the layers that get adapters, and how many are called so.
        dequantized: Whether 16-bit copies of 4-bit weights are kept.
    """

    parts: tuple[Part, ...]
    phase: str
    micro_batch: MicroBatch
    needed_bytes: int
    trainable: int
    parameters: int
    limit_bytes: int | None
    checkpoint_bytes: int
    disk_bytes: int
    disk_free_bytes: int | None
    checkpointing: bool
    device: DeviceKind
    offload: bool = False
    host_bytes: int = 0
    host_free_bytes: int | None = None
    notes: tuple[str, ...] = field(default=())
    targets: tuple[tuple[str, int], ...] = field(default=())
    dequantized: bool = False

    @property
    def total_bytes(self) -> int:
        """The peak."""
        return sum(part.bytes for part in self.parts)

    @property
    def reclaimable_bytes(self) -> int:
        """Of the peak, what the system takes back when memory is short."""
        return self.total_bytes - self.needed_bytes

    @property
    def fits(self) -> bool | None:
        """Whether what is needed does; None where the limit is unknown."""
        return None if self.limit_bytes is None else self.needed_bytes <= self.limit_bytes

    @property
    def host_fits(self) -> bool | None:
        """Whether the machine has room for what is moved to its memory; None where that is unknown."""
        return None if self.host_free_bytes is None else self.host_bytes <= self.host_free_bytes

    @property
    def disk_fits(self) -> bool | None:
        """Whether the disk has room; None where that is unknown."""
        return None if self.disk_free_bytes is None else self.disk_bytes <= self.disk_free_bytes

    def by_name(self) -> dict[str, int]:
        """Name of each part to its bytes."""
        return {part.name: part.bytes for part in self.parts}
