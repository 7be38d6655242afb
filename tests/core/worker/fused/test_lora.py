from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch

from core.config.schema import MethodSection
from core.worker.fused import lora
from core.worker.fused.cases import frozen_linear
from core.worker.fused.frozen_weight import FrozenWeight
from core.worker.fused.lora import AdaptedLayer, FusedLora, add_adapters, can_fuse, has_faster_kernel
from core.worker.fused.mode import comparable
from core.worker.model.adapters import TRAINED, attach_adapters, switched_off
from core.worker.model.model import load_model
from tests.cases import cases


def adapted(directory: Path, *, method: str = "qlora", **options: Any) -> Any:
    """A model whose adapters have an effect."""
    loaded = load_model(directory, method=method, precision="fp32", device="cpu")
    model = attach_adapters(loaded.model, MethodSection(rank=4, **options), seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.05, generator=generator)
    return model


def first_layer(model: Any) -> Any:
    return next(module for module in model.modules() if can_fuse(module, TRAINED))


def gradients(layer: Any, forward: Any, x: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    """Output, and gradients of the input and of both matrices."""
    x = x.clone().requires_grad_()
    down, up = layer.lora_A[TRAINED].weight, layer.lora_B[TRAINED].weight
    down.grad = up.grad = None
    out = forward(x)
    (out.float() * weight).sum().backward()
    assert x.grad is not None
    return [out.detach(), x.grad, down.grad, up.grad]


@cases("method", ["qlora", "lora"])
@cases("dropout", [0.0, 0.3])
@cases("keep", [False, True])
def test_output_and_gradients_match_the_layer(tiny_model_dir: Path, method: str, dropout: float, keep: bool) -> None:
    layer = first_layer(adapted(tiny_model_dir, method=method, dropout=dropout))
    usual, fused = layer.forward, FusedLora(layer, TRAINED)
    if keep:
        fused.weight.keep(torch.float32)
    assert fused.weight.is_kept == (keep and method == "qlora")
    x, weight = torch.randn(2, 5, 64), torch.randn(2, 5, layer.out_features)
    torch.manual_seed(3)
    wanted = gradients(layer, usual, x, weight)
    torch.manual_seed(3)
    found = gradients(layer, fused, x, weight)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_autocast_to_bf16_rounds_no_more_than_the_layer(tiny_model_dir: Path) -> None:
    layer = first_layer(adapted(tiny_model_dir, method="lora"))
    fused = FusedLora(layer, TRAINED)
    x, weight = torch.randn(4, 16, 64), torch.randn(4, 16, layer.out_features)
    exact = gradients(layer, layer.forward, x, weight)

    def under_autocast(forward: Any) -> list[torch.Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = gradients(layer, forward, x, weight)
        assert out[0].dtype == torch.bfloat16 or forward is not fused
        return out

    for ours, theirs, true in zip(under_autocast(fused), under_autocast(layer.forward), exact, strict=True):
        assert (ours.float() - true).norm() <= 1.1 * (theirs.float() - true).norm() + 1e-6


@cases("dropped", [False, True])
def test_layers_of_one_input_match_their_definition(dropped: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = draw(2, 5, 12).requires_grad_()
    seen = (x * draw(2, 5, 12).gt(0) * 2) if dropped else x
    layers, wanted, learned = [], [], [x]
    for outputs, rank, bias in ((8, 2, True), (6, 3, False), (20, 2, True)):
        base = torch.nn.Linear(12, outputs, bias=bias, dtype=torch.float64).requires_grad_(False)
        down, up = draw(rank, 12).requires_grad_(), draw(outputs, rank).requires_grad_()
        layers.append(AdaptedLayer(FrozenWeight(base), down, up, 0.5))
        wanted.append(base(x) + 0.5 * (seen @ down.T) @ up.T)
        learned += [down, up]
    found = add_adapters(x, seen if dropped else None, layers, torch.float64)
    weights = [draw(*out.shape) for out in wanted]
    torch.testing.assert_close(list(found), wanted)
    gradients = [torch.autograd.grad(list(outs), learned, weights, retain_graph=True) for outs in (found, wanted)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@cases("kind", [torch.nn.Linear, bnb.nn.Linear4bit], ids=lambda kind: kind.__name__)
def test_adding_to_the_small_product_rounds_less_than_adding_to_the_large_one(kind: type[torch.nn.Module]) -> None:
    weight = FrozenWeight(frozen_linear(kind, torch.device("cpu"), torch.bfloat16))
    generator = torch.Generator().manual_seed(0)
    outputs, inputs = weight.shape
    shapes = ((256, inputs), (16, inputs), (outputs, 16), (256, outputs))
    scales = (1.0, inputs**-0.5, 0.05, 1.0)
    x, down, up, gradient = (
        (torch.randn(shape, generator=generator) * scale).bfloat16()
        for shape, scale in zip(shapes, scales, strict=True)
    )
    x.requires_grad_()
    (found,) = add_adapters(x, None, [AdaptedLayer(weight, down, up, 1.0)], torch.bfloat16)
    (to_x,) = torch.autograd.grad(found, x, gradient)
    matrix, low, low_gradient = weight.matrix(torch.bfloat16), x.detach() @ down.T, gradient @ up
    other, to_other = (x.detach() @ matrix.T).addmm_(low, up.T), (gradient @ matrix).addmm_(low_gradient, down)
    wide = [tensor.detach().double() for tensor in (x, matrix, low, up, gradient, low_gradient, down)]
    exact = wide[0] @ wide[1].T + wide[2] @ wide[3].T
    to_exact = wide[4] @ wide[1] + wide[5] @ wide[6]
    for ours, theirs, true in ((found, other, exact), (to_x, to_other, to_exact)):
        assert (ours - true).norm() < 0.9 * (theirs - true).norm()


def test_nothing_is_fused_that_does_more_than_one_plain_adapter(tiny_model_dir: Path) -> None:
    for options in ({"dora": True}, {"init": "pissa"}):
        model = adapted(tiny_model_dir, method="lora", **options)
        assert not any(can_fuse(module, TRAINED) for module in model.modules())


@cases("keep", [False, True])
@cases("tokens", [1, 3])
def test_without_a_gradient_it_is_the_layer_in_evaluation_mode(tiny_model_dir: Path, keep: bool, tokens: int) -> None:
    model = adapted(tiny_model_dir, dropout=0.5)
    layer = first_layer(model)
    fused = FusedLora(layer, TRAINED)
    usual, layer.forward = layer.forward, fused
    if keep:
        fused.weight.keep(torch.float32)
    x = torch.randn(1, tokens, 64)
    with torch.no_grad():
        with switched_off(model):
            torch.testing.assert_close(layer(x), layer.get_base_layer()(x))
        model.eval()
        torch.testing.assert_close(layer(x), usual(x), atol=1e-5, rtol=1e-4)
        layer.merge()
        torch.testing.assert_close(layer(x), layer.get_base_layer()(x), atol=0, rtol=0)


def test_a_gradient_goes_through_a_layer_whose_adapter_is_off(tiny_model_dir: Path) -> None:
    model = adapted(tiny_model_dir)
    layer = first_layer(model)
    layer.forward = fused = FusedLora(layer, TRAINED)
    fused.weight.keep(torch.float32)
    x = torch.randn(1, 3, 64, requires_grad=True)
    with switched_off(model):
        layer(x).sum().backward()
    assert x.grad is not None
    wanted = fused.weight.matrix(torch.float32).sum(dim=0).expand(1, 3, -1)
    torch.testing.assert_close(x.grad, wanted, atol=1e-5, rtol=1e-4)


def test_dropped_copies_are_made_anew_from_four_bits(tiny_model_dir: Path) -> None:
    layer = first_layer(adapted(tiny_model_dir))
    weight = FusedLora(layer, TRAINED).weight
    before = weight.matrix(torch.bfloat16)
    weight.keep(torch.bfloat16)
    kept = weight.matrix(torch.bfloat16)
    assert weight.matrix(torch.bfloat16) is kept
    weight.drop()
    assert not weight.is_kept
    for matrix in (kept, weight.matrix(torch.bfloat16)):
        torch.testing.assert_close(matrix, before, atol=0, rtol=0)


@cases(
    ("rows", "device", "quantized", "kept", "faster"),
    [
        (1, "cpu", True, False, True),
        (1, "cpu", True, True, False),
        (2, "cpu", True, False, False),
        (64, "cuda", True, False, True),
        (65, "cuda", True, False, False),
        (8, "cuda", True, True, False),
        (8, "cuda", False, False, False),
        (1, "cuda", False, False, True),
    ],
)
def test_few_rows_are_multiplied_by_the_layers_own_kernel(
    rows: int, device: str, quantized: bool, kept: bool, faster: bool
) -> None:
    assert has_faster_kernel(rows, device, quantized=quantized, kept=kept) is faster


@cases("tokens", [1, 3])
@cases("method", ["qlora", "lora"])
def test_what_is_compared_never_goes_through_another_kernel(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, method: str, tokens: int
) -> None:
    """Adapters that have no effect yet, on and off: to the bit the same."""
    model = adapted(tiny_model_dir, method=method)
    layer = first_layer(model)
    layer.lora_B[TRAINED].weight.data.zero_()
    fused = FusedLora(layer, TRAINED)

    monkeypatch.setattr(fused, "_usual", lambda *_, **__: pytest.fail("the layer's own forward"))
    monkeypatch.setattr(lora, "has_faster_kernel", lambda *_, **__: True)
    x = torch.randn(1, tokens, 64)
    on = fused(x.clone().requires_grad_())
    with switched_off(model), torch.no_grad(), comparable():
        off = fused(x)
    assert torch.equal(on.detach(), off)
