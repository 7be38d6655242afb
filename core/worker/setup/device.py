"""The device of a run at its beginning: chosen, told in the run's first notice, and kept to its memory."""

from __future__ import annotations

import torch

from core.config.schema import Config
from core.hardware.obstacle import find_card_not_given, look
from core.hardware.sampler import CPU_ONLY
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
from core.worker.process.recorder import Recorder


def settle_device(config: Config, recorder: Recorder) -> torch.device:
    """Choose the device, give notice of it, and read the meters of that one.

    Returns:
        The device.

    Raises:
        UserError: If there is a card that torch cannot use, or the device cannot do what was asked.
    """
    wanted = config.hardware.device
    device = choose_device(wanted)
    dtype = choose_dtype(config.train.precision, device, config.method.name)
    sight, build = look(), torch_build()
    if device.type != "cuda":
        reason = reason_for_cpu(wanted, sight)
        sentence = describe_device(build, dtype, None, threads=torch.get_num_threads(), reason=reason)
        level = "warning" if reason and reason == find_card_not_given(sight) else "info"
        recorder.notice(level, "device", sentence)
        recorder.watch(CPU_ONLY)
        return device
    card = read_card(device, sight)
    recorder.notice("info", "device", describe_device(build, dtype, card, threads=torch.get_num_threads()))
    if differs := differs_from_plan(card, sight):
        recorder.warn("device_differs", differs, "Name the card in hardware.gpu, by its UUID.")
    if card.uuid:
        recorder.watch(card.uuid)
    keep_to_memory(device, wsl=sight.wsl)
    return device
