from __future__ import annotations

from typing import get_args

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from core.worker.fused.ggml_quant import AT_ONCE, BLOCK, GgmlType, can_quantize, fake_quantize
from tests.cases import cases

KINDS: tuple[GgmlType, ...] = get_args(GgmlType)
#: Weights whose scales are numbers in fp16, large and small, in both types.
LARGEST, SMALLEST = 500_000.0, 2.0**-17


def reference(weights: np.ndarray, kind: GgmlType) -> np.ndarray:
    """The bytes of a file, by ggml's own package."""
    packed: np.ndarray = gguf.quantize(weights, gguf.GGMLQuantizationType[kind])
    return packed


def values(packed: np.ndarray, kind: GgmlType) -> np.ndarray:
    dequantized: np.ndarray = gguf.dequantize(packed, gguf.GGMLQuantizationType[kind])
    return dequantized


def drawn(low: float, high: float) -> st.SearchStrategy[np.ndarray]:
    """Two rows of two blocks, in which numbers occur more than once, with either sign, beside zeros."""
    number = st.one_of(
        st.just(0.0),
        st.sampled_from([high, -high, high / 2, low, -low]),
        st.floats(low, high, width=32),
        st.floats(-high, -low, width=32),
    )
    return arrays(np.float32, (2, 2 * BLOCK), elements=number)


@pytest.mark.parametrize("kind", KINDS)
@given(weights=drawn(SMALLEST, LARGEST))
def test_the_values_match_the_file(kind: GgmlType, weights: np.ndarray) -> None:
    found = fake_quantize(torch.from_numpy(weights), kind).numpy()
    # Bit for bit, but for the sign of a zero.
    assert np.array_equal(found, values(reference(weights, kind), kind))


@pytest.mark.parametrize("kind", KINDS)
@given(weights=drawn(2.0**-10, 8.0))
def test_what_is_quantized_once_gives_the_same_bytes_again(kind: GgmlType, weights: np.ndarray) -> None:
    found = fake_quantize(torch.from_numpy(weights), kind)
    assert torch.equal(fake_quantize(found, kind), found)
    again = reference(found.numpy(), kind)
    filled = np.abs(weights.reshape(-1, BLOCK)).max(axis=1) > 0
    size = again.size // len(filled)
    assert np.array_equal(again.reshape(-1, size)[filled], reference(weights, kind).reshape(-1, size)[filled])


@cases("kind", KINDS)
@cases("number", [0.0, -0.0, 2.0**-149, 1e-40, -1e-38, 1e-30, -1e-9])
def test_blocks_whose_scale_is_zero_in_fp16_are_zeros(kind: GgmlType, number: float) -> None:
    weights = torch.full((1, BLOCK), number)
    assert torch.equal(fake_quantize(weights, kind), torch.zeros(1, BLOCK))


@cases("kind", KINDS)
def test_halves_and_first_maxima_are_rounded_as_in_the_file(kind: GgmlType) -> None:
    steps = torch.arange(-16, 16) / 2.0
    rows = torch.stack([steps, -steps, steps.flip(0), torch.cat([steps[16:], -steps[16:]])])
    rows = torch.cat([rows, rows * 127 / 8, (rows * 3).round() / 3])
    assert np.array_equal(fake_quantize(rows, kind).numpy(), values(reference(rows.numpy(), kind), kind))


@cases("kind", KINDS)
@cases("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_matrix_is_quantized_in_parts(kind: GgmlType, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weights = (torch.randn(BLOCK + 1, AT_ONCE) * 0.02).to(dtype)
    found = fake_quantize(weights, kind)
    assert (found.shape, found.dtype) == (weights.shape, torch.float32)
    assert np.array_equal(found.numpy(), values(reference(weights.float().numpy(), kind), kind))
    assert torch.equal(fake_quantize(weights, kind, torch.bfloat16), found.to(torch.bfloat16))


def test_only_rows_of_whole_blocks_can_be_quantized() -> None:
    assert can_quantize(torch.Size((3, 2 * BLOCK)))
    assert not can_quantize(torch.Size((3, BLOCK + 1)))
    assert not can_quantize(torch.Size((BLOCK,)))
