"""Gradient checkpointing of some layers: the same gradients to the last bit, whichever layers are recomputed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from core.worker.model.model import LoadedModel, decoder_layers, set_gradient_checkpointing
from core.worker.steps import GradientCheckpointing
from tests.cases import cases
from tests.core.worker.steps.stepper import make_state
from tests.core.worker.steps.test_window import WINDOW, Setup

#: Small shapes of the families whose memory is planned.
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_local_experts": 4}
LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_key_value_heads": 4,
}
PLAIN = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "phi3", "starcoder2", "olmo2")
FAMILIES: dict[str, dict[str, Any]] = {
    **dict.fromkeys((*PLAIN, "granite", "smollm3"), SHAPE),
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": 64},
    "gpt_neox": {**SHAPE, "hidden_size": 32},
    **{family: {**SHAPE, **EXPERTS} for family in ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss")},
    **{family: {**SHAPE, **EXPERTS, **LATENT} for family in ("deepseek_v2", "deepseek_v3")},
}


def recomputed(model: Any) -> Iterator[bool]:
    """For each layer, True if it is recomputed."""
    for layer in decoder_layers(model):
        yield layer.gradient_checkpointing


@cases("family", FAMILIES)
def test_every_family_has_a_switch_for_each_layer(family: str) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family]))
    assert set_gradient_checkpointing(model, True, kept_layers=3) == 3
    assert list(recomputed(model)) == [True, False, False, False]
    assert set_gradient_checkpointing(model, True) == 0
    assert list(recomputed(model)) == [True] * 4
    assert set_gradient_checkpointing(model, False, kept_layers=3) == 0
    assert list(recomputed(model)) == [False] * 4
    ran: list[int] = []
    set_gradient_checkpointing(model.train(), True, kept_layers=3)
    for place, layer in enumerate(decoder_layers(model)):
        layer.register_forward_pre_hook(lambda *_, place=place: ran.append(place))
        # Within the layer, so that a recomputation calls it again.
        child = next(layer.children())
        child.register_forward_pre_hook(lambda *_, place=place: ran.append(place))
    model(input_ids=torch.randint(3, 60, (1, 8)), use_cache=False).logits.sum().backward()
    assert [ran.count(place) for place in range(4)] == [3, 2, 2, 2]


@cases("kept", [0, 1, 2])
def test_gradients_are_the_same_to_the_last_bit(tiny_model_dir: Path, kept: int) -> None:
    """With dropout, whose masks are drawn again."""
    gradients = []
    for chosen in (None, kept):
        setup = Setup(tiny_model_dir, dropout=0.3)
        if chosen is not None:
            setup.windows.checkpointing.enable(kept_layers=chosen)
            layers = len(decoder_layers(setup.loaded.model))
            assert sum(recomputed(setup.loaded.model)) == layers - setup.windows.state.kept_layers
        torch.manual_seed(7)
        setup.windows.run(WINDOW, where="step 1")
        gradients.append(setup.gradient())
    assert torch.equal(*gradients)


def test_fewer_layers_are_kept_each_time_memory_runs_out() -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **{**SHAPE, "num_hidden_layers": 32}))
    checkpointing = GradientCheckpointing(model, make_state())
    found: list[int] = []
    while not found or found[-1]:
        checkpointing.enable(kept_layers=checkpointing.fewer_kept_layers())
        found.append(checkpointing.state.kept_layers)
        assert sum(recomputed(model)) == 32 - found[-1]
    assert found == [16, 8, 4, 0]


def test_a_model_without_switches_per_layer_is_recomputed_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE))
    state = make_state()
    state.checkpointing, state.kept_layers = True, 2
    # As in models that call the checkpoint function themselves.
    monkeypatch.setattr("core.worker.model.model.decoder_layers", lambda _: [torch.nn.Linear(1, 1) for _ in range(4)])
    assert GradientCheckpointing(model, state).state.kept_layers == 0
    assert all(recomputed(model))


def test_kept_layers_are_saved_and_states_of_earlier_versions_have_none(tiny_model_dir: Path) -> None:
    setup = Setup(tiny_model_dir)
    loaded: LoadedModel = setup.loaded
    state = setup.windows.state
    setup.windows.checkpointing.enable(kept_layers=1)
    assert state.kept_layers == 1
    facts = {**state.facts(), "step": 3}
    assert facts["kept_layers"] == 1
    state.kept_layers = 0
    state.restore(facts)
    setup.windows.checkpointing.apply()
    assert (state.kept_layers, list(recomputed(loaded.model))[-1]) == (1, False)
    del facts["kept_layers"]
    state.restore(facts)
    setup.windows.checkpointing.apply()
    assert (state.checkpointing, state.kept_layers) == (True, 0)
    assert all(recomputed(loaded.model))
