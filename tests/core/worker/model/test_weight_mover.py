"""Frozen weights brought to a device layer by layer: right in whatever order it does its work."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from core.worker.model.expert_offload import HostStore, HostWeights, WeightMover
from tests.cases import cases
from tests.core.worker.model.lanes import Device, PromptDevice
from tests.short_list import long_but

LAYERS = 5
CPU = torch.device("cpu")


def weights_of(number: int) -> list[torch.Tensor]:
    """Tensors of several shapes and dtypes, of which each layer has its own values; the later ones are larger."""
    generator = torch.Generator().manual_seed(number)
    return [
        torch.randint(0, 255, (40 + number, 7), dtype=torch.uint8, generator=generator),
        torch.randn(3, 5 + number, generator=generator),
        torch.randn(9, generator=generator).to(torch.bfloat16),
    ]


def stored(lanes: Any, layers: int = LAYERS, slab: int = 700) -> list[HostWeights]:
    store = HostStore(lanes, slab)
    return [store.keep(weights_of(number)) for number in range(layers)]


def assert_are(tensors: tuple[torch.Tensor, ...], number: int) -> None:
    for found, expected in zip(tensors, weights_of(number), strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


@cases("slab", [64, 512, 700, 1 << 20])
def test_the_store_keeps_every_byte_in_slabs(slab: int) -> None:
    store = HostStore(PromptDevice(), slab)
    kept = [store.keep(weights_of(number)) for number in range(LAYERS)]
    for number, layer in enumerate(kept):
        assert_are(layer.tensors(), number)
    used = sum(layer.bytes for layer in kept)
    assert used <= store.bytes < used + slab
    assert store.unpinned == 0
    mixed = torch.arange(12.0).view(3, 4).T
    assert torch.equal(store.keep([mixed]).tensors()[0], mixed), "not contiguous"


def test_where_nothing_can_be_pinned_ordinary_memory_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    device = PromptDevice()

    def refuse(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(device, "on_host", refuse)
    store = HostStore(device, 4096)
    assert_are(store.keep(weights_of(1)).tensors(), 1)
    assert store.unpinned == store.bytes == 4096


class Pass:
    """Fetches layers as a model does; the device checks the weights when it does the work."""

    def __init__(self, device: Device, mover: WeightMover) -> None:
        self.device, self.mover = device, mover
        self.seen: list[bool] = []

    def use(self, number: int, *, returns: bool) -> None:
        tensors = self.mover.fetch(number, returns=returns)
        self.device.main.do(lambda: self._see(tensors, number))

    def _see(self, tensors: tuple[torch.Tensor, ...], number: int) -> None:
        expected = weights_of(number)
        self.seen.append(all(map(torch.equal, tensors, expected)))

    def forward(self, *, returns: bool, layers: int = LAYERS) -> None:
        for number in range(layers):
            self.use(number, returns=returns)
            self.use(number, returns=returns)

    def backward(self, down_to: int = 0) -> None:
        """Each layer is asked for by its recomputation, and by its backward pass."""
        for number in reversed(range(down_to, LAYERS)):
            self.use(number, returns=True)
            self.use(number, returns=True)


@pytest.mark.parametrize("seeds", long_but([range(5)], [range(5), range(5, 40)]))
def test_the_device_sees_each_layers_own_weights_in_any_order_of_its_work(seeds: range) -> None:
    """Training, an evaluation, a pass cut short by a lack of memory, a layer out of turn."""
    for seed in seeds:
        order, device = random.Random(seed), Device()
        run = Pass(device, WeightMover(device, stored(device), CPU))
        for _ in range(2):
            run.forward(returns=True)
            device.run(order, order.randrange(80))
            run.backward(down_to=order.choice([0, 0, 3]))
            device.run(order, order.randrange(80))
            run.forward(returns=False, layers=order.choice([LAYERS, 2]))
            run.use(order.randrange(LAYERS), returns=order.random() < 0.5)
        device.run(order)
        assert len(run.seen) >= 2 * (3 * LAYERS), seed
        assert all(run.seen), seed


def copies_of(device: PromptDevice, work: Any) -> int:
    before = device.copies["back"]
    work()
    return device.copies["back"] - before


def test_a_layer_is_copied_once_for_each_direction_and_is_there_before_it_is_asked_for() -> None:
    device = PromptDevice()
    mover = WeightMover(device, stored(device, slab=1 << 20), CPU)

    def up(returns: bool) -> list[int]:
        return [copies_of(device, lambda n=number: mover.fetch(n, returns=returns)) for number in range(LAYERS)]

    def down() -> list[int]:
        return [copies_of(device, lambda n=number: mover.fetch(n, returns=True)) for number in reversed(range(LAYERS))]

    # The first layer and the second at once, then one ahead; at the turns both buffers hold the next layers.
    assert up(returns=True) == [2, 1, 1, 1, 0]
    assert down() == [0, 1, 1, 1, 0]
    assert up(returns=True) == [0, 1, 1, 1, 0]
    assert down() == [0, 1, 1, 1, 0]
    # Where no backward pass follows, the first layer is fetched for the next pass.
    assert up(returns=False) == [0, 1, 1, 1, 1]
    assert up(returns=False) == [1, 1, 1, 1, 1]


def test_two_layers_buffers_are_all_that_is_taken_of_the_device() -> None:
    device = Device()
    layers = stored(device)
    run = Pass(device, WeightMover(device, layers, CPU))
    run.forward(returns=True)
    run.backward()
    assert device.fetched == device.in_use == device.most == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "full", True)
        with pytest.raises(torch.OutOfMemoryError):
            WeightMover(device, layers, CPU)
        run.forward(returns=False)  # takes no more


@cases("layers", [1, 2])
def test_what_fits_into_the_buffers_is_copied_once(layers: int) -> None:
    device = PromptDevice()
    mover = WeightMover(device, stored(device, layers, slab=1 << 20), CPU)

    def passes() -> None:
        for number in [*range(layers), *reversed(range(layers))] * 3:
            assert_are(mover.fetch(number, returns=True), number)

    assert copies_of(device, passes) == layers
