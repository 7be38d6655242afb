"""Obstacles that keep torch from using an installed card, found without torch; cause and remedy in a sentence each.

A run with ``hardware.device = "auto"`` goes to the CPU only where there is no card, or where the user hides it. An
AMD card needs a build of torch for ROCm and a self-test that has passed (:mod:`core.hardware.proof`).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from core.config.derived import ALL_GPUS
from core.config.schema import Config
from core.errors import UserError
from core.hardware import amd
from core.hardware.card import ask_driver
from core.hardware.drivers import OLDEST_DRIVERS, Build, driver_suffices, install_command, is_rocm, is_wsl
from core.hardware.nvml import Nvml, NvmlUnavailableError
from core.hardware.proof import Proof, is_proven
from core.hardware.visible import (
    VISIBLE,
    Identity,
    Visible,
    are_amd,
    find_gpu,
    hides_all,
    visible_cards,
    visible_variable,
)
from core.text import one_line

#: The remedy for users who want the CPU.
ON_THE_CPU = "to train on the CPU anyway, set hardware.device = cpu"
#: The reason and the remedy on a Mac.
APPLE = (
    "Apple's GPUs are not trained on: on Metal bitsandbytes has no 8-bit optimizers, PyTorch has no 64-bit numbers, "
    "and 4-bit weights are too slow."
)
APPLE_REMEDY = "Use a Linux machine with an NVIDIA card, over SSH from this one; 'ssh' is all that it takes here."
_CONTAINER = "start the container again with the card ('docker run --gpus all' with NVIDIA's Container Toolkit)"


class CardUnusableError(UserError):
    """There is a card, and torch cannot use it."""


@dataclass(frozen=True)
class Sight:
    """Cards as the driver and the system show them: NVIDIA's, or AMD's for a build of torch for ROCm.

    Args:
        cards: All cards that the driver lists.
        capabilities: Their compute capabilities, in the same order.
        driver: Version of the driver; empty if unknown.
        cuda: The newest CUDA that NVIDIA's supports.
        failure: Why NVML lists nothing, as a sentence; empty if it does.
        remedy: The remedy.
        absent: Whether there is no driver library.
        nodes: Whether there are device nodes of NVIDIA's driver.
        driven: Whether the kernel drives an NVIDIA card, which a container may not have been given.
        container: Whether this is a container.
        wsl: Whether this is Linux under Windows.
        apple: Whether this is a Mac.
    """

    cards: tuple[Identity, ...] = ()
    capabilities: tuple[tuple[int, int] | None, ...] = ()
    driver: str = ""
    cuda: tuple[int, int] | None = None
    failure: str = ""
    remedy: str = ""
    absent: bool = False
    nodes: bool = False
    driven: bool = False
    container: bool = False
    wsl: bool = False
    apple: bool = False

    def capability(self, device: Visible) -> tuple[int, int] | None:
        """The compute capability of a device."""
        found = zip(self.cards, self.capabilities, strict=False)
        return next((capability for card, capability in found if card.index == device.index), None)

    @property
    def is_amd(self) -> bool:
        """True if the cards are AMD's."""
        return are_amd(self.cards)


def look(timeout: float = 5.0, root: Path = Path("/")) -> Sight:
    """Ask driver and system; a driver that does not answer in time is a failure.

    A build of torch for ROCm sees AMD's cards, whatever others there are.
    """
    if is_rocm() and (cards := amd.identities(root)):
        return Sight(cards, driver=amd.driver_version(root), wsl=is_wsl(root))
    hangs = Sight(
        failure=f"The NVIDIA driver has not answered for {timeout:g} s.",
        remedy="Look for 'Xid' in 'sudo dmesg', and reboot.",
    )
    return replace(
        ask_driver(_ask, timeout) or hangs,
        nodes=any((root / "dev").glob("nvidia[0-9]*")),
        driven=any((root / "proc/driver/nvidia/gpus").glob("*")),
        container=any((root / name).exists() for name in (".dockerenv", "run/.containerenv")),
        wsl=is_wsl(root),
        apple=sys.platform == "darwin",
    )


def _ask() -> Sight:
    try:
        with closing(Nvml()) as nvml:
            cards = tuple(nvml.identities())
            capabilities = tuple(nvml.compute_capability(card.index) for card in cards)
            return Sight(cards, capabilities, nvml.driver_version or "", parse_cuda(nvml.cuda_version))
    except NvmlUnavailableError as error:
        return Sight(failure=error.reason, remedy=error.hint, absent=error.absent)


def parse_cuda(text: str | None) -> tuple[int, int] | None:
    """``13.0`` as numbers; None if it is no version."""
    major, _, minor = (text or "").partition(".")
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else None


def find_obstacle(
    sight: Sight,
    build: Build | None,
    *,
    gpu: str | None = None,
    environment: Mapping[str, str] = os.environ,
    torch_error: str = "",
) -> CardUnusableError | None:
    """The obstacle that keeps torch from a run's card; None if there is no card, or nothing is known.

    Args:
        sight: The cards and drivers found.
        build: The installed torch; None if unknown.
        gpu: ``hardware.gpu``.
        environment: Environment variables.
        torch_error: Torch's error when it was tried; empty if it was not.
    """
    if sight.apple:
        return CardUnusableError(APPLE, APPLE_REMEDY)
    if not sight.cards:
        # A driver that is not loaded, as on a laptop that saves power, leaves no node.
        if gpu is not None:
            return CardUnusableError(f"hardware.gpu is {gpu}, and there is no NVIDIA card here.", _or_cpu(sight.remedy))
        return _no_driver(sight) if sight.nodes else None
    chosen = visible_cards(sight.cards, environment)
    variable = visible_variable(sight.cards, environment)
    value = one_line(environment.get(variable, ""), 60)
    lister = "'localtune-tui doctor'" if sight.is_amd else "'nvidia-smi -L'"
    if gpu is not None:
        wanted = find_gpu(sight.cards, gpu)
        if wanted is None:
            return CardUnusableError(
                f"hardware.gpu is {one_line(gpu, 60)}, and no card is called so, or more than one.",
                f"{lister} lists {'numbers' if sight.is_amd else 'numbers and UUIDs'}.",
            )
        if not any(device.index == wanted.index for device in chosen):
            return CardUnusableError(
                f"hardware.gpu is {one_line(gpu, 60)}, and {variable} is '{value}', which hides that card.",
                "Unset one of them.",
            )
        chosen = [wanted]
    elif not chosen:
        if hides_all(sight.cards, environment):
            return None
        return CardUnusableError(
            f"{variable} is '{value}', and no card is called so.",
            _or_cpu(f"Unset it, or name one of the {len(sight.cards)} that {lister} lists"),
        )
    unusable = _unusable_amd if sight.is_amd else _unusable
    return unusable(sight, build, chosen[0], torch_error)


def find_card_not_given(sight: Sight) -> str:
    """Half a sentence on a card that the machine has and this container lacks; empty if there is none."""
    if sight.cards or sight.nodes or not (sight.driven and sight.container):
        return ""
    return "the machine has an NVIDIA card that this container was not given ('docker run --gpus all' gives it)"


def _no_driver(sight: Sight) -> CardUnusableError:
    if sight.container:
        cause = "its driver's library is missing" if sight.absent else _clause(sight.failure)
        return CardUnusableError(
            f"This container has an NVIDIA card that cannot be used: {cause}.", _or_cpu(_capital(_CONTAINER))
        )
    if sight.absent:
        return CardUnusableError(
            "There is an NVIDIA card, and its driver's library is missing.", _or_cpu("Install the driver again")
        )
    return CardUnusableError(
        f"The NVIDIA card cannot be used: {_clause(sight.failure)}.", _or_cpu(sight.remedy or "Try 'nvidia-smi'")
    )


def _unusable(sight: Sight, build: Build | None, device: Visible, torch_error: str) -> CardUnusableError | None:
    card = f"The NVIDIA card (GPU {device.index}) cannot be used"
    command = install_command(sight.cuda, sight.capability(device)) if sight.cuda else ""
    install = f"Run: {command}" if command else "Install the torch that pytorch.org/get-started/locally names"
    if build is not None and build.hip:
        cause = f"torch {build.version} is built for ROCm, which computes on AMD's cards only"
        return CardUnusableError(f"{card}: {cause}.", _or_cpu(install))
    if build is not None and build.cuda is None:
        return CardUnusableError(f"{card}: torch {build.version} is built for the CPU only.", _or_cpu(install))
    if build is not None and sight.cuda is not None and not driver_suffices(build, sight.cuda):
        oldest = OLDEST_DRIVERS.get(build.major or 0, "of this year")
        cause = (
            f"torch {build.version} is built for CUDA {build.cuda}, and driver {sight.driver or 'here'} runs CUDA "
            f"{sight.cuda[0]}.{sight.cuda[1]} at most"
        )
        where = " in Windows" if sight.wsl else ""
        newer = f"Update the NVIDIA driver{where} to {oldest} or newer"
        return CardUnusableError(f"{card}: {cause}.", _or_cpu(f"{newer}, or run: {command}" if command else newer))
    if not torch_error:
        return None
    if re.search(r"Found no NVIDIA driver|libcuda", torch_error):
        remedy = "Install the driver again"
        if sight.container:
            remedy = "Start the container with NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        return CardUnusableError(f"{card}: the driver's CUDA library (libcuda.so.1) is missing.", _or_cpu(remedy))
    return CardUnusableError(f"{card}: {_clause(torch_error)}.", _or_cpu(_remedy_of(torch_error, install)))


def _unusable_amd(sight: Sight, build: Build | None, device: Visible, torch_error: str) -> CardUnusableError | None:
    card = next(card for card in sight.cards if card.index == device.index)
    name = f"The AMD card (GPU {card.index}{f', {card.architecture}' if card.architecture else ''})"
    if not card.architecture:
        return CardUnusableError(
            f"{name} cannot be used: the driver for computing (KFD) does not list it.",
            _or_cpu("Install the driver as rocm.docs.amd.com tells, or give the container /dev/kfd"),
        )
    if torch_error:
        remedy = "Look at 'rocminfo', which may need your user in the groups render and video, or reboot"
        return CardUnusableError(f"{name} cannot be used: {_clause(torch_error)}.", _or_cpu(remedy))
    if build is None or is_proven(Proof.here(card.architecture, build.version, sight.driver)):
        return None
    return unproven(name, build)


def unproven(card: str, build: Build) -> CardUnusableError:
    """The refusal of an AMD card without a proof."""
    return CardUnusableError(
        f"{card} has not passed the self-test with torch {build.version} and this driver, and AMD's cards train only "
        "after that.",
        _or_cpu("Run 'localtune-tui selftest' once, which decides it"),
    )


def unlisted(build: Build) -> CardUnusableError:
    """The refusal of a card on which torch for ROCm computes, and which AMD's driver does not list."""
    return CardUnusableError(
        f"torch {build.version} computes on a card that the driver amdgpu does not list, so that nothing watches it.",
        _or_cpu("Use Linux itself, with /sys readable, and not WSL"),
    )


def only_card(card: str, sight: Sight | None = None, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment variable that makes a card the only visible one.

    Args:
        card: Its UUID or number.
        sight: The driver's cards; None: it is asked if needed.
        environment: Environment variables.
    """
    if not card.startswith("AMD-"):
        return {VISIBLE: card}
    cards = (sight or look()).cards
    # HIP takes numbers only.
    chosen = find_gpu(cards, card)
    return {} if chosen is None else {visible_variable(cards, environment): str(chosen.index)}


def _remedy_of(torch_error: str, install: str) -> str:
    if "no kernel image" in torch_error or "no kernels" in torch_error:
        return install
    if re.search(r"unknown error|initialization error|busy|not initialized", torch_error):
        # As after a laptop has slept.
        return "Load the driver's module again ('sudo rmmod nvidia_uvm && sudo modprobe nvidia_uvm'), or reboot"
    return "Look at the driver with 'nvidia-smi', or reboot"


def _or_cpu(remedy: str) -> str:
    return f"{remedy.rstrip('.')}; {ON_THE_CPU}." if remedy else f"{_capital(ON_THE_CPU)}."


def _clause(sentence: str) -> str:
    """A sentence as the end of another."""
    text = one_line(sentence, 200).rstrip(".")
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def process_cards(
    config: Config, sight: Sight | None = None, environment: Mapping[str, str] | None = None
) -> list[str | None]:
    """The card of each process of a run on this machine, by its UUID or number; None on a CPU, and for the only process
    of a run that names no card.

    Args:
        config: The configuration.
        sight: The driver's cards; None: it is asked if needed.
        environment: Environment variables; None: this process's.

    Raises:
        UserError: If a card is not there, or there are not enough.
    """
    named, wanted = config.distributed.named_gpus, config.distributed.processes
    if config.hardware.device == "cpu":
        return [None] * (wanted or 1)
    if not named:
        only = config.hardware.gpu
        if (wanted or 1) == 1:
            return [None] if only is None else [_named(sight or look(), only, "hardware.gpu")]
    sight = sight or look()
    if named and ALL_GPUS not in named:
        cards: list[str | None] = [_named(sight, name, "distributed.gpus") for name in named]
    else:
        seen = visible_cards(sight.cards, os.environ if environment is None else environment)
        cards = [card.uuid or str(card.index) for card in seen]
    if not cards and config.hardware.device == "auto":
        return [None] * (wanted or 1)  # on the CPU, as a run of one process would be
    if wanted is not None and wanted > len(cards):
        there = "There is 1 card" if len(cards) == 1 else f"There are {len(cards)} cards"
        raise UserError(
            f"{there} for {wanted} processes.",
            f"Set distributed.processes to {max(len(cards), 1)} at most, or name more in distributed.gpus.",
        )
    if not cards:
        raise UserError("There is no card for the run.", "Look at 'localtune-tui doctor'.")
    return cards[: wanted or len(cards)]


def _named(sight: Sight, name: str, option: str) -> str | None:
    """The card that an option names."""
    if (obstacle := find_obstacle(sight, None, gpu=name)) is not None:
        raise CardUnusableError(obstacle.message.replace("hardware.gpu", option), obstacle.hint)
    card = find_gpu(sight.cards, name)
    return None if card is None else card.uuid or str(card.index)
