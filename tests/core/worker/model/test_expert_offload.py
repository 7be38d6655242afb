"""Experts on the host: bit-equal to experts on the device."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from core.config.schema import MethodSection
from core.worker.model import model as loading
from core.worker.model.adapters import attach_adapters
from core.worker.model.expert_offload import ExpertOffload, needs_host_experts
from core.worker.model.experts import ExpertsParams4bit, experts_of, matrix_names
from core.worker.model.model import LoadedModel, load_model, set_gradient_checkpointing, trainable_parameters
from tests.core.worker.model.lanes import PromptDevice
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
        assert torch.equal(found.block(range(len(wanted))), wanted.block(range(len(wanted))))
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


def test_each_layer_is_copied_once_forward_and_once_backward(tmp_path: Path, device: PromptDevice) -> None:
    """Of a model of six layers, with activations recomputed; the two at the turn stay where they are."""
    loaded = load(write_family("qwen3_moe", tmp_path / "deep", num_hidden_layers=6), there=True)
    model = attach_adapters(loaded.model, MethodSection(rank=2, target_experts="off"), seed=0)
    model.train()
    set_gradient_checkpointing(model, True)

    def copies(work: Callable[[], Any]) -> int:
        before = device.copies["back"]
        work()
        # Of both matrices of a layer.
        return (device.copies["back"] - before) // 2

    def step() -> None:
        model(input_ids=IDS).logits.float().square().mean().backward()

    def look() -> None:
        with torch.no_grad():
            model(input_ids=IDS)

    assert copies(step) == 6 + 4
    assert copies(step) == 4 + 4
    # Without a backward pass the first layer is on its way for the next pass.
    assert copies(look) == 4 + 1
    assert copies(look) == 6
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
