"""Sizes of the self-test: how many steps, and of what shapes, by the kind of device."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from core.models.find import STARTER_NAME


@dataclass(frozen=True)
class Shape:
    """A shape of batches that memory is measured with.

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


#: Three shapes: activations kept, recomputed, and a 16-bit base. On a card they are large enough for the constants of a
#: process to be a part of the whole and no more.
CPU_SHAPES = (Shape(4, 128), Shape(4, 256, recompute=True), Shape(4, 128, "lora"))
CUDA_SHAPES = (Shape(8, 512), Shape(8, 2048, recompute=True), Shape(8, 512, "lora"))


@dataclass(frozen=True)
class Sizes:
    """Sizes of all checks.

    Args:
        model: Base model that is trained.
        curve_steps: Steps that are compared with the shipped losses.
        shapes: Shapes that memory is measured with.
        resume_steps: Steps of the run that is interrupted.
        shortage: Shape of the batches of a run that is short of memory; several rows, so that it can give way.
        speed: Shape of the batches whose speed is measured.
        speed_steps: Steps measured; those before are warm-up.
        matrix: Edge of the matrices whose product gives the matrix rate.
        device: ``hardware.device`` of the runs.
    """

    model: str = STARTER_NAME
    curve_steps: int = 20
    shapes: tuple[Shape, ...] = CPU_SHAPES
    resume_steps: int = 8
    shortage: Shape = Shape(4, 256)
    speed: Shape = Shape(8, 128)
    speed_steps: int = 4
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
            matrix=8192,
        )

    def smallest(self) -> Sizes:
        """The same with as little work as each check makes sense with."""
        one = replace(self.shapes[0], rows=2, length=64)
        return replace(
            self,
            curve_steps=4,
            shapes=(one,),
            resume_steps=6,
            shortage=Shape(4, 128),
            speed=Shape(2, 64),
            speed_steps=2,
            matrix=512,
        )

    def to_dict(self) -> dict[str, Any]:
        """The sizes as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Sizes:
        """From what :meth:`to_dict` gave, once it has been JSON."""
        shapes = tuple(Shape(**shape) for shape in data["shapes"])
        one = {name: Shape(**data[name]) for name in ("shortage", "speed")}
        return cls(**{**data, **one, "shapes": shapes})
