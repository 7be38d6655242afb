from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)
from transformers.models.olmo2.modeling_olmo2 import apply_rotary_pos_emb as usual_wide

from core.worker.fused.install import fuse
from core.worker.fused.rotary import apply_rotary_pos_emb
from core.worker.loss.loss import SupervisedLoss
from core.worker.model.adapters import TRAINED
from tests.cases import cases
from tests.core.worker.fused.test_gated import SMALL as GATED
from tests.core.worker.fused.test_gated import adapted, of_own_weights

SMALL: dict[str, Any] = {**GATED, "max_position_embeddings": 128}
#: Values narrower than queries.
UNEVEN: dict[str, Any] = {
    "kv_lora_rank": 8,
    "q_lora_rank": None,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 8,
    "v_head_dim": 4,
    "first_k_dense_replace": 2,
}
IDS = torch.arange(60).reshape(3, 20) % 61 + 1
LEARNED = torch.arange(20).expand(3, 20) > 9


def loss_and_gradients(model: Any) -> list[torch.Tensor]:
    loss = SupervisedLoss(model)(IDS, LEARNED)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [loss, *torch.autograd.grad(loss, parameters)]


@cases(
    ("config", "layers", "norms"),
    [
        (LlamaConfig(**SMALL), 14, 5),
        (MistralConfig(**SMALL, sliding_window=8), 14, 5),
        (Qwen3Config(**SMALL), 14, 9),
        (Gemma2Config(**SMALL), 14, 0),
        (Gemma3TextConfig(**SMALL), 14, 0),
        # Half of a head's features are turned.
        (GPTNeoXConfig(**SMALL, rotary_pct=0.5), 8, 0),
        (DeepseekV3Config(**SMALL | {"num_key_value_heads": 4, **UNEVEN}), 14, 7),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_a_fused_model_learns_as_the_usual_one(config: Any, layers: int, norms: int) -> None:
    model = adapted(config)
    wanted = loss_and_gradients(model)
    fused = fuse(model, TRAINED)
    assert len(fused.lora) == layers
    # Gemma adds one to the weight of its norms: a trial finds that out.
    assert fused.norms == norms
    for ours, theirs in zip(loss_and_gradients(model), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@cases(
    ("config", "norms"),
    [(LlamaConfig(**SMALL), 5), (Qwen3Config(**SMALL), 9), (Gemma3TextConfig(**SMALL), 0)],
    ids=lambda value: getattr(value, "model_type", ""),
)
@cases("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_fused_model_whose_weights_are_trained_learns_as_in_fp64(config: Any, norms: int, dtype: torch.dtype) -> None:
    """Its gradients are as near to those of fp64 as the usual model's, for the norms' weights too."""
    model = of_own_weights(config, dtype=dtype)
    exact = loss_and_gradients(copy.deepcopy(model).double())
    usual = loss_and_gradients(model)
    fused = fuse(model, TRAINED)
    assert (fused.norms, fused.gated) == (norms, 2)
    for ours, theirs, true in zip(loss_and_gradients(model), usual, exact, strict=True):
        assert ours.dtype == theirs.dtype
        error, allowed = (float(((found - true).norm() / true.norm()).detach()) for found in (ours, theirs))
        assert error <= 1.5 * allowed + 1e-6


def test_a_model_of_another_make_is_left_as_it_is() -> None:
    still = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=64, **still)
    model = adapted(config)
    wanted = loss_and_gradients(model)
    fused = fuse(model, TRAINED)
    assert (fused.lora, fused.norms, fused.rotary) == ((), 0, False)
    for ours, theirs in zip(loss_and_gradients(model), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


#: Of Falcon, whose attention is its own.
FALCON = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}


@cases(
    ("config", "kept"),
    [
        (LlamaConfig(**SMALL, attn_implementation="eager"), "eager"),
        (FalconConfig(**FALCON, max_position_embeddings=64), "sdpa"),
    ],
)
def test_other_attention_is_left_as_it_is(config: Any, kept: str) -> None:
    model = adapted(config)
    assert not fuse(model, TRAINED).attention
    assert model.get_base_model().config._attn_implementation == kept


def test_a_large_weight_does_not_hide_what_a_norm_adds() -> None:
    model = AutoModelForCausalLM.from_config(Gemma3TextConfig(**SMALL), dtype=torch.bfloat16).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.fill_(0.5)[0] = 500.0
    assert fuse(model, TRAINED).norms == 0


def test_features_in_16_bit_stay_so_where_angles_are_in_fp32() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, heads, 5, 16, generator=generator).bfloat16().requires_grad_() for heads in (4, 2))
    angles = torch.randn(1, 5, 8, generator=generator).repeat(1, 1, 2)
    found = []
    for function in (usual_wide, apply_rotary_pos_emb):
        out = function(q, k, angles.cos(), angles.sin())
        total = torch.stack([tensor.float().square().sum() for tensor in out]).sum()
        found.append([*out, *torch.autograd.grad(total, [q, k])])
    for theirs, ours in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype == torch.bfloat16
        # Theirs rounds each half's gradient before it adds them.
        torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)
