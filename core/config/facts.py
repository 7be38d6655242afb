"""Facts about a run that the configuration does not hold: the model's shape, the device, the disk space, the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

from core.config.choices import TRACKERS
from core.config.schema import Config
from core.errors import UserError
from core.models.architecture.architecture import Architecture
from core.models.published import locate_shape
from core.models.sandboxed import load_architecture


class DiskNeed(NamedTuple):
    """Bytes that a run writes: one checkpoint, and everything together with the checkpoints that are kept."""

    checkpoint: int
    run: int


class Unkept(NamedTuple):
    """An option that the run's device does not support, or a wish for the night that cannot be met, with the reason and
    the remedy; ``is_measured`` is False if the memory plan alone says so, which may be wrong."""

    option: str
    sentence: str
    hint: str
    is_measured: bool = True

    def __str__(self) -> str:
        return f"{self.sentence} {self.hint}"


def _nothing_unkept(_: Config) -> Sequence[Unkept]:
    return ()


def _unknown_need(_: Config) -> DiskNeed | None:
    return None


@dataclass(frozen=True)
class Facts:
    """Known facts; None where something is unknown.

    Args:
        model: The base model's shape.
        device: The training device.
        bf16: Whether that device computes well in bf16.
        device_bytes: Total memory of the card.
        free_bytes: Free space on the disk of the runs.
        rows: Training rows of an epoch.
        missing_trackers: Trackers that are not installed.
        has_deepspeed: Whether DeepSpeed is installed.
        disk_need: Computes the bytes that a run of a configuration writes; None where that is unknown.
        unkept: The limits and wishes of a configuration that cannot be kept on the run's device.
    """

    model: Architecture | None = None
    device: Literal["cuda", "cpu"] | None = None
    bf16: bool | None = None
    device_bytes: int | None = None
    free_bytes: int | None = None
    rows: int | None = None
    missing_trackers: frozenset[str] | None = None
    has_deepspeed: bool | None = None
    disk_need: Callable[[Config], DiskNeed | None] = _unknown_need
    unkept: Callable[[Config], Sequence[Unkept]] = _nothing_unkept

    def elsewhere(self) -> Facts:
        """These facts for a run on another machine, whose meters are not known."""
        return replace(self, unkept=_nothing_unkept)


def trains_on_cpu(config: Config, facts: Facts) -> bool:
    """True if a run is known to train on the CPU."""
    return config.hardware.device == "cpu" or (config.hardware.device == "auto" and facts.device == "cpu")


def find_missing_trackers() -> frozenset[str]:
    """The trackers whose libraries are not installed, found without importing any."""
    return frozenset(tool for tool in TRACKERS if find_spec(tool) is None)


def read_shape(base: str, relative_to: Path | None = None) -> Architecture | None:
    """The shape of a base model, a GGUF file included, here or as published; None where it is unknown.

    Args:
        base: As ``model.base``.
        relative_to: The directory that a relative path starts from; the working directory by default.
    """
    try:
        return load_architecture(locate_shape(base, relative_to))
    except (UserError, OSError, ValueError):
        # Errors of the model are reported where it is needed.
        return None
