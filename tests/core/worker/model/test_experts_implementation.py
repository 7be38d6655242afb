"""Experts of mixtures computed in 4 and 16 bits, against transformers' own on dequantized weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
import transformers

from core.memory.sizes import NF4_TABLES, quantized_bytes
from core.worker.model.experts import BLOCK, ExpertsParams4bit, experts_of, matrix_names, quantize_experts
from core.worker.model.experts_implementation import IMPLEMENTATION, group_by_expert, use_own_experts
from tests.cases import cases
from tests.core.worker.model.mixtures import FEW_MIXTURES, MIXTURES, load, logits_and_gradient, put_weights_of
from tests.families.tiny import OTHERS
from tests.short_list import long_but


@pytest.mark.parametrize("name", long_but(FEW_MIXTURES, MIXTURES))
def test_experts_in_4_bits_compute_what_transformers_does(name: str, base_of: Callable[[str], Path]) -> None:
    quantized = load(base_of(name), "qlora")
    found = dict(experts_of(quantized))
    assert found
    for module in found.values():
        assert module.config._experts_implementation == IMPLEMENTATION
        assert all(isinstance(getattr(module, matrix), ExpertsParams4bit) for matrix in matrix_names(module))
    logits, gradient = logits_and_gradient(quantized)
    wanted, wanted_gradient = logits_and_gradient(put_weights_of(quantized, load(base_of(name), "lora")))
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", long_but(FEW_MIXTURES, MIXTURES))
def test_each_expert_is_what_bitsandbytes_makes_of_a_linear_layer(name: str, base_of: Callable[[str], Path]) -> None:
    quantized, plain = load(base_of(name), "qlora"), load(base_of(name), "lora")
    for path, module in experts_of(quantized):
        for matrix in matrix_names(module):
            stacked, original = getattr(module, matrix), getattr(plain.get_submodule(path), matrix)
            for number in (0, len(original) - 1):
                data, state = bnb.functional.quantize_4bit(
                    original[number].contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
                )
                assert torch.equal(stacked.expert(number), bnb.functional.dequantize_4bit(data, state))
            experts, rows, columns = original.shape
            # The tables of values are there once a layer, and an offset for each expert.
            tables = NF4_TABLES - 4
            assert stacked.bytes() == experts * (quantized_bytes(rows * columns) - tables) + tables


SPECIAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "no gate": ("nemotron_h.modeling_nemotron_h", "NemotronHExperts", {"mlp_hidden_act": "relu2"}),
    "a norm behind": (
        "muse_spark.modeling_muse_spark",
        "MuseSparkExperts",
        {"num_local_experts": 4, "moe_hidden_size": 64, "hidden_act": "silu", "post_norm_eps": 1e-5},
    ),
}


@cases("kind", SPECIAL)
def test_experts_of_other_kinds_are_computed_alike(kind: str) -> None:
    module_name, class_name, values = SPECIAL[kind]
    __import__(f"transformers.models.{module_name}")
    made = getattr(getattr(transformers.models, module_name.split(".")[0]), module_name.split(".")[1])
    config = transformers.PretrainedConfig(
        n_routed_experts=4, hidden_size=64, moe_intermediate_size=128, moe_latent_size=None, **values
    )
    experts = getattr(made, class_name)(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    experts.requires_grad_(False)
    config._experts_implementation = "eager"
    tokens = torch.randn(10, 64, requires_grad=True)
    index = torch.stack([torch.randperm(4)[:2] for _ in range(10)])
    weights = torch.rand(10, 2, requires_grad=True)
    wanted = experts(tokens, index, weights)
    wanted_gradients = torch.autograd.grad(wanted.square().sum(), (tokens, weights))
    use_own_experts(experts)
    found = experts(tokens, index, weights)
    gradients = torch.autograd.grad(found.square().sum(), (tokens, weights))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    long_but(["mixtral", "deepseek_v3", "nemotron_h"], [name for name, family in OTHERS.items() if family.experts]),
)
def test_experts_of_further_families_compute_what_transformers_does(name: str, base_of: Callable[[str], Path]) -> None:
    base = base_of(name)
    plain, own = load(base, "lora"), load(base, "lora")
    plain.set_experts_implementation("eager")
    assert use_own_experts(own) > 0
    quantized = load(base, "qlora")
    modules = dict(experts_of(quantized))
    assert modules
    assert all(
        isinstance(getattr(one, matrix), ExpertsParams4bit) for one in modules.values() for matrix in matrix_names(one)
    )
    linear = [module for module in quantized.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert all(module.out_features != 8 for module in linear), "routers stay in 16 bit"
    twin = put_weights_of(quantized, load(base, "lora"))
    for one, other in ((own, plain), (quantized, twin)):
        logits, gradient = logits_and_gradient(one)
        wanted, wanted_gradient = logits_and_gradient(other)
        torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-4, atol=1e-5)


def test_nothing_of_the_weights_is_kept_for_backward() -> None:
    config = transformers.Qwen3MoeConfig(num_experts=8, hidden_size=128, moe_intermediate_size=256)
    experts = transformers.models.qwen3_moe.modeling_qwen3_moe.Qwen3MoeExperts(config)
    for name in matrix_names(experts):
        shape = getattr(experts, name).shape
        setattr(experts, name, quantize_experts(torch.randn(shape), shape))
    use_own_experts(experts)
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        experts(torch.randn(4, 128, requires_grad=True), torch.tensor([[0, 1]] * 4), torch.rand(4, 2))
    # Gate and rows of 8 choices; a matrix of one expert alone has 32,768 elements.
    assert sum(kept) < 8 * (6 * 256 + 2 * 128)


def test_experts_that_no_token_has_chosen_have_no_part() -> None:
    groups = group_by_expert(torch.tensor([[2, 0], [2, 5]]), 8)
    assert [(number, part.stop - part.start) for number, part in groups.parts()] == [(0, 1), (2, 2), (5, 1)]
    assert groups.order.tolist() == [1, 0, 2, 3]
    assert groups.order[groups.inverse].tolist() == [0, 1, 2, 3]
