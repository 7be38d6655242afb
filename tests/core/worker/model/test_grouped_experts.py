"""Experts of real families computed grouped, as on a GPU, against one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from core.config.schema import MethodSection
from core.worker.fused.experts import grouped_product
from core.worker.model import experts_implementation as experts
from core.worker.model.adapters import attach_adapters
from core.worker.model.experts import quantize_experts
from core.worker.model.model import load_model, set_gradient_checkpointing, trainable_parameters
from tests.cases import cases
from tests.core.worker.model.mixtures import MIXTURES
from tests.short_list import long_but

IDS = torch.arange(3, 51).reshape(2, 24)


def step_of(base: Path, method: str, target_experts: Any) -> list[torch.Tensor]:
    """Logits, and the gradients of all adapters, whose matrices up are not zero as they are at first."""
    loaded = load_model(base, method=method, precision="fp32", device="cpu", for_training=True)
    adapters = MethodSection(name=method, rank=4, target_experts=target_experts)  # type: ignore[arg-type]
    model = attach_adapters(loaded.model, adapters, seed=1)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in trainable_parameters(model):
            parameter.normal_(std=0.1)
    model.train()
    set_gradient_checkpointing(model, True)
    logits = model(input_ids=IDS).logits
    (logits.square().mean() * 100).backward()
    return [logits.detach(), *(parameter.grad for parameter in trainable_parameters(model))]


@pytest.mark.parametrize(
    ("name", "method", "target_experts"),
    long_but(
        [("qwen3_moe", "qlora", "on"), ("qwen3_5_moe", "lora", "on"), ("gpt_oss", "qlora", "off")],
        [(name, *how) for name in MIXTURES for how in (("qlora", "on"), ("qlora", "off"), ("lora", "on"))],
    ),
)
def test_a_step_is_the_same_grouped_and_one_by_one(
    name: str, method: str, target_experts: str, base_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    single = step_of(base_of(name), method, target_experts)
    calls: list[int] = []
    plain = grouped_product

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        return plain(*args, **kwargs)

    monkeypatch.setattr(experts, "is_grouped", lambda _: True)
    monkeypatch.setattr(experts, "grouped_product", counted)
    grouped = step_of(base_of(name), method, target_experts)
    assert calls
    assert len(single) == len(grouped)
    for wanted, found in zip(single, grouped, strict=True):
        assert (found is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@cases("at_once", [1, 3, 8])
def test_blocks_of_dequantized_experts_are_bounded(
    at_once: int, base_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    single = step_of(base_of("qwen3_moe"), "qlora", "off")
    sizes: list[int] = []
    plain = experts._block

    def seen(weight: Any, dtype: torch.dtype, numbers: Sequence[int]) -> torch.Tensor:
        sizes.append(len(numbers))
        return plain(weight, dtype, numbers)

    monkeypatch.setattr(experts, "is_grouped", lambda _: True)
    monkeypatch.setattr(experts, "experts_at_once", lambda *_: at_once)
    monkeypatch.setattr(experts, "_block", seen)
    grouped = step_of(base_of("qwen3_moe"), "qlora", "off")
    assert max(sizes) <= at_once
    for wanted, found in zip(single, grouped, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@cases("shape", [(5, 64, 96), (3, 24, 64), (4, 10, 20), (2, 256, 192)])
@cases("dtype", [torch.float32, torch.bfloat16])
def test_experts_dequantized_together_are_those_dequantized_alone(shape: Any, dtype: torch.dtype) -> None:
    """To the last bit, where their blocks follow each other and where they do not."""
    torch.manual_seed(0)
    original = torch.randn(shape, dtype=dtype)
    weight = quantize_experts(original, shape)
    # Rows of 96 numbers are no whole blocks of 64.
    assert (weight.block(range(shape[0])) - original).abs().max() < 0.7
    for numbers in (range(shape[0]), [1], [0, shape[0] - 1]):
        together = weight.block(numbers)
        assert together.dtype == dtype
        assert torch.equal(together, torch.stack([weight.expert(number) for number in numbers]))
