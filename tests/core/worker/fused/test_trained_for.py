"""Layers that are trained for a file: merged with their adapters and quantized as there."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import torch
from transformers import LlamaConfig

from core.worker.fused.frozen_weight import merge_exactly
from core.worker.fused.ggml_quant import GgmlType, fake_quantize
from core.worker.fused.install import fuse
from core.worker.fused.lora import FusedLora
from core.worker.model.adapters import TRAINED
from core.worker.model.model import set_gradient_checkpointing
from tests.cases import cases
from tests.core.worker.fused.test_gated import SMALL, assert_equal_to_one_by_one, loss_and_gradients
from tests.core.worker.fused.test_gated import adapted as adapted_gated
from tests.core.worker.fused.test_lora import adapted, first_layer, gradients

KINDS: tuple[GgmlType, ...] = get_args(GgmlType)


class StraightThrough(torch.autograd.Function):
    """Fake quantization whose gradient is passed on as it is."""

    @staticmethod
    def forward(_: object, weight: torch.Tensor, kind: GgmlType) -> torch.Tensor:
        return fake_quantize(weight, kind)

    @staticmethod
    def backward(_: object, *outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        return outputs[0], None


def as_written_out(layer: object, kind: GgmlType, x: torch.Tensor) -> torch.Tensor:
    """The same with the whole merged matrix in autograd."""
    weight = FusedLora(layer, TRAINED).weight.matrix(torch.float32)
    down, up = layer.lora_A[TRAINED].weight, layer.lora_B[TRAINED].weight  # type: ignore[attr-defined]
    merged = weight + layer.scaling[TRAINED] * (up @ down)  # type: ignore[attr-defined]
    quantized: torch.Tensor = StraightThrough.apply(merged, kind)  # type: ignore[no-untyped-call]
    return torch.nn.functional.linear(x, quantized)


@cases("kind", KINDS)
@cases("method", ["qlora", "lora"])
@cases("keep", [False, True])
def test_output_and_gradients_are_those_of_a_straight_through_estimator(
    tiny_model_dir: Path, kind: GgmlType, method: str, keep: bool
) -> None:
    layer = first_layer(adapted(tiny_model_dir, method=method))
    fused = FusedLora(layer, TRAINED)
    x, weight = torch.randn(2, 5, 64), torch.randn(2, 5, layer.out_features)
    wanted = gradients(layer, lambda x: as_written_out(layer, kind, x), x, weight)
    if keep:
        fused.weight.keep(torch.float32)
    fused.weight.train_for(kind)
    found = gradients(layer, fused, x, weight)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    plain = gradients(layer, layer.forward, x, weight)
    assert not torch.allclose(found[0], plain[0], atol=1e-4)


@cases("kind", KINDS)
def test_a_kept_matrix_follows_its_adapter_when_asked(tiny_model_dir: Path, kind: GgmlType) -> None:
    layer = first_layer(adapted(tiny_model_dir))
    weight = FusedLora(layer, TRAINED).weight
    weight.keep(torch.float32)
    stored = weight.matrix(torch.float32)
    weight.train_for(kind)
    down, up, scale = layer.lora_A[TRAINED].weight, layer.lora_B[TRAINED].weight, layer.scaling[TRAINED]

    def wanted() -> torch.Tensor:
        return fake_quantize(merge_exactly(stored, down.detach(), up.detach(), scale), kind)

    before = weight.merged(down, up, scale, torch.float32)
    assert torch.equal(before, wanted())
    up.data.mul_(2)
    assert weight.merged(down, up, scale, torch.float32) is before
    weight.forget_merged()
    assert torch.equal(weight.merged(down, up, scale, torch.float32), wanted())
    weight.train_for(None)
    assert torch.equal(weight.matrix(torch.float32), stored)
    weight.drop()
    assert not weight.is_kept


def test_a_single_token_goes_through_the_quantized_weights_as_well(tiny_model_dir: Path) -> None:
    layer = first_layer(adapted(tiny_model_dir))
    fused = FusedLora(layer, TRAINED)
    fused.weight.train_for("Q4_0")
    x = torch.randn(1, 1, 64)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), as_written_out(layer, "Q4_0", x))
        layer._disable_adapters = True
        torch.testing.assert_close(fused(x), layer(x))


@cases("kind", KINDS)
@cases("dropout", [0.0, 0.4])
@cases("recomputes", [False, True])
def test_gated_networks_learn_to_the_bit_as_one_by_one(kind: GgmlType, dropout: float, recomputes: bool) -> None:
    model = adapted_gated(LlamaConfig(**SMALL | {"intermediate_size": 64}), dropout=dropout)
    fused = fuse(model, TRAINED)
    assert fused.gated == 2
    set_gradient_checkpointing(model, recomputes)
    plain = loss_and_gradients(model)
    for layer in fused.lora:
        layer.weight.train_for(kind)
    assert not torch.equal(assert_equal_to_one_by_one(model)[0], plain[0])
