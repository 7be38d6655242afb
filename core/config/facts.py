"""What may be known beside a configuration: the model's shape, the device, the room on the disk, the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

from core.config.choices import TRACKERS
from core.config.schema import Config
from core.errors import UserError
from core.models.architecture.architecture import Architecture
from core.models.architecture.load import locate_model
from core.models.architecture.sandboxed import load_architecture


class DiskNeed(NamedTuple):
    """Bytes that a run writes: a checkpoint, and the whole of it with the checkpoints that are kept."""

    checkpoint: int
    run: int


def _unknown_need(_: Config) -> DiskNeed | None:
    return None


@dataclass(frozen=True)
class Facts:
    """What is known; None where it is not.

    Args:
        model: The base model's shape.
        device: What will be trained on.
        bf16: Whether that device does bf16 well.
        device_bytes: Memory of the card in all.
        free_bytes: Room on the disk of the runs.
        rows: Rows that are trained on in an epoch.
        missing_trackers: Those that are not installed.
        disk_need: Tells what a run of a configuration writes; None where that cannot be told.
    """

    model: Architecture | None = None
    device: Literal["cuda", "cpu"] | None = None
    bf16: bool | None = None
    device_bytes: int | None = None
    free_bytes: int | None = None
    rows: int | None = None
    missing_trackers: frozenset[str] | None = None
    disk_need: Callable[[Config], DiskNeed | None] = _unknown_need


def find_missing_trackers() -> frozenset[str]:
    """The trackers whose libraries are not installed; none is imported for that."""
    return frozenset(tool for tool in TRACKERS if find_spec(tool) is None)


def read_shape(base: str, relative_to: Path | None = None) -> Architecture | None:
    """The shape of a base model that is on this machine, of a GGUF file too; None where it cannot be told.

    Args:
        base: As ``model.base``.
        relative_to: What a relative path is relative to; the working directory by default.
    """
    try:
        return load_architecture(locate_model(base, relative_to))
    except (UserError, OSError, ValueError):
        # What is wrong with it is told by those who need it.
        return None
