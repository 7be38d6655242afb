"""Memory plan: the machine, the parts of the peak, and whether they fit.

docs/memory.md explains the model and its errors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from core.memory.calibration import Calibration
from core.memory.step_time import StepTime

DeviceKind = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Machine:
    """Machine that a run is planned for.

    Args:
        kind: The kind of device.
        limit_bytes: Memory of it that is free for the run; None if unknown.
        disk_free_bytes: Free bytes of the disk that holds the runs; None if unknown.
        bf16: Whether the CPU has native bf16 instructions.
        host_bytes: Free host memory of a GPU machine; None if unknown.
        device: Name of the device; empty if unknown.
        calibration: Constants measured on it; None to assume them.
        capability: Compute capability of a GPU; None if unknown.
        expandable: Whether the segments of a GPU's allocator are expandable, which keeps fragmentation low.
        pins: Whether pinned host memory may be used by default.
        pages: Whether a GPU's driver can page optimizer states; WSL 2's cannot.
        cuda_build: Whether torch is built for CUDA, whose libraries take memory in training on the CPU as well.
        power_limit_w: Power limit of the device in W; None if unknown.
        elsewhere: Whether its device is on another machine, so that no measurement of this one applies.
    """

    kind: DeviceKind
    limit_bytes: int | None = None
    disk_free_bytes: int | None = None
    bf16: bool = True
    host_bytes: int | None = None
    device: str = ""
    calibration: Calibration | None = None
    capability: tuple[int, int] | None = None
    expandable: bool = True
    pins: bool = True
    pages: bool = True
    cuda_build: bool = False
    power_limit_w: float | None = None
    elsewhere: bool = False


@dataclass(frozen=True)
class MicroBatch:
    """Largest micro-batch that the data can form.

    Args:
        rows: Number of its rows.
        length: Their length, padding included.
        supervised: Number of positions in the loss.
    """

    rows: int
    length: int
    supervised: int

    @property
    def tokens(self) -> int:
        """Number of tokens, padding included."""
        return self.rows * self.length


@dataclass(frozen=True)
class Part:
    """Part of the memory: its name, bytes, and a description in one line."""

    name: str
    bytes: int
    what: str


#: Parts that the system can reclaim when memory is short: mapped files.
RECLAIMABLE = frozenset({"weights_file"})


@dataclass(frozen=True)
class Way:
    """Way of fitting a run into memory.

    Args:
        token_budget: Token budget of a micro-batch.
        kept_layers: Number of last layers whose activations are kept; the others are recomputed.
        offload: Whether the inputs of recomputed layers are offloaded to host memory.
        host_experts: Whether 4-bit experts live in host memory.
    """

    token_budget: int
    kept_layers: int
    offload: bool = False
    host_experts: bool = False


@dataclass(frozen=True)
class Plan:
    """Memory plan of a run.

    Args:
        parts: Parts of the memory at the peak; they sum up to it.
        phase: Phase of the peak: ``loading``, ``loss`` or ``backward``.
        micro_batch: Largest micro-batch.
        needed_bytes: The part of the peak that must be resident: without file mappings that the system can reclaim.
        trainable: Number of trained parameters.
        parameters: Number of parameters of the base model.
        limit_bytes: Free memory.
        checkpoint_bytes: Size of one checkpoint.
        disk_bytes: All checkpoints that exist at once, and the final adapter.
        disk_free_bytes: Free disk space.
        token_budget: Token budget of a micro-batch.
        layers: Number of decoder layers.
        kept_layers: Number of last layers whose activations are kept for backward; the others are recomputed.
        step: Estimated time of an optimizer step.
        device: The kind of device.
        offload: Whether activation offloading is on: checkpointed layer inputs are in host memory.
        host_bytes: Most pinned host memory for it.
        states_host_bytes: Most host memory of a paged optimizer's states.
        host_free_bytes: Free host memory.
        notes: Remarks on the numbers.
        targets: Last name components of the layers that get adapters, and the number of layers of each.
        dequantized: Whether 16-bit copies of 4-bit weights are kept.
        experts_host_bytes: Pinned host memory of the 4-bit experts that live there; 0 if they are on the device.
        shares_host_bytes: Host memory for the card's share of weights and states that is not on it
            (``distributed.offload``).
        wire_bytes: Bytes that the card sends to others in an optimizer step.
        reason: Why activations are kept or recomputed, as a sentence; empty if it was decided before.
        is_rough: Whether the activations are a rough bound, as they have not been measured yet.
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
    token_budget: int
    layers: int
    kept_layers: int
    step: StepTime
    device: DeviceKind
    offload: bool = False
    host_bytes: int = 0
    states_host_bytes: int = 0
    host_free_bytes: int | None = None
    notes: tuple[str, ...] = field(default=())
    targets: tuple[tuple[str, int], ...] = field(default=())
    dequantized: bool = False
    experts_host_bytes: int = 0
    shares_host_bytes: int = 0
    wire_bytes: int = 0
    reason: str = ""
    is_rough: bool = False

    @property
    def checkpointing(self) -> bool:
        """True if gradient checkpointing is on, for some layers at least."""
        return self.kept_layers < self.layers

    @property
    def way(self) -> Way:
        """The planned way."""
        return Way(self.token_budget, self.kept_layers, self.offload, self.experts_host_bytes > 0)

    @property
    def total_bytes(self) -> int:
        """Memory at the peak."""
        return sum(part.bytes for part in self.parts)

    @property
    def reclaimable_bytes(self) -> int:
        """Part of the peak that the system can reclaim when memory is short."""
        return self.total_bytes - self.needed_bytes

    @property
    def fits(self) -> bool | None:
        """True if the needed memory fits; None if the limit is unknown."""
        return None if self.limit_bytes is None else self.needed_bytes <= self.limit_bytes

    @property
    def host_fits(self) -> bool | None:
        """True if the parts in host memory fit there; None if unknown."""
        return None if self.host_free_bytes is None else self.on_host_bytes <= self.host_free_bytes

    @property
    def on_host_bytes(self) -> int:
        """Host memory of offloaded activations and experts, paged states and shares."""
        return self.host_bytes + self.states_host_bytes + self.experts_host_bytes + self.shares_host_bytes

    @property
    def disk_fits(self) -> bool | None:
        """True if the disk has room; None if unknown."""
        return None if self.disk_free_bytes is None else self.disk_bytes <= self.disk_free_bytes

    def by_name(self) -> dict[str, int]:
        """Bytes of each part by name."""
        return {part.name: part.bytes for part in self.parts}
