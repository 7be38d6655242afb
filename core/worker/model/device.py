"""The device of a run: its choice, its description, and the limit of its real memory.

Torch has AMD's cards as ``cuda`` too, where it is built for ROCm.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass

import torch

from core.config.schema import WEIGHT_METHODS
from core.errors import UserError
from core.hardware import amd, cpu
from core.hardware.card import choose
from core.hardware.drivers import MEMORY_SHARE, Build, describe_allocator, fixed_segments_reason
from core.hardware.obstacle import Sight, find_card_not_given, find_obstacle, look, unlisted, unproven
from core.hardware.proof import Proof, is_proven
from core.hardware.visible import hides_all, visible_variable
from core.units import format_bytes
from core.worker.process.probe import architecture_of, cuda_error, has_bf16

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def torch_build() -> Build:
    """The torch that runs."""
    return Build(str(torch.__version__), torch.version.cuda, torch.version.hip)


def choose_device(wanted: str) -> torch.device:
    """The device for ``auto``, ``cuda`` or ``cpu``; an unusable card is an error for ``auto`` too.

    Raises:
        UserError: If CUDA was asked for and there is none, torch cannot use the card, or it is AMD's and not proven.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    build, error = torch_build(), cuda_error()
    computes = torch.cuda.is_available() and error is None
    if computes and not build.hip:
        return torch.device("cuda", torch.cuda.current_device())
    sight = look()
    obstacle = find_obstacle(sight, build, torch_error=error or "")
    if obstacle is not None:
        raise obstacle
    if computes:
        if not sight.is_amd:
            raise unlisted(build)
        device = torch.device("cuda", torch.cuda.current_device())
        # torch may number the cards otherwise than the driver.
        if not is_proven(Proof.here(architecture_of(device), build.version, sight.driver)):
            raise unproven(torch.cuda.get_device_name(device), build)
        return device
    if wanted == "cuda":
        reason = "this torch is a CPU build" if not (build.cuda or build.hip) else "no usable GPU or driver was found"
        raise UserError(f"hardware.device is cuda, but {reason}.", "Run 'localtune-tui doctor', or set it to auto.")
    return torch.device("cpu")


def choose_dtype(precision: str, device: torch.device, method: str = "lora") -> torch.dtype:
    """The dtype of the arithmetic for ``auto``, ``bf16``, ``fp16`` or ``fp32``.

    ``auto`` takes bf16 where it is fast (GPUs by :func:`has_bf16`, CPUs by measurement), else fp16 on a GPU and fp32 on
    a CPU. Trained base weights are never fp16, whose range is too narrow for them.

    Raises:
        UserError: If the device does not support the precision.
    """
    if device.type == "cuda":
        native_bf16 = has_bf16(device)
        if precision == "bf16" and not native_bf16:
            name = torch.cuda.get_device_name(device)
            raise UserError(f"train.precision is bf16, which {name} does not have.", "Set it to auto or fp16.")
        if method in WEIGHT_METHODS and (precision == "fp16" or (precision == "auto" and not native_bf16)):
            what = "train.precision is fp16" if precision == "fp16" else "This card has no bf16"
            hint = "Set train.precision = fp32." if not native_bf16 else "Set it to auto or bf16."
            raise UserError(f"{what}, and method.name = {method} cannot train weights in fp16.", hint)
        return DTYPES[precision] if precision != "auto" else (torch.bfloat16 if native_bf16 else torch.float16)
    if precision == "fp16":
        raise UserError("train.precision is fp16, which trains badly on a CPU.", "Set it to auto, bf16 or fp32.")
    if precision != "auto":
        return DTYPES[precision]
    return torch.bfloat16 if prefers_bf16() else torch.float32


@dataclass(frozen=True)
class CardFacts:
    """A card that torch computes on, with facts from torch and the driver.

    Args:
        name: Its name.
        kind: Its compute capability in words (``compute 8.9``), or its architecture (``gfx1100``).
        memory: Its memory in bytes.
        uuid: ``GPU-…`` or ``AMD-…``; empty where torch does not report it.
        index: Its index at the driver; None where the driver does not list it.
        driver: Version of the driver; empty where unknown.
        allocator: The allocator's segments, in words.
    """

    name: str
    kind: str
    memory: int
    uuid: str = ""
    index: int | None = None
    driver: str = ""
    allocator: str = ""


def describe_device(build: Build, dtype: torch.dtype, card: CardFacts | None, *, threads: int, reason: str = "") -> str:
    """The device, its arithmetic and its torch, as a sentence.

    Args:
        build: The torch that runs.
        dtype: The arithmetic.
        card: The card; None for the CPU.
        threads: Threads of the CPU.
        reason: The reason for the CPU, in words; empty where that is obvious.
    """
    arithmetic = next(name for name, each in DTYPES.items() if each is dtype)
    if card is None:
        why = f"; {reason}" if reason else ""
        count = f"{threads} thread{'' if threads == 1 else 's'}"
        return f"Trains on the CPU, {cpu.cpu_name()}, {count}, in {arithmetic}, by torch {build.version}{why}."
    place = f"GPU {card.index}, " if card.index is not None else ""
    platform = f"ROCm {build.hip}" if build.hip else f"CUDA {build.cuda}"
    driver = f", driver {card.driver}" if card.driver else ""
    return (
        f"Trains on {place}{card.name} ({card.kind}, {format_bytes(card.memory)}) in {arithmetic}, "
        f"by torch {build.version} for {platform}{driver}; {card.allocator}."
    )


def read_card(device: torch.device, sight: Sight) -> CardFacts:
    """The facts about the card of a torch device."""
    properties = torch.cuda.get_device_properties(device)
    architecture, uuid = architecture_of(device), uuid_of(device)
    return CardFacts(
        name_of(device),
        architecture or f"compute {properties.major}.{properties.minor}",
        properties.total_memory,
        uuid,
        next((card.index for card in sight.cards if card.uuid and card.uuid == uuid), None),
        sight.driver,
        describe_allocator(os.environ, fixed_segments_reason(torch_build(), wsl=sight.wsl)),
    )


def name_of(device: torch.device) -> str:
    """The name of a card as its driver lists it, which plan, meters and calibration go by."""
    listed = amd.AmdSource().read(uuid_of(device)) if torch_build().hip else []
    return listed[0].name if listed else str(torch.cuda.get_device_name(device))


def uuid_of(device: torch.device) -> str:
    """The UUID of a card as its driver lists it; empty where torch does not report it."""
    properties = torch.cuda.get_device_properties(device)
    if torch_build().hip:
        domain, bus, slot = (getattr(properties, f"pci_{part}_id", -1) for part in ("domain", "bus", "device"))
        return amd.uuid_at(f"{domain:04x}:{bus:02x}:{slot:02x}.0")
    return f"GPU-{properties.uuid}" if getattr(properties, "uuid", None) else ""


def differs_from_plan(card: CardFacts, sight: Sight) -> str:
    """A warning where torch's first card is not the one expected from driver and environment; empty where it is, or
    where that is unknown."""
    planned = choose(sight.cards, os.environ, None)
    if planned is None or planned.is_instance or not planned.uuid or not card.uuid or planned.uuid == card.uuid:
        return ""
    place = f"GPU {card.index}" if card.index is not None else card.uuid
    return f"torch computes on {place}, and plan and meters before the run took GPU {planned.index} for the first card."


def reason_for_cpu(wanted: str, sight: Sight) -> str:
    """The reason that a run with ``hardware.device = "auto"`` is on the CPU, in words; empty where there is no card."""
    if wanted != "auto":
        return ""
    if sight.cards and hides_all(sight.cards, os.environ):
        return f"{visible_variable(sight.cards, os.environ)} hides the card"
    return find_card_not_given(sight)


def memory_share(free: int, total: int, *, wsl: bool) -> float | None:
    """The share of a card's memory that torch may take before it raises an error; None for all of it.

    Under WSL 2 Windows spills to host memory when the card is full, and a run would continue at a crawl.

    Args:
        free: Free bytes before anything is loaded.
        total: Bytes of the card.
        wsl: True for Linux under Windows.
    """
    if not wsl or total <= 0:
        return None
    return max(min(MEMORY_SHARE * free / total, 1.0), 0.0)


def keep_to_memory(device: torch.device, *, wsl: bool) -> None:
    """Limit torch to the free memory of a card; before the model is loaded."""
    if device.type != "cuda":
        return
    share = memory_share(*torch.cuda.mem_get_info(device), wsl=wsl)
    if share is not None:
        torch.cuda.set_per_process_memory_fraction(share, device)


def allowed_bytes(device: torch.device) -> int | None:
    """The bytes that torch may take of a card; None for all of it."""
    share = float(torch.cuda.get_per_process_memory_fraction(device))
    return int(share * torch.cuda.get_device_properties(device).total_memory) if share < 1.0 else None


# The speed of bf16 on a CPU.

#: Rows, inputs and outputs of the product: a micro-batch in a layer of the smallest models.
SHAPE = (256, 576, 1536)
#: Products of each dtype, in turns; the fastest counts, so other processes do not matter.
TRIALS = 7


def prefers_bf16() -> bool:
    """True if this CPU computes faster in bf16 than in fp32; measured in a tenth of a second where it is unknown."""
    if cpu.is_bf16_measured():
        return cpu.prefers_bf16()
    return cpu.keep_bf16_measurement(speed_ratio())


@torch.no_grad()
def speed_ratio() -> float:
    """Speed of a matrix product in bf16 as a multiple of the same in fp32."""
    rows, inputs, outputs = SHAPE
    seconds: dict[torch.dtype, float] = {}
    for _ in range(TRIALS):
        for dtype in (torch.float32, torch.bfloat16):
            # Zeros take as long as other values, and do not touch the random state.
            x, weight = torch.zeros(rows, inputs, dtype=dtype), torch.zeros(outputs, inputs, dtype=dtype)
            # Time of the thread: on a busy machine a product is interrupted for longer than it takes.
            began = time.thread_time()
            torch.nn.functional.linear(x, weight)
            seconds[dtype] = min(seconds.get(dtype, math.inf), time.thread_time() - began)
    return seconds[torch.float32] / max(seconds[torch.bfloat16], 1e-9)
