"""Inputs of recomputed layers, moved away and back: the moved tensors, and nothing else changes.

Pinned memory and streams need a GPU; here numpy arrays and lanes of the CPU take their place.
"""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.config.schema import Config
from core.errors import UserError
from core.worker.data.batches import HostBatch
from core.worker.loss.loss import SupervisedLoss
from core.worker.model.activation_offload import (
    ActivationMover,
    ActivationOffload,
    Moved,
    available_offload,
    is_activation,
    is_large_activation,
)
from core.worker.model.full_weights import choose_weights, trained_tensors
from core.worker.model.model import LoadedModel, evaluation_mode, load_model
from core.worker.optim.optim import make_optimizer
from core.worker.optim.update import WeightUpdate
from tests.cases import cases
from tests.core.worker.loss.preference_bench import Bench, make_rows
from tests.core.worker.model.lanes import Device, PromptDevice
from tests.core.worker.steps.stepper import Stepper
from tests.short_list import long_but

WINDOW = list(range(8))
#: Of the tiny model.
LAYERS, HIDDEN = 2, 64


class Moving(Bench):
    """A bench whose windows have a way to move activations."""

    def __init__(self, directory: Path, *, dropout: float = 0.0, fail_at: int | None = None, **train: Any) -> None:
        super().__init__(directory, dropout=dropout, **train)
        self.device = PromptDevice()
        self.windows = Stepper(
            self.loaded,
            self.loss if fail_at is None else Failing(self.loaded.model, fail_at),
            self.rows,
            objective=self.objective if fail_at is None else None,
            offload=ActivationOffload(ActivationMover(self.device), is_activation),
        )

    def run(self, *, offload: bool, budget: int = 100) -> tuple[float, torch.Tensor]:
        self.loaded.model.zero_grad()
        self.windows.state.token_budget = budget
        self.windows.checkpointing.enable(offload=offload)
        torch.manual_seed(5)
        return self.windows.run(WINDOW, where="step 1").loss, self.windows.gradient()


def test_the_inputs_of_layers_are_moved_and_nothing_else(tiny_model_dir: Path) -> None:
    bench = Moving(tiny_model_dir)
    bench.run(offload=True, budget=1)
    assert len(bench.device.shapes) == LAYERS * len(WINDOW)
    assert {shape[0] for shape in bench.device.shapes} == {1}
    assert {shape[2] for shape in bench.device.shapes} == {HIDDEN}


@cases("objective", ["sft", "dpo", "orpo", "kto"])
def test_loss_and_gradients_are_bit_equal(tiny_model_dir: Path, objective: str) -> None:
    bench = Moving(tiny_model_dir, dropout=0.2, objective=objective)
    loss, wanted = bench.run(offload=False)
    assert not bench.device.shapes
    moved, gradient = bench.run(offload=True)
    assert bench.device.shapes
    assert moved == loss
    assert torch.equal(gradient, wanted)
    assert bench.windows.state.offloading
    count = len(bench.device.shapes)
    bench.run(offload=False)
    assert len(bench.device.shapes) == count, "nothing moves once it is off"
    assert bench.device.copies == {"out": count, "back": count}


def test_weights_that_change_inside_backward_become_the_same(tiny_model_dir: Path) -> None:
    """The weights of a layer change while those before it still wait for their inputs."""
    train = Config.model_validate({"data": {"train": "x"}}).train

    def weights(offload: bool) -> list[torch.Tensor]:
        loaded = load_model(tiny_model_dir, method="full", precision="fp32", device="cpu", for_training=True)
        config = Config.model_validate({"data": {"train": "x"}, "method": {"name": "full"}})
        choose_weights(loaded.model, config.method, seed=0)
        update = WeightUpdate(
            trained_tensors(loaded.model),
            lambda parameters: make_optimizer(parameters, train, weight_decay=0.0),
            states_in_fp32=True,
            weight_decay=0.0,
            max_grad_norm=0.0,
            in_backward=True,
        )
        device = PromptDevice()
        windows = Stepper(
            LoadedModel(loaded.model, loaded.tokenizer, loaded.device, loaded.dtype),
            SupervisedLoss(loaded.model),
            make_rows("sft"),
            partial=lambda: update.partial,
            whole=True,
            offload=ActivationOffload(ActivationMover(device), is_activation),
        )
        windows.checkpointing.enable(offload=offload)
        for _ in range(2):
            update.begin(1e-3)
            windows.run(WINDOW, where="a step")
            update.step()
        assert len(device.shapes) == (2 * LAYERS if offload else 0)
        return [parameter.detach() for parameter in loaded.model.parameters()]

    assert all(map(torch.equal, weights(True), weights(False)))


class Failing(SupervisedLoss):
    """Runs out of memory at one call, or at all, when the model has run."""

    def __init__(self, model: Any, at: int) -> None:
        super().__init__(model)
        self.at, self.calls = at, 0

    def hidden(
        self,
        input_ids: torch.Tensor,
        supervised: torch.Tensor,
        *,
        most_shared: int | None = None,
        host: HostBatch | None = None,
    ) -> torch.Tensor:
        self.calls += 1
        found = super().hidden(input_ids, supervised, most_shared=most_shared, host=host)
        if self.at in (0, self.calls):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return found


def test_a_window_that_ran_out_of_memory_is_run_again_with_its_activations_moved(tiny_model_dir: Path) -> None:
    failing = Moving(tiny_model_dir, dropout=0.2, fail_at=2)
    _, gradient = failing.run(offload=True)
    assert failing.windows.notices == ["memory_cut"]
    calm = Moving(tiny_model_dir, dropout=0.2)
    _, wanted = calm.run(offload=True, budget=failing.windows.state.token_budget)
    assert torch.equal(gradient, wanted)


@pytest.mark.long
def test_one_row_that_does_not_fit_is_recomputed_then_moved_and_then_named(tiny_model_dir: Path) -> None:
    bench = Moving(tiny_model_dir, fail_at=0)
    bench.windows.state.token_budget = 1
    with pytest.raises(UserError, match="recomputed from what is kept in the machine's memory") as caught:
        bench.windows.run(WINDOW[:1], where="step 1")
    # First some of its layers, then all of them.
    assert bench.windows.notices == ["memory_checkpointing", "memory_checkpointing", "memory_offload"]
    assert len(bench.device.shapes) == LAYERS
    assert "train.max_length" in caught.value.hint


def test_measuring_moves_nothing(tiny_model_dir: Path) -> None:
    bench = Moving(tiny_model_dir)
    bench.windows.checkpointing.enable(offload=True)
    ids, learned = torch.ones(2, 9, dtype=torch.long), torch.ones(2, 9, dtype=torch.bool)
    with torch.no_grad():
        bench.loss(ids, learned)
        with evaluation_mode(bench.loaded.model):
            bench.loss(ids, learned)
    assert not bench.device.shapes


def test_neither_weights_nor_masks_nor_small_tensors_are_moved() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 4))
    for tensor in (weight, weight.view(16), weight[:2], weight.t(), torch.ones(4), torch.ones(4, dtype=torch.long)):
        assert not is_activation(tensor)
    activation = torch.ones(1 << 20) * weight[0, 0]
    assert is_activation(activation)
    assert not is_large_activation(activation), "on a CPU there is nothing to move it from"
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert available_offload("on", cpu) is available_offload("off", cuda) is None
    assert all(isinstance(available_offload(choice, cuda), ActivationOffload) for choice in ("auto", "on"))


DEPTH = 5
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
        for _ in range(DEPTH):
            moved.append(self.mover.away(hidden))
            before = hidden.numpy()
            hidden = self._made(partial(_add_one, before))
            self.mover.settle()
        return moved

    def backward(self, moved: list[Moved], layers: int = DEPTH) -> None:
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
        inputs = [begin + layer for begin in (10.0, 20.0) for layer in reversed(range(DEPTH))]
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
        assert network.seen[-DEPTH:] == [20.0 + layer for layer in reversed(range(DEPTH))], seed
        assert device.in_use == 0, seed


def test_one_layer_is_fetched_ahead_and_no_more() -> None:
    device = Device()
    mover = ActivationMover(device)
    network = Network(device, mover)
    moved = network.forward(1.0)
    assert device.in_use == 0, "all inputs are on the host"
    device.most = 0
    network.backward(moved)
    assert device.fetched == DEPTH
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
    network.backward(moved, layers=DEPTH - 1)
    device.run(order)
    assert float(tensor.min()) == DEPTH
    assert network.seen == [1.0 + layer for layer in reversed(range(DEPTH - 1))]
