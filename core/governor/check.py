"""Limits and wishes that cannot be kept on a device, whatever a run costs: before its start and in its worker."""

from __future__ import annotations

import time
from collections.abc import Iterator

from core.config.facts import Unkept
from core.config.schema import Config
from core.errors import UserError
from core.governor.limits import Limits
from core.governor.night import impossible
from core.hardware.sampler import read_device
from core.hardware.snapshot import Device


def unkept(limits: Limits, device: Device | None, now: float, *, has_energy: bool = False) -> Iterator[Unkept]:
    """Limits and wishes that a device cannot keep.

    Args:
        limits: Limits and wishes.
        device: The run's device, as its meters read now; None if they are not known. An unreadable device says nothing
            about its limits.
        now: Unix seconds.
        has_energy: Whether its energy is known without a reading of its power.
    """
    if (problem := impossible(limits, now)) is not None:
        yield Unkept("night.deadline", *problem)
    if device is None or device.problem:
        return
    for option, meter in _needed_meters(limits, device, has_energy=has_energy or device.energy_j is not None):
        yield Unkept(option, f"{device.name} does not report {meter}, so {option} cannot be kept.", "Leave it out.")


def unkept_here(config: Config) -> list[Unkept]:
    """Limits that the run's device on this machine cannot keep; its meters are read only if that matters."""
    needs_meters = _limits_of(config).needs_meters
    return unkept_on(read_device(config.hardware.device, config.hardware.gpu) if needs_meters else None, config)


def unkept_on(device: Device | None, config: Config) -> list[Unkept]:
    """Limits that a device cannot keep; None: its meters are not known."""
    return list(unkept(_limits_of(config), device, time.time()))


def _limits_of(config: Config) -> Limits:
    """Limits of a configuration; empty if it has an invalid time, which the rules between options report."""
    try:
        return Limits.of(config)
    except UserError:
        return Limits()


def _needed_meters(limits: Limits, device: Device, *, has_energy: bool) -> Iterator[tuple[str, str]]:
    """Options, and the meters that they need and the device has not."""
    if limits.temperature_c is not None and device.temperature_c is None:
        yield "hardware.temperature_limit_c", "its temperature"
    if limits.memory_temperature_c is not None and device.memory_temperature_c is None:
        yield "hardware.memory_temperature_limit_c", "the temperature of its memory"
    if device.power_w is None and not has_energy:
        yield from ((option, "its power") for option in limits.need_power)
