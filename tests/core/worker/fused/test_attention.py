from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from core.memory.batching import BLOCK_ROW, SHORT_ROW
from core.worker.fused import attention
from core.worker.fused.attention import Group, Layout, LayoutError, masks_left_out
from tests.cases import cases

HEADS, KEY_HEADS, SIZE = 4, 2, 8
#: Untyped, as transformers passes any arguments.
attend: Any = attention._attention
attend_groups: Any = attention._attend_groups
make_mask: Any = attention._mask


class Module:
    """The attributes of an attention layer that its function reads."""

    num_key_value_groups = HEADS // KEY_HEADS
    is_causal = True


def tensors(rows: int, length: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # Heads and tokens are transposed, as they come from the projections.
    made = [torch.randn(rows, length, count, SIZE, generator=generator) for count in (HEADS, KEY_HEADS, KEY_HEADS)]
    return [tensor.transpose(1, 2).requires_grad_() for tensor in made]


def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """By the definition, in fp64."""
    query, key, value = query.double(), key.double(), value.double()
    key, value = (tensor.repeat_interleave(HEADS // KEY_HEADS, dim=1) for tensor in (key, value))
    scores = query @ key.transpose(2, 3) / SIZE**0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(scores.shape[-1] - scores.shape[-2] + 1)
    shares: torch.Tensor = scores.masked_fill(later, float("-inf")).softmax(dim=-1)
    return shares @ value


def gradients(out: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
    return list(torch.autograd.grad((out.float() * weight).sum(), inputs))


def assert_same(out: torch.Tensor, wanted: torch.Tensor, inputs: list[torch.Tensor]) -> None:
    """Outputs and gradients agree."""
    torch.testing.assert_close(out, wanted.float(), atol=1e-5, rtol=1e-4)
    for ours, theirs in zip(gradients(out, inputs), gradients(wanted, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


#: Lengths with blocks that are full and not, and one for torch's kernel.
LONG = (SHORT_ROW + 1, SHORT_ROW + 64, BLOCK_ROW + 1)


@cases(
    ("length", "value_size"), [(2, SIZE), (7, SIZE), (33, SIZE), *((length, SIZE) for length in LONG), (9, 5), (300, 5)]
)
def test_outputs_and_gradients_match_the_definition(length: int, value_size: int) -> None:
    query, key, value = tensors(3, length)
    inputs = [query, key, value[..., :value_size].detach().requires_grad_()]
    out, _ = attend(Module(), *inputs, None)
    assert_same(out, plain(*inputs).transpose(1, 2), inputs)


def test_rows_in_blocks_after_a_shared_prefix_match_the_definition() -> None:
    layout = Layout((Group(70, 2, SHORT_ROW), Group(SHORT_ROW + 9, 1, 80)))
    inputs = flat_inputs(layout)
    assert_same(attend_groups(*inputs, layout, None), alone(inputs, layout), inputs)


def test_rows_in_blocks_keep_no_probabilities_and_no_repeated_keys() -> None:
    kept: list[tuple[int, ...]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    inputs = tensors(2, SHORT_ROW + 1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        attend(Module(), *inputs, None)
    assert kept == [tuple(tensor.shape) for tensor in inputs]


@cases("length", [64, SHORT_ROW + 44])
def test_bf16_is_as_near_to_the_definition_as_torchs_own_kernel(length: int) -> None:
    inputs = [tensor.detach().bfloat16().requires_grad_() for tensor in tensors(4, length)]
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, _ = attend(Module(), *inputs, None)
        query, key, value = inputs
        theirs = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2)
    exact = plain(*wide).transpose(1, 2)
    truth = [exact, *gradients(exact, wide)]
    for found, peer, true in zip(
        [ours, *gradients(ours, inputs)], [theirs, *gradients(theirs, inputs)], truth, strict=True
    ):
        assert (found - true).norm() <= 1.2 * (peer - true).norm()


@cases("length", [9, SHORT_ROW + 1])
def test_backward_within_autocast_is_that_outside(length: int) -> None:
    inputs = [tensor.detach().bfloat16().requires_grad_() for tensor in tensors(2, length)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = attend(Module(), *inputs, None)
        within = torch.autograd.grad(out.sum(), inputs, retain_graph=True)
    for ours, theirs in zip(within, torch.autograd.grad(out.sum(), inputs), strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


LAYOUT = Layout((Group(5, 3, 6), Group(0, 2, 4), Group(0, 1, 9)))


def flat_inputs(layout: Layout = LAYOUT) -> list[torch.Tensor]:
    return tensors(1, sum(group.tokens for group in layout.groups), seed=4)


def alone(inputs: list[torch.Tensor], layout: Layout = LAYOUT) -> torch.Tensor:
    """Each row by itself, its prefix before it, put where it lies in the sequence."""
    out = torch.zeros(1, inputs[0].shape[2], HEADS, SIZE, dtype=torch.float64)
    at = 0
    for group in layout.groups:
        prefix = list(range(at, at + group.prefix))
        at += group.prefix
        for _ in range(group.rows):
            places = prefix + list(range(at, at + group.width))
            found = plain(*(tensor[:, :, places] for tensor in inputs)).transpose(1, 2)
            out[:, places] = found
            at += group.width
    return out


def test_rows_of_a_layout_see_their_prefix_and_themselves_alone() -> None:
    inputs = flat_inputs()
    wanted = alone(inputs)
    assert_same(attend_groups(*inputs, LAYOUT, None), wanted, inputs)
    with torch.no_grad():
        torch.testing.assert_close(attend_groups(*inputs, LAYOUT, None), wanted.float(), atol=1e-5, rtol=1e-4)


def test_masks_of_long_rows_go_with_their_batch() -> None:
    layout = Layout((Group(3, 2, BLOCK_ROW + 1),))
    size = (BLOCK_ROW + 1, BLOCK_ROW + 4)
    attend(Module(), *tensors(1, layout.groups[0].tokens), None, layout=layout)

    def masks() -> list[int]:
        return [id(item) for item in gc.get_objects() if type(item) is torch.Tensor and item.shape == size]

    assert len(masks()) == 1, "one for all layers"
    del layout
    gc.collect()
    assert masks() == []


@cases("asked", [{"softcap": 30.0}, {"s_aux": torch.zeros(4)}, {"dropout": 0.1}, {"sliding_window": 10}])
def test_a_layout_is_refused_where_a_layer_asks_for_more(asked: dict[str, Any]) -> None:
    with pytest.raises(LayoutError):
        attend(Module(), *flat_inputs(), None, layout=LAYOUT, **asked)


def test_a_window_that_all_rows_fit_in_changes_nothing() -> None:
    inputs = flat_inputs()
    out, _ = attend(Module(), *inputs, None, layout=LAYOUT, sliding_window=LAYOUT.longest)
    torch.testing.assert_close(out, attend_groups(*inputs, LAYOUT, None))


def test_no_mask_is_made_for_a_layout_but_one_for_a_window_is_refused() -> None:
    with masks_left_out(LAYOUT):
        assert make_mask(batch_size=1, q_length=4, kv_length=4) is None
        with pytest.raises(LayoutError, match="11 tokens pass the attention window of 10"):
            make_mask(batch_size=1, q_length=4, kv_length=4, local_size=10)
