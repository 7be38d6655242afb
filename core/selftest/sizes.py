"""Sizes of the self-test: numbers of steps and shapes of batches, by kind of device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core.models.find import STARTER_NAME


@dataclass(frozen=True)
class Shape:
    """A shape of batches for measuring memory.

    Args:
        rows: Rows of a step.
        length: Tokens of each row.
        method: ``qlora`` or ``lora``.
        recompute: Whether activations are recomputed.
    """

    rows: int
    length: int
    method: str = "qlora"
    recompute: bool = False


#: Three shapes: activations kept, activations recomputed, and a 16-bit base. On a card they are so large that the
#: constant memory of a process does not dominate.
CPU_SHAPES = (Shape(4, 128), Shape(4, 256, recompute=True), Shape(4, 128, "lora"))
CUDA_SHAPES = (Shape(8, 512), Shape(8, 2048, recompute=True), Shape(8, 512, "lora"))


@dataclass(frozen=True)
class Sizes:
    """Sizes of all checks.

    Args:
        model: Base model.
        curve_steps: Steps compared with the shipped losses.
        shapes: Shapes for measuring memory.
        resume_steps: Steps of the interrupted run.
        shortage: Shape for the run that is short of memory; several rows, so that the batch can be split.
        speed: Shape for measuring speed.
        speed_steps: Measured steps, after the warm-up; those of an epoch where ``speed_seconds`` decides.
        speed_seconds: Seconds of measured steps, and of measured products; 0 for the fewest that tell.
        matrix: Rows and columns of the matrices for measuring the matrix rate.
        device: ``hardware.device`` of the runs.
    """

    model: str = STARTER_NAME
    curve_steps: int = 20
    shapes: tuple[Shape, ...] = CPU_SHAPES
    resume_steps: int = 8
    shortage: Shape = Shape(4, 256)
    speed: Shape = Shape(8, 128)
    speed_steps: int = 4
    speed_seconds: float = 0.0
    matrix: int = 1536
    device: str = "auto"

    @classmethod
    def of(cls, kind: str) -> Sizes:
        """The sizes for a kind of device, ``cpu`` or ``cuda``."""
        if kind != "cuda":
            return cls()
        return cls(
            shapes=CUDA_SHAPES,
            resume_steps=16,
            shortage=Shape(8, 512),
            speed=Shape(8, 512),
            speed_steps=20,
            speed_seconds=30.0,
            matrix=8192,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Sizes:
        """The sizes made a dictionary by :func:`dataclasses.asdict`."""
        shapes = tuple(Shape(**shape) for shape in data["shapes"])
        one = {name: Shape(**data[name]) for name in ("shortage", "speed")}
        return cls(**{**data, **one, "shapes": shapes})
