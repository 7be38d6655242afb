"""Activations moved in the background: correct in any order of the device's work."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from core.worker.model.activation_offload import ActivationMover, Moved
from tests.core.worker.model.lanes import Device
from tests.short_list import long_but

LAYERS = 5
SHAPE = (2, 3)


def _add_one(before: Any, block: Any) -> None:
    np.copyto(block, before + 1.0)


class Network:
    """Layers that add 1 to their input in forward, and record the input in backward."""

    def __init__(self, device: Device, mover: ActivationMover) -> None:
        self.device, self.mover = device, mover
        self.seen: list[float] = []

    def forward(self, begin: float) -> list[Moved]:
        moved = []
        hidden = self._made(lambda block: block.fill(begin))
        for _ in range(LAYERS):
            moved.append(self.mover.away(hidden))
            before = hidden.numpy()
            hidden = self._made(partial(_add_one, before))
            self.mover.settle()
        return moved

    def backward(self, moved: list[Moved], layers: int = LAYERS) -> None:
        for _ in range(layers):
            tensor = self.mover.back(moved.pop())
            block = tensor.numpy()
            self.device.main.do(partial(self._see, block))
            # Given back when the layer's work has been given to the device, which is long before it is done.
            del tensor, block

    def _see(self, block: Any) -> None:
        self.seen.append(float(block.min()))

    def _made(self, work: Any) -> torch.Tensor:
        tensor = self.device.new(SHAPE)
        block = tensor.numpy()
        self.device.main.do(lambda: work(block))
        return tensor


@pytest.mark.parametrize("seeds", long_but([range(5)], [range(5), range(5, 40)]))
def test_what_comes_back_is_what_went_in_any_order_of_the_device(seeds: range) -> None:
    """Two passes, the device now and then doing a part of its work."""
    for seed in seeds:
        order, device = random.Random(seed), Device()
        network = Network(device, ActivationMover(device))
        for begin in (10.0, 20.0):
            moved = network.forward(begin)
            device.run(order, order.randrange(60))
            network.backward(moved)
            device.run(order, order.randrange(60))
        device.run(order)
        inputs = [begin + layer for begin in (10.0, 20.0) for layer in reversed(range(LAYERS))]
        assert network.seen == inputs, seed


@pytest.mark.parametrize("seeds", long_but([range(5)], [range(5), range(5, 20)]))
def test_a_pass_that_ended_early_leaves_nothing_behind(seeds: range) -> None:
    """As when memory runs out in backward: the prefetched activation is unused, and its memory is freed."""
    for seed in seeds:
        order, device = random.Random(seed), Device()
        network = Network(device, ActivationMover(device))
        moved = network.forward(10.0)
        network.backward(moved, layers=2)
        del moved
        device.run(order, order.randrange(40))
        network.seen.clear()
        network.backward(network.forward(20.0))
        device.run(order)
        assert network.seen[-LAYERS:] == [20.0 + layer for layer in reversed(range(LAYERS))], seed
        assert device.in_use == 0, seed


def test_one_layer_is_fetched_ahead_and_no_more() -> None:
    device = Device()
    mover = ActivationMover(device)
    network = Network(device, mover)
    moved = network.forward(1.0)
    assert device.in_use == 0, "all inputs are on the host"
    device.most = 0
    network.backward(moved)
    assert device.fetched == LAYERS
    assert device.most == 2


def test_without_memory_nothing_is_fetched_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    order, device = random.Random(0), Device()
    network = Network(device, ActivationMover(device))
    moved = network.forward(1.0)
    last = moved.pop()
    prefetch = device.on_device
    calls: list[int] = []

    def once(like: torch.Tensor, where: torch.device) -> torch.Tensor:
        calls.append(1)
        device.full = len(calls) == 2
        return prefetch(like, where)

    monkeypatch.setattr(device, "on_device", once)
    tensor = network.mover.back(last)
    assert len(calls) == 2
    network.backward(moved, layers=LAYERS - 1)
    device.run(order)
    assert float(tensor.min()) == LAYERS
    assert network.seen == [1.0 + layer for layer in reversed(range(LAYERS - 1))]
