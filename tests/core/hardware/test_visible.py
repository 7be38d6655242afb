"""CUDA's numbering of cards, compared with torch's reading of the same variable."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.hardware.visible import Identity, Visible, find_gpu, hides_all, visible_cards
from tests.cases import cases

from .conftest import Ask

UUIDS = tuple(f"GPU-{0x10 + index:08x}-1111-2222-3333-444455556666" for index in range(8))
MIG = tuple(f"MIG-{0xA0 + index:08x}-1111-2222-3333-444455556666" for index in range(2))
EIGHT = tuple(Identity(index, uuid, (), 10496) for index, uuid in enumerate(UUIDS))


def seen(value: str | None, cards: tuple[Identity, ...] = EIGHT, **others: str) -> list[int]:
    environment = others if value is None else {"CUDA_VISIBLE_DEVICES": value, **others}
    return [device.index for device in visible_cards(cards, environment)]


def test_cards_are_numbered_as_cuda_does() -> None:
    """Values that torch reads differently, or not at all; the others are compared with torch below."""
    assert seen(None) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert seen("NoDevFiles") == seen("9" * 6000) == []
    assert seen("1gpu2,2ampere") == [1, 2]


ENTRIES = st.one_of(
    st.integers(-2, 10).map(str),
    st.sampled_from(["", " 1", "+2", "x", "2b", *UUIDS[:3], UUIDS[4][:12], "GPU-", "GPU-z", "MIG-1"]),
)


@example("")
@example("2,9,1")
@example("2,2")
@example("GPU-00000013,GPU-00000011")
@example("GPU-0000001")
@example("GPU-00000013,1")
@given(st.lists(ENTRIES, min_size=1, max_size=4).map(",".join))
def test_the_variable_is_read_as_torch_reads_it(value: str) -> None:
    import torch.cuda as torch

    if value.startswith("MIG-"):
        return  # torch leaves these to the driver
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", value)
        found: list[Any] = list(torch._parse_visible_devices())
    if found and isinstance(found[0], str):
        found = torch._transform_uuid_to_ordinals(found, list(UUIDS))
    cut = next((place for place, number in enumerate(found) if number >= 8), len(found))
    assert seen(value) == found[:cut]


def test_the_fastest_card_is_first_only_where_the_user_wants_that() -> None:
    cards = (*EIGHT[:2], Identity(2, UUIDS[2], (), 16384))
    assert seen(None, cards) == seen(None, cards, CUDA_DEVICE_ORDER="PCI_BUS_ID") == [0, 1, 2]
    assert seen(None, cards, CUDA_DEVICE_ORDER="FASTEST_FIRST") == [2, 0, 1]
    assert seen("1", cards, CUDA_DEVICE_ORDER="FASTEST_FIRST") == [0]


@cases(
    ("variables", "indices"),
    [
        ({}, [0, 1]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, [1]),
        ({"HIP_VISIBLE_DEVICES": "1,0", "CUDA_VISIBLE_DEVICES": "0"}, [1, 0]),
        ({"HIP_VISIBLE_DEVICES": "-1"}, []),
        ({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, [0, 1]),
    ],
)
def test_hip_reads_its_own_variable_before_that_of_cuda(variables: dict[str, str], indices: list[int]) -> None:
    cards = (Identity(0, "AMD-1", vendor="AMD"), Identity(1, "AMD-2", vendor="AMD"))
    assert [device.index for device in visible_cards(cards, variables)] == indices
    assert hides_all(cards, variables) is (not indices)
    # NVIDIA's driver does not know it.
    assert len(visible_cards(EIGHT, {"HIP_VISIBLE_DEVICES": "1"})) == 8


def test_of_mig_instances_one_is_seen() -> None:
    cards = (EIGHT[0], Identity(1, UUIDS[1], MIG))
    assert visible_cards(cards, {"CUDA_VISIBLE_DEVICES": f"{MIG[1]},{MIG[0]}"}) == [Visible(1, MIG[1])]
    assert visible_cards(cards, {"CUDA_VISIBLE_DEVICES": "MIG-00000"}) == []
    assert visible_cards(cards, {"CUDA_VISIBLE_DEVICES": "1"}) == [Visible(1, MIG[0])]
    before_470 = f"MIG-{UUIDS[1]}/7/0"
    assert visible_cards(cards, {"CUDA_VISIBLE_DEVICES": before_470}) == [Visible(1, before_470)]
    assert visible_cards(cards, {"CUDA_VISIBLE_DEVICES": f"MIG-{UUIDS[0]}/7/0"}) == []


def test_a_card_is_found_by_index_and_uuid() -> None:
    cards = (*EIGHT[:5], Identity(5, UUIDS[5], MIG))
    assert find_gpu(cards, "3") == find_gpu(cards, UUIDS[3]) == find_gpu(cards, "gpu-00000013") == Visible(3, UUIDS[3])
    assert find_gpu(cards, MIG[1]) == Visible(5, MIG[1])
    assert find_gpu(cards, "5") == find_gpu(cards, UUIDS[5]) == Visible(5, MIG[0])
    assert find_gpu(cards, "8") is find_gpu(cards, "GPU-0") is find_gpu(cards, "x") is None


PROGRAM = """
import json, os
os.environ.update({environment})
from core.hardware.card import find_card
from core.hardware.sampler import snapshot
card = find_card(20, gpu={gpu!r})
print(json.dumps([card and [card.index, card.uuid, card.memory_total, card.memory_free],
                  [[device.index, device.uuid] for device in snapshot(20)]]))
"""


@cases(
    ("environment", "gpu", "card", "read"),
    [
        ({}, None, 0, list(range(8))),
        ({"CUDA_VISIBLE_DEVICES": "6,1"}, None, 6, [6, 1]),
        ({"CUDA_VISIBLE_DEVICES": "6,1"}, "1", 1, [6, 1]),
        ({"CUDA_VISIBLE_DEVICES": "6,1"}, "0", None, [6, 1]),
        ({"CUDA_VISIBLE_DEVICES": UUIDS[4][:12]}, None, 4, [4]),
        ({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, None, 2, [2, 0, 1, 3, 4, 5, 6, 7]),
        ({}, UUIDS[7], 7, list(range(8))),
        ({}, "8", None, list(range(8))),
    ],
)
def test_of_eight_cards_all_speak_of_the_same(
    ask_driver: Ask, environment: dict[str, str], gpu: str | None, card: int | None, read: list[int]
) -> None:
    found, devices = ask_driver(PROGRAM.format(environment=environment, gpu=gpu), "eight")
    assert (found and found[0]) == card
    assert [index for index, _ in devices] == read
    assert all(uuid == (MIG[0] if index == 5 else UUIDS[index]) for index, uuid in devices)


def test_of_a_divided_card_the_instance_counts(ask_driver: Ask) -> None:
    found, devices = ask_driver(PROGRAM.format(environment={"CUDA_VISIBLE_DEVICES": MIG[1]}, gpu=None), "eight")
    assert found == [5, MIG[1], 5_000_000_000, 4_500_000_000]
    assert devices == [[5, MIG[1]]]


def test_a_run_is_read_from_its_own_card(ask_driver: Ask) -> None:
    program = (
        "import json\nfrom core.hardware.sampler import Sampler\nsampler = Sampler(1000.0)\nsampler.refresh(20.0)\n"
        f"found = []\nfor only in ({UUIDS[3]!r}, 'cpu'):\n    sampler.watch(only)\n"
        "    found += [[device.kind, device.index] for device in sampler.refresh(20.0)]\nprint(json.dumps(found))\n"
    )
    assert ask_driver(program, "eight") == [["cuda", 3], ["cpu", 0]]


CARD_PROGRAM = (
    "import json, dataclasses\nfrom core.hardware.card import find_card\n"
    "card = find_card({timeout}, {environment})\n"
    "print(json.dumps(card and [card.name, card.memory_total, card.capability, card.has_bf16]))\n"
)


@cases(
    ("mode", "timeout", "environment", "expected"),
    [
        ("", 60, {}, ["NVIDIA GeForce RTX 4090", 24_000_000_000, [8, 9], True]),
        ("", 60, {"CUDA_VISIBLE_DEVICES": "1"}, ["GRID \ufffd[31mV100", 24_000_000_000, [7, 0], False]),
        ("", 60, {"CUDA_VISIBLE_DEVICES": "GPU-1234"}, None),
        ("none", 20, {}, None),
        ("mismatch", 20, {}, None),
        ("hang", 0.3, {}, None),
    ],
)
def test_the_first_visible_card_is_found_and_none_where_the_driver_is_broken(
    ask_driver: Ask, mode: str, timeout: float, environment: dict[str, str], expected: Any
) -> None:
    assert ask_driver(CARD_PROGRAM.format(timeout=timeout, environment=environment), mode) == expected
