"""Grouped products against a loop over the experts."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from core.worker.fused import experts as grouped
from core.worker.fused.experts import (
    Block,
    GroupedProducts,
    Offsets,
    grouped_product,
    is_aligned,
    multiply,
    multiply_between,
    plan_rounds,
    row_experts,
    takes_kernel,
)
from tests.cases import cases

#: Rows of each expert: alike, some without any, all with one, one row, none at all.
COUNTS = {
    "alike": [5, 4, 6, 5, 5, 5],
    "some without": [0, 0, 7, 0, 1, 40, 0],
    "one has all": [0, 90, 0, 0],
    "nearly all": [1, 1, 120, 1, 1, 1, 1, 1],
    "a single row": [0, 1],
    "none": [0, 0, 0],
}


def offsets_of(counts: list[int]) -> Offsets:
    ends = list(itertools.accumulate(counts))
    return Offsets(ends, torch.tensor(ends, dtype=torch.int32))


def tensors(counts: list[int], inputs: int = 12, outputs: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(sum(counts), inputs, generator=generator)
    return rows, torch.randn(len(counts), outputs, inputs, generator=generator)


@pytest.fixture(params=["padded", "kernel"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways: batched products over padded groups, and torch's kernel, which a CPU has in a slow form."""
    if request.param == "kernel":
        monkeypatch.setattr(grouped, "takes_kernel", lambda *_: True)
    return str(request.param)


@cases("at_once", [1, 2, 3, 100])
@cases("transpose", [True, False])
@cases("name", COUNTS)
def test_rows_are_multiplied_with_the_matrix_of_their_expert(
    name: str, transpose: bool, at_once: int, way: str
) -> None:
    counts = COUNTS[name]
    # Sizes that the kernel takes, which a CPU checks as well; others are padded.
    rows, matrices = tensors(counts, *((16, 8) if way == "kernel" else (12, 9)))
    matrices = matrices if transpose else matrices.transpose(1, 2).contiguous()
    asked: list[list[int]] = []

    def matrices_of(block: Block) -> torch.Tensor:
        asked.append(list(block.numbers))
        return matrices[block.index]

    width = 8 if way == "kernel" else 9
    offsets, products = offsets_of(counts), GroupedProducts()
    found = grouped_product(rows, offsets, matrices_of, at_once, width, products, transpose=transpose)
    both = zip(torch.split(rows, counts), matrices.transpose(1, 2) if transpose else matrices, strict=True)
    torch.testing.assert_close(found, torch.cat([part @ matrix for part, matrix in both]), rtol=1e-5, atol=1e-5)
    # Experts without rows are not asked for, the others once.
    assert [number for numbers in asked for number in numbers] == [n for n, count in enumerate(counts) if count]
    assert all(len(numbers) == at_once for numbers in asked[:-1])


@cases("name", COUNTS)
def test_gradients_of_matrices_are_sums_over_the_rows_of_an_expert(name: str, way: str) -> None:
    counts = COUNTS[name]
    left, _ = tensors(counts, inputs=4)
    right, _ = tensors(counts, inputs=8 if way == "kernel" else 7)
    found = multiply_between(left, right, offsets_of(counts), GroupedProducts())
    wanted = torch.stack([a.T @ b for a, b in zip(torch.split(left, counts), torch.split(right, counts), strict=True)])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@cases("seed", range(20))
def test_any_numbers_of_rows(seed: int) -> None:
    order = random.Random(seed)
    counts = [order.choice([0, 1, 2, 17, 60, 200]) for _ in range(order.randrange(1, 20))]
    counts[order.randrange(len(counts))] += 1
    rows, matrices = tensors(counts)
    found = multiply(rows, matrices.transpose(1, 2), offsets_of(counts), GroupedProducts())
    wanted = torch.cat([part @ matrix.T for part, matrix in zip(torch.split(rows, counts), matrices, strict=True)])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def rows_of(counts: list[int]) -> tuple[int, int]:
    """Padded rows, and matrices that are copied for further rounds."""
    (first, length), *more = plan_rounds(counts)
    padded = sum(len(groups) * long for groups, long in more)
    return len(first) * length + padded, sum(len(groups) for groups, _ in more)


@cases(
    ("counts", "padded", "copies"),
    [
        # All alike: one round without padding. A bit uneven: padded to the longest, which is cheaper than a copy.
        ([128] * 64, 128 * 64, 0),
        ([120, 140] * 32, 140 * 64, 0),
        # One of 128 experts has most rows: it continues alone.
        ([32] * 127 + [4000], 128 * 64 + 4000 - 64, 1),
        ([1] * 8, 8, 0),
    ],
)
def test_groups_are_padded_where_that_is_cheaper_than_another_round(
    counts: list[int], padded: int, copies: int
) -> None:
    found = rows_of(counts)
    assert found[0] <= padded
    assert found[1] == copies


def test_the_expert_of_each_row() -> None:
    assert row_experts(offsets_of([2, 0, 3])).tolist() == [0, 0, 2, 2, 2]


@cases(
    ("tensor", "aligned"),
    [
        (torch.empty(4, 8, dtype=torch.bfloat16), True),
        (torch.empty(4, 12, dtype=torch.bfloat16), False),
        (torch.empty(3, 16, 6, dtype=torch.bfloat16).transpose(1, 2), False),
        (torch.empty(3, 6, 16, dtype=torch.bfloat16).transpose(1, 2), True),
        (torch.empty(6, 8, dtype=torch.bfloat16).T, True),
        (torch.empty(64, dtype=torch.bfloat16)[1:49].view(3, 16), False),
        (torch.empty(4, 32, dtype=torch.bfloat16)[:, ::2], False),
    ],
)
def test_the_kernel_is_given_what_it_takes(tensor: torch.Tensor, aligned: bool) -> None:
    """The conditions are torch's own checks of the operator's arguments."""
    assert is_aligned(tensor) is aligned
    assert not takes_kernel(tensor, tensor), "there is no GPU"
    if tensor.storage_offset() == 0 and tensor.dim() == 2:
        meta: Any = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        other = torch.empty(2, tensor.shape[1], 8, dtype=tensor.dtype, device="meta")
        try:
            torch._grouped_mm(meta, other, offs=torch.empty(2, dtype=torch.int32, device="meta"))
            taken = True
        except RuntimeError:
            taken = False
        assert taken is aligned


@cases(("capability", "hip", "taken"), [((9, 0), None, True), ((8, 9), None, False), ((9, 0), "7.2", False)], ids=str)
def test_the_kernel_is_for_cards_of_nvidia(
    capability: tuple[int, int], hip: str | None, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    # The address of a tensor without values is not known.
    monkeypatch.setattr(grouped, "is_aligned", lambda _matrix: True)
    with FakeTensorMode():
        rows = torch.empty(4, 8, dtype=torch.bfloat16, device="cuda")
    assert takes_kernel(rows, rows) is taken
