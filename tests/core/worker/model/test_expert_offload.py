"""Experts on the host: bit-equal to experts on the device."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from core.config.schema import MethodSection
from core.worker.fused.experts import Block
from core.worker.model import model as loading
from core.worker.model.adapters import attach_adapters
from core.worker.model.expert_offload import ExpertOffload, HostStore, HostWeights, WeightMover, needs_host_experts
from core.worker.model.experts import ExpertsParams4bit, experts_of, matrix_names
from core.worker.model.model import LoadedModel, load_model, set_gradient_checkpointing, trainable_parameters
from tests.cases import cases
from tests.core.worker.model.lanes import Device, PromptDevice
from tests.core.worker.model.mixtures import FEW_MIXTURES, MIXTURES
from tests.families.tiny import write_family
from tests.short_list import long_but

IDS = torch.arange(3, 51).reshape(2, 24)
CPU = torch.device("cpu")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> PromptDevice:
    """Lanes of the CPU, which copies into a buffer at once as a GPU would do later."""
    lanes = PromptDevice()
    monkeypatch.setattr(loading, "cuda_offload", lambda where: ExpertOffload(lanes, where))
    return lanes


def load(base: Path, *, there: bool, precision: str = "bf16") -> LoadedModel:
    return load_model(base, method="qlora", precision=precision, device="cpu", for_training=True, host_experts=there)


def parameters_of(model: Any) -> list[tuple[str, ExpertsParams4bit]]:
    return [
        (f"{name}.{matrix}", getattr(module, matrix))
        for name, module in experts_of(model)
        for matrix in matrix_names(module)
    ]


@pytest.mark.parametrize("name", long_but(FEW_MIXTURES, MIXTURES))
def test_experts_go_to_the_host_while_they_are_loaded_and_come_back_as_they_were(
    name: str, base_of: Callable[[str], Path], device: PromptDevice
) -> None:
    here, there = load(base_of(name), there=False), load(base_of(name), there=True)
    assert here.offload is None
    assert there.offload is not None
    moved = 0
    for (path, wanted), (other, found) in zip(parameters_of(here.model), parameters_of(there.model), strict=True):
        assert path == other
        assert found.shape == wanted.shape
        assert found.bytes() == wanted.bytes()
        # A single byte is left of the weights, and of the scales.
        assert found.data.untyped_storage().nbytes() == found.quant_state.absmax.untyped_storage().nbytes() == 1
        moved += wanted.data.nbytes + wanted.quant_state.absmax.nbytes
        numbers = slice(0, len(wanted))
        every = Block(range(len(wanted)), 0, numbers, numbers)
        assert torch.equal(found.block(every), wanted.block(every))
        assert torch.equal(found.expert(1), wanted.expert(1))
    assert moved <= there.offload.store.bytes
    message, hint = there.offload.tell()
    assert "layer by layer" in message
    assert not hint


def passes(loaded: LoadedModel, method: MethodSection, *, recompute: bool, kept_layers: int) -> list[torch.Tensor]:
    """Losses and gradients of two steps, logits without gradients between them, and an answer."""
    model = attach_adapters(loaded.model, method, seed=1)
    model.train()
    set_gradient_checkpointing(model, recompute, kept_layers=kept_layers)
    torch.manual_seed(0)
    found = []
    for step in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=IDS + step).logits
        (logits.float().square().mean() * 100).backward()
        found.append(logits.detach())
        found += [parameter.grad for parameter in trainable_parameters(model) if parameter.grad is not None]
        with torch.no_grad():
            found.append(model(input_ids=IDS[:, :7]).logits)
    model.eval()
    answer = model.generate(input_ids=IDS[:1], max_new_tokens=4, do_sample=False)
    return [*found, answer]


@pytest.mark.parametrize(
    ("name", "way"),
    long_but(
        [("qwen3_moe", "kept"), ("qwen3_5_moe", "some kept"), ("gpt_oss", "recomputed")],
        itertools.product(MIXTURES, ["kept", "recomputed", "some kept"]),
    ),
)
def test_training_evaluation_and_answers_are_bit_equal(
    name: str, way: str, base_of: Callable[[str], Path], device: PromptDevice
) -> None:
    method = MethodSection(rank=4, target_experts="on")
    kept = 1 if way == "some kept" else 0
    here, there = (
        passes(load(base_of(name), there=there), method, recompute=way != "kept", kept_layers=kept)
        for there in (False, True)
    )
    assert len(here) == len(there) > 10
    assert all(map(torch.equal, here, there))
    assert device.copies["back"] > 0


def copies_of(device: PromptDevice, work: Any) -> int:
    before = device.copies["back"]
    work()
    return device.copies["back"] - before


def test_each_layer_is_copied_once_forward_and_once_backward(tmp_path: Path, device: PromptDevice) -> None:
    """Of a model of six layers, with activations recomputed; the two at the turn stay where they are."""
    loaded = load(write_family("qwen3_moe", tmp_path / "deep", num_hidden_layers=6), there=True)
    model = attach_adapters(loaded.model, MethodSection(rank=2, target_experts="off"), seed=0)
    model.train()
    set_gradient_checkpointing(model, True)

    def step() -> None:
        model(input_ids=IDS).logits.float().square().mean().backward()

    def look() -> None:
        with torch.no_grad():
            model(input_ids=IDS)

    # Two matrices of each layer.
    assert copies_of(device, step) == 2 * (6 + 4)
    assert copies_of(device, step) == 2 * (4 + 4)
    # Without a backward pass the first layer is on its way for the next pass.
    assert copies_of(device, look) == 2 * (4 + 1)
    assert copies_of(device, look) == 2 * 6
    mover = loaded.offload.mover if loaded.offload is not None else None
    assert mover is not None
    assert len(mover._buffers) == 2


def test_a_copy_of_the_model_has_the_same_experts(base_of: Callable[[str], Path], device: PromptDevice) -> None:
    model = load(base_of("qwen3_moe"), there=True).model
    copied = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, copied(input_ids=IDS).logits)
    without = load(base_of("qwen3"), there=True)
    assert without.offload is not None
    assert without.offload.store.bytes == 0
    with torch.no_grad():
        without.model(input_ids=IDS)


def test_a_model_that_answers_needs_the_host_where_the_card_is_too_small(
    base_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = torch.device("cuda")
    assert not needs_host_experts(base_of("qwen3_moe"), CPU, 2)
    for free, needed in ((8 << 30, False), (1 << 30, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_, free=free: (free, 24 << 30))
        assert needs_host_experts(base_of("qwen3_moe"), card, 2) is needed
        assert not needs_host_experts(base_of("qwen3"), card, 2)
        assert not needs_host_experts(tmp_path / "nothing", card, 2)


DEPTH = 5


def weights_of(number: int) -> list[torch.Tensor]:
    """Tensors of several shapes and dtypes, of which each layer has its own values; the later ones are larger."""
    generator = torch.Generator().manual_seed(number)
    return [
        torch.randint(0, 255, (40 + number, 7), dtype=torch.uint8, generator=generator),
        torch.randn(3, 5 + number, generator=generator),
        torch.randn(9, generator=generator).to(torch.bfloat16),
    ]


def stored(lanes: Any, layers: int = DEPTH, slab: int = 700) -> list[HostWeights]:
    store = HostStore(lanes, slab)
    return [store.keep(weights_of(number)) for number in range(layers)]


def assert_are(tensors: tuple[torch.Tensor, ...], number: int) -> None:
    for found, expected in zip(tensors, weights_of(number), strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


@cases("slab", [64, 512, 700, 1 << 20])
def test_the_store_keeps_every_byte_in_slabs(slab: int) -> None:
    store = HostStore(PromptDevice(), slab)
    kept = [store.keep(weights_of(number)) for number in range(DEPTH)]
    for number, layer in enumerate(kept):
        assert_are(layer.tensors(), number)
    used = sum(layer.bytes for layer in kept)
    assert used <= store.bytes < used + slab
    assert store.unpinned == 0
    mixed = torch.arange(12.0).view(3, 4).T
    assert torch.equal(store.keep([mixed]).tensors()[0], mixed), "not contiguous"


def test_where_nothing_can_be_pinned_ordinary_memory_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    device = PromptDevice()
    monkeypatch.setattr(device, "on_host", mock.Mock(side_effect=RuntimeError("CUDA error: out of memory")))
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

    def forward(self, *, returns: bool, layers: int = DEPTH) -> None:
        for number in range(layers):
            self.use(number, returns=returns)
            self.use(number, returns=returns)

    def backward(self, down_to: int = 0) -> None:
        """Each layer is asked for by its recomputation, and by its backward pass."""
        for number in reversed(range(down_to, DEPTH)):
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
            run.forward(returns=False, layers=order.choice([DEPTH, 2]))
            run.use(order.randrange(DEPTH), returns=order.random() < 0.5)
        device.run(order)
        assert len(run.seen) >= 2 * (3 * DEPTH), seed
        assert all(run.seen), seed


def test_a_layer_is_copied_once_for_each_direction_and_is_there_before_it_is_asked_for() -> None:
    device = PromptDevice()
    mover = WeightMover(device, stored(device, slab=1 << 20), CPU)

    def up(returns: bool) -> list[int]:
        return [copies_of(device, lambda n=number: mover.fetch(n, returns=returns)) for number in range(DEPTH)]

    def down() -> list[int]:
        return [copies_of(device, lambda n=number: mover.fetch(n, returns=True)) for number in reversed(range(DEPTH))]

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
