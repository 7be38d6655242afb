"""Layers of one input: queries, keys and values, or gate and up projection, made by one function."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from transformers import DeepseekV3Config, LlamaConfig, Phi3Config, Qwen2Config

from core.worker.fused.install import fuse
from core.worker.fused.lora import SharedInput
from core.worker.fused.mode import comparable
from core.worker.model.adapters import TRAINED, switched_off
from core.worker.model.model import set_gradient_checkpointing
from tests.cases import cases
from tests.core.worker.fused.test_gated import IDS, SMALL, adapted
from tests.core.worker.fused.test_install import UNEVEN

#: Attention in fp64, as ours has its scores in fp32.
EXACT: dict[str, Any] = {**SMALL, "attn_implementation": "eager"}
LATENT: dict[str, Any] = {**EXACT, "num_key_value_heads": 4, **UNEVEN}


def learn(model: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss of a pass with its graph, and the gradients of the adapters."""
    torch.manual_seed(5)
    loss: torch.Tensor = model(input_ids=IDS, use_cache=False).logits.logsumexp(-1).mean()
    parameters = [one for one in model.parameters() if one.requires_grad]
    return loss, list(torch.autograd.grad(loss, parameters, retain_graph=True))


def functions(loss: torch.Tensor) -> Iterator[str]:
    """Names of the functions in the graph of a loss."""
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
            yield node.name()


def assert_close(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-9)


@cases(
    ("config", "targets", "sharing", "count"),
    [
        (LlamaConfig(**EXACT), "all-linear", 4, 6),
        # Queries, keys and values have biases.
        (Qwen2Config(**EXACT), "all-linear", 4, 6),
        (LlamaConfig(**EXACT), ["q_proj", "v_proj"], 2, 2),
        (LlamaConfig(**EXACT), ["k_proj", "o_proj", "up_proj"], 0, 6),
        (LlamaConfig(**EXACT), ["gate_proj", "up_proj"], 2, 2),
        # One layer makes all three.
        (Phi3Config(**EXACT), "all-linear", 0, 6),
        # Queries, and the latent that keys and values are made of.
        (DeepseekV3Config(**LATENT), "all-linear", 4, 8),
        (DeepseekV3Config(**LATENT | {"q_lora_rank": 8}), "all-linear", 4, 10),
    ],
    ids=str,
)
def test_they_are_one_function_and_learn_as_the_usual_layers(
    config: Any, targets: Any, sharing: int, count: int
) -> None:
    model = adapted(config, target_modules=targets).double()
    wanted = learn(model)
    assert fuse(model, TRAINED).sharing == sharing
    loss, gradients = learn(model)
    assert_close((loss, gradients), wanted)
    assert list(functions(loss)).count("LoraLinearBackward") == count


def test_recomputed_they_learn_to_the_bit_the_same() -> None:
    model = adapted(LlamaConfig(**SMALL))
    fuse(model, TRAINED)
    kept = learn(model)[1]
    set_gradient_checkpointing(model, True)
    for found, wanted in zip(learn(model)[1], kept, strict=True):
        assert torch.equal(found, wanted)


def test_with_dropout_each_draws_for_itself() -> None:
    model = adapted(LlamaConfig(**SMALL), dropout=0.3)
    fuse(model, TRAINED)
    found = learn(model)[1]
    with patch.object(SharedInput, "take", lambda *_: None):
        wanted = learn(model)[1]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))


def test_a_layer_whose_input_a_hook_has_changed_gets_that() -> None:
    model = adapted(LlamaConfig(**EXACT)).double()
    keys = model.get_base_model().model.layers[1].self_attn.k_proj
    keys.register_forward_pre_hook(lambda _module, inputs: (inputs[0] * 2,))
    wanted = learn(model)
    assert fuse(model, TRAINED).sharing == 4
    assert_close(learn(model), wanted)
    # From then on the layers of this attention are functions of their own.
    loss, gradients = learn(model)
    assert_close((loss, gradients), wanted)
    assert list(functions(loss)).count("LoraLinearBackward") == 8


def test_an_input_that_changes_in_place_is_another_one() -> None:
    model = adapted(LlamaConfig(**EXACT)).double()
    fuse(model, TRAINED)
    attention = model.get_base_model().model.layers[0].self_attn
    x = torch.randn(1, 5, attention.q_proj.in_features, dtype=torch.float64)

    def keys_of_changed(x: torch.Tensor) -> torch.Tensor:
        attention.q_proj(x)
        return torch.as_tensor(attention.k_proj(x.add_(1)))

    attention.forward.usual = keys_of_changed
    with torch.no_grad(), comparable():
        torch.testing.assert_close(attention(x.clone()), attention.k_proj(x + 1))


def test_adapters_that_are_off_have_no_part_in_it() -> None:
    model = adapted(LlamaConfig(**EXACT)).double()
    with switched_off(model):
        wanted = model(input_ids=IDS).logits
        fuse(model, TRAINED)
        assert_close(model(input_ids=IDS).logits, wanted)


def test_answers_with_a_cache_are_the_same() -> None:
    model = adapted(LlamaConfig(**EXACT)).double().eval()
    with torch.no_grad():
        wanted = model(input_ids=IDS).logits
        fuse(model, TRAINED)
        begun = model(input_ids=IDS[:, :-1], use_cache=True)
        ended = model(input_ids=IDS[:, -1:], past_key_values=begun.past_key_values)
    assert_close(torch.cat([begun.logits, ended.logits], dim=1), wanted)


def test_nothing_is_held_after_a_pass_that_failed() -> None:
    model = adapted(LlamaConfig(**SMALL))
    fuse(model, TRAINED)
    attention = model.get_base_model().model.layers[0].self_attn
    inputs: list[weakref.ref[torch.Tensor]] = []

    def fail(_module: Any, arguments: tuple[torch.Tensor]) -> None:
        inputs.append(weakref.ref(arguments[0]))
        raise torch.OutOfMemoryError

    handle = attention.v_proj.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        model(input_ids=IDS)
    handle.remove()
    gc.collect()
    assert [reference() for reference in inputs] == [None]
    assert learn(model)[0].isfinite()
