"""Device, determinism, optimizer and governor of a run."""

from __future__ import annotations

import torch

from core.config.schema import Config
from core.governor.policy import DISK
from core.governor.words import reason
from core.hardware import power
from core.hardware.drivers import is_wsl
from core.hardware.obstacle import find_card_not_given, look
from core.hardware.sampler import CPU_ONLY
from core.notify import Notice, notify
from core.runs.record.events import Event, GovernorEvent
from core.worker.model.device import (
    choose_device,
    describe_device,
    differs_from_plan,
    keep_to_memory,
    read_card,
    reason_for_cpu,
    torch_build,
)
from core.worker.model.model import choose_dtype
from core.worker.optim.paged import unpaged_where_needed
from core.worker.process.control import Controls
from core.worker.process.determinism import (
    BIT_FOR_BIT,
    TO_ROUNDING,
    Determinism,
    apply_determinism,
    choose_determinism,
    fix_workspace,
    seed_unused,
)
from core.worker.process.governor import Governor, Throttle
from core.worker.process.recorder import Recorder


def settle_device(config: Config, recorder: Recorder) -> torch.device:
    """Choose the device, report it, and point the meters at it.

    Returns:
        The device.

    Raises:
        UserError: If torch cannot use the card, or the device cannot do as asked.
    """
    # Deterministic matrix products need it before the first one on a GPU.
    fix_workspace(config.train.deterministic)
    seed_unused(config.train.seed)
    wanted = config.hardware.device
    device = choose_device(wanted)
    dtype = choose_dtype(config.train.precision, device, config.method.name)
    sight, build = look(), torch_build()
    if device.type != "cuda":
        reason = reason_for_cpu(wanted, sight)
        sentence = describe_device(build, dtype, None, threads=torch.get_num_threads(), reason=reason)
        level = "warning" if reason and reason == find_card_not_given(sight) else "info"
        recorder.notice(level, "device", sentence)
        recorder.sampler.watch(CPU_ONLY)
        return device
    card = read_card(device, sight)
    recorder.notice("info", "device", describe_device(build, dtype, card, threads=torch.get_num_threads()))
    if differs := differs_from_plan(card, sight):
        recorder.warn("device_differs", differs, "Name the card in hardware.gpu, by its UUID.")
    if card.uuid:
        recorder.sampler.watch(card.uuid)
    keep_to_memory(device, wsl=sight.wsl)
    return device


def settle_determinism(config: Config, device: torch.device, recorder: Recorder) -> Determinism:
    """Determinism of the run: applied, and recorded if it costs bits."""
    deterministic = choose_determinism(config.train.deterministic, device.type)
    apply_determinism(deterministic, device.type)
    if deterministic == "fast":
        recorder.notice("info", "determinism", TO_ROUNDING, BIT_FOR_BIT)
    return deterministic


def with_usable_optimizer(
    config: Config, device: torch.device, recorder: Recorder, *, wsl: bool | None = None
) -> Config:
    """The configuration with an optimizer that works on this machine. A replacement is recorded.

    Args:
        config: Of the run.
        device: That of the training.
        recorder: Of the run.
        wsl: True for WSL2; None to detect it.
    """
    wanted = config.train.optimizer
    wsl = is_wsl() if wsl is None else wsl
    optimizer = unpaged_where_needed(wanted, wsl=wsl and device.type == "cuda")
    if optimizer == wanted:
        return config
    message = f"The optimizer is {optimizer}: WSL2 cannot page the states of {wanted}, which stay on the card."
    recorder.warn("unpaged", message, "It computes the same.")
    return config.model_copy(update={"train": config.train.model_copy(update={"optimizer": optimizer})})


def _tell(recorder: Recorder, event: Event) -> None:
    """Write an event of the governor. A pause for lack of disk space also notifies the user, since somebody has to make
    room; pauses for heat end by themselves."""
    recorder.event(event)
    if isinstance(event, GovernorEvent) and event.action == "pause" and event.cause == DISK:
        notify(Notice("paused", reason(event.cause, event.value, event.limit), recorder.run.id))


def make_governor(config: Config, recorder: Recorder, controls: Controls, device: torch.device) -> Governor:
    """The governor of a run. Limits that this device cannot keep are refused before minutes are spent on the rows.

    Args:
        config: Of the run.
        recorder: Reads the meters and writes the events.
        controls: Stops the run.
        device: That of the training.

    Raises:
        UserError: If a limit cannot be kept here.
    """
    throttle = Throttle(controls)
    if device.type == "cuda":
        # A GPU is still computing when the call returns.
        throttle.synchronize = lambda: torch.cuda.synchronize(device)
    recorder.rested = lambda: throttle.rested_seconds
    governor = Governor(
        config,
        meters=recorder.sampler,
        controls=controls,
        throttle=throttle,
        tell=lambda event: _tell(recorder, event),
        notice=recorder.notice,
        directory=recorder.run.path,
        is_paused=lambda: recorder.state.state == "paused",
        lever=power if device.type == "cuda" else None,
    )
    governor.check()
    return governor
