"""Cards as torch numbers them: ``CUDA_VISIBLE_DEVICES`` and ``CUDA_DEVICE_ORDER`` over the cards that NVML lists, and
``HIP_VISIBLE_DEVICES`` over those of AMD's driver.

NVML lists every card by PCI bus. CUDA lists the cards of ``CUDA_VISIBLE_DEVICES``, fastest first unless
``CUDA_DEVICE_ORDER`` is ``PCI_BUS_ID``, which a worker sets where the user has not. HIP reads its own variable, and
CUDA's where that is not set (rocm.docs.amd.com, *GPU isolation techniques*).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

VISIBLE = "CUDA_VISIBLE_DEVICES"
HIP_VISIBLE = "HIP_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"


@dataclass(frozen=True)
class Identity:
    """A card as its driver lists it.

    Args:
        index: Its index there, as ``nvidia-smi`` shows it.
        uuid: ``GPU-…``, or ``AMD-…`` of AMD's; empty if the driver does not report it.
        instances: The UUIDs of its MIG instances, ``MIG-…``; a card that has any computes on them only.
        speed: Cores times clock, for ``CUDA_DEVICE_ORDER=FASTEST_FIRST``; 0 if unknown.
        vendor: ``NVIDIA`` or ``AMD``.
        architecture: That of an AMD card, ``gfx1100``; empty if its driver does not report it.
    """

    index: int
    uuid: str = ""
    instances: tuple[str, ...] = ()
    speed: int = 0
    vendor: str = "NVIDIA"
    architecture: str = ""


@dataclass(frozen=True)
class Visible:
    """A device of CUDA: a card, or a MIG instance of one.

    Args:
        index: The card's index in NVML.
        uuid: The UUID of the card or of the instance; empty if the driver does not report it.
    """

    index: int
    uuid: str = ""

    @property
    def is_instance(self) -> bool:
        """True if it is a MIG instance, whose memory is a part of the card's."""
        return self.uuid.startswith("MIG-")


def visible_cards(cards: Sequence[Identity], environment: Mapping[str, str]) -> list[Visible]:
    """The devices that CUDA sees, in its order: the first one is ``cuda:0``.

    As CUDA reads the variable: an entry that names no card ends the list, and a repeated entry empties it.

    Args:
        cards: All cards, in their driver's order.
        environment: Environment variables.
    """
    value = environment.get(visible_variable(cards, environment))
    ordered = list(cards)
    if are_amd(cards):
        # HIP has its devices by place on the bus, and takes numbers only.
        return [_whole(card) for card in (ordered if value is None else _by_ordinal(ordered, value))]
    if environment.get(ORDER) == "FASTEST_FIRST":
        # CUDA's rule is not documented; cores times clock agrees with it for cards of one generation.
        ordered.sort(key=lambda card: -card.speed)
    if value is None:
        return [_whole(card) for card in ordered]
    if value.startswith("MIG-"):
        # CUDA computes on one instance only, the first.
        return list(_instances(cards, value))[:1]
    named = _by_uuid(cards, value) if value.startswith("GPU-") else _by_ordinal(ordered, value)
    return [_whole(card) for card in named]


def are_amd(cards: Sequence[Identity]) -> bool:
    """True if these are AMD's cards; there are never some of each, as a build of torch serves one vendor."""
    return any(card.vendor == "AMD" for card in cards)


def visible_variable(cards: Sequence[Identity], environment: Mapping[str, str]) -> str:
    """The environment variable that chooses among cards."""
    return HIP_VISIBLE if are_amd(cards) and HIP_VISIBLE in environment else VISIBLE


def hides_all(cards: Sequence[Identity], environment: Mapping[str, str]) -> bool:
    """True if ``CUDA_VISIBLE_DEVICES`` hides every card on purpose: it is empty, ``-1``, or begins with no card's name.

    A number or a UUID that no card has is a mistake, and no wish to train on the CPU.
    """
    value = environment.get(visible_variable(cards, environment))
    return value is not None and re.match(r"\s*\+?\d|GPU-|MIG-", value) is None


def find_gpu(cards: Sequence[Identity], gpu: str) -> Visible | None:
    """The card that ``hardware.gpu`` names, visible or not; None if it names none, or more than one.

    Args:
        cards: All cards, in NVML's order.
        gpu: An index as ``nvidia-smi`` shows it, or the UUID of a card or of a MIG instance, or how one begins.
    """
    if gpu.isdecimal():
        return next((_whole(card) for card in cards if card.index == int(gpu)), None)
    instances = [Visible(card.index, uuid) for card in cards for uuid in card.instances]
    named = [(card.uuid, _whole(card)) for card in cards] + [(instance.uuid, instance) for instance in instances]
    found = [device for uuid, device in named if uuid.lower().startswith(gpu.lower())]
    return found[0] if len(found) == 1 else None


def _whole(card: Identity) -> Visible:
    return Visible(card.index, card.instances[0] if card.instances else card.uuid)


def _by_ordinal(cards: Sequence[Identity], value: str) -> list[Identity]:
    numbers = []
    for entry in value.split(","):
        # As C's strtoul: text after the digits is ignored.
        match = re.match(r"[+-]?\d{1,18}", entry.strip(), re.ASCII)
        number = int(match[0]) if match else -1
        if number in numbers:
            return []
        if number < 0:
            break
        numbers.append(number)
    return [cards[number] for number in takewhile(lambda number: number < len(cards), numbers)]


def _by_uuid(cards: Sequence[Identity], value: str) -> list[Identity]:
    found: list[Identity] = []
    for entry in _entries(value, "GPU-"):
        matching = [card for card in cards if card.uuid.startswith(entry)]
        if len(matching) != 1:
            break
        if matching[0] in found:
            return []
        found += matching
    return found


def _instances(cards: Sequence[Identity], value: str) -> Iterator[Visible]:
    for entry in _entries(value, "MIG-"):
        matching = [
            Visible(card.index, uuid) for card in cards for uuid in card.instances if uuid.startswith(entry)
        ] or _of_parent(cards, entry)
        if len(matching) != 1:
            return
        yield from matching


def _of_parent(cards: Sequence[Identity], entry: str) -> list[Visible]:
    """The instance by its name in drivers before 470: ``MIG-GPU-<uuid of the card>/<GPU instance>/<compute>``."""
    parent = entry.removeprefix("MIG-").partition("/")[0]
    if not parent.startswith("GPU-"):
        return []
    return [Visible(card.index, entry) for card in cards if card.uuid == parent and card.instances]


def _entries(value: str, prefix: str) -> list[str]:
    """The entries up to the first of another kind; none if one is there twice."""
    found: list[str] = []
    for entry in value.split(","):
        if entry in found:
            return []
        if not entry.startswith(prefix):
            break
        found.append(entry)
    return found
