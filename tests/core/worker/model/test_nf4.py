from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.worker.model.nf4 import AT_ONCE, dequantize_rightly, quantize_4bit
from tests.cases import cases

#: Program that quantizes with unpatched bitsandbytes.
REFERENCE = """
import sys, torch, bitsandbytes
tensors = torch.load(sys.argv[1], weights_only=True)
torch.save([torch.ops.bitsandbytes.quantize_4bit(*tensor, torch.uint8) for tensor in tensors], sys.argv[2])
"""


def samples() -> list[tuple[torch.Tensor, int, str]]:
    torch.manual_seed(0)
    bounds = torch.linspace(-1, 1, 4096)
    weights = [
        torch.randn(96, 64).to(torch.bfloat16),
        torch.randn(7, 9),
        torch.randn(3, 64).half(),
        torch.zeros(4, 64),
        torch.cat([torch.ones(1), bounds, bounds.nextafter(torch.tensor(2.0))])[:4096],
        torch.randn(AT_ONCE + 100),
        torch.tensor([float("inf"), *[1.0] * 63, float("nan"), *[-1.0] * 63]),
        torch.full((64,), 1e-42),
    ]
    return [(tensor, size, kind) for tensor in weights for size in (64, 128) for kind in ("nf4", "fp4")]


@pytest.mark.long
def test_it_is_what_bitsandbytes_makes(tmp_path: Path) -> None:
    torch.save(samples(), tmp_path / "weights")
    subprocess.run([sys.executable, "-c", REFERENCE, str(tmp_path / "weights"), str(tmp_path / "wanted")], check=True)
    wanted = torch.load(tmp_path / "wanted", weights_only=True)
    for (tensor, size, kind), (packed, largest) in zip(samples(), wanted, strict=True):
        found = quantize_4bit(tensor, size, kind, torch.uint8)
        assert torch.equal(found[0], packed), (tensor.shape, size, kind)
        torch.testing.assert_close(found[1], largest, rtol=0, atol=0, equal_nan=True)


@given(st.lists(st.floats(-10, 10, width=32), min_size=64, max_size=64))
def test_every_weight_becomes_the_nearest_value(drawn: list[float]) -> None:
    weights = torch.tensor(drawn)
    packed, largest = quantize_4bit(weights, 64, "nf4", torch.uint8)
    values = bnb.functional.get_4bit_type("nf4", device="cpu")
    codes = torch.stack([packed[:, 0] >> 4, packed[:, 0] & 15], dim=1).flatten().int()
    scaled = weights / largest.clamp(min=1e-38)
    nearest = (scaled[:, None] - values[None]).abs().amin(dim=1)
    torch.testing.assert_close((scaled - values[codes]).abs(), nearest, rtol=0, atol=1e-6)
    # Other storage holds the same bytes.
    stored, _ = quantize_4bit(weights, 64, "nf4", torch.bfloat16)
    assert stored.dtype == torch.bfloat16
    assert torch.equal(stored.view(torch.uint8).flatten(), packed.flatten())


@pytest.mark.long
@cases("dtype", [torch.float32, torch.bfloat16, torch.float16])
@cases(
    "shape", [(70, 32), (64, 16), (5, 48), (3, 80), (96, 96), (64, 160), (7, 33), (9, 100), (96, 64), (2, 3, 96), (96,)]
)
def test_weights_of_any_width_come_back(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Each is its value of NF4 by the scale of its block, blocks being counted through the whole tensor."""
    dequantize_rightly()
    torch.manual_seed(0)
    weights = torch.randn(shape).to(dtype)
    packed, state = bnb.functional.quantize_4bit(weights, quant_type="nf4")
    restored = bnb.functional.dequantize_4bit(packed, state)
    codes = torch.stack([packed[:, 0] >> 4, packed[:, 0] & 15], dim=1).flatten()[: weights.numel()].long()
    values = bnb.functional.get_4bit_type("nf4", device="cpu")
    wanted = values[codes] * state.absmax.repeat_interleave(64)[: weights.numel()]
    torch.testing.assert_close(restored, wanted.view(shape).to(dtype))


@cases("width", [96, 100, 64])
@cases("rows", [1, 5])
def test_products_of_layers_of_any_width_are_those_of_their_weights(width: int, rows: int) -> None:
    """With gradients and without, where bitsandbytes takes another operator."""
    dequantize_rightly()
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(width, 80, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    weight = layer.weight.detach().clone()
    layer = layer.to("cpu")
    inputs = torch.randn(rows, width, requires_grad=True)
    product = layer(inputs)
    product.square().sum().backward()
    assert inputs.grad is not None
    with torch.no_grad():
        assert torch.equal(layer(inputs), product)
    restored = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    # The error of 4 bits on uniform weights; wrong scales would exceed it by half.
    assert (restored - weight).abs().max() < 0.16 * weight.abs().max()
    torch.testing.assert_close(product, inputs @ restored.T)
    torch.testing.assert_close(inputs.grad, 2 * product.detach() @ restored)
