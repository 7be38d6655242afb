from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.export.gguf import checks
from core.export.gguf.checks import check_arithmetic, check_model, require_quantizer
from tests.cases import cases


def test_a_sound_model_is_measured(tiny_model_dir: Path, converter: Path) -> None:
    checked = check_model(tiny_model_dir, converter)
    assert (checked.dtype, checked.largest, checked.elements) == ("BF16", 312 * 64, 94_016), "the embedding is largest"


@cases(
    ("values", "said"),
    [
        ({"architectures": ["FooForCausalLM"]}, "does not know the architecture FooForCausalLM"),
        ({"hidden_act": "gelu"}, "with silu, and this one has the activation gelu"),
        ({"auto_map": {"AutoConfig": "code.Config"}}, "brings Python code of its own"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "quantized already"),
    ],
)
def test_what_would_be_another_model_is_refused(
    tiny_model_dir: Path, tmp_path: Path, converter: Path, values: dict[str, Any], said: str
) -> None:
    model = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(UserError, match=said):
        check_model(model, converter)


GEMMA = {
    "model_type": "gemma3_text",
    "head_dim": 128,
    "hidden_size": 5376,
    "num_attention_heads": 32,
    "hidden_activation": "gelu_pytorch_tanh",
}
SLIDING, FULL = "sliding_attention", "full_attention"
OTHER_WINDOWS = "attention windows in other layers"


@cases(
    ("config", "said"),
    [
        # Gemma's scale of attention; the largest size is scaled by its hidden size's share: 5376 / 32.
        (GEMMA | {"query_pre_attn_scalar": 256}, "query_pre_attn_scalar"),
        (GEMMA | {"query_pre_attn_scalar": 128}, None),
        (GEMMA | {"query_pre_attn_scalar": 168, "num_hidden_layers": 62}, None),
        (GEMMA | {"query_pre_attn_scalar": 128, "num_hidden_layers": 62}, "query_pre_attn_scalar"),
        # Layers with windows.
        ({"model_type": "gemma2", "layer_types": [SLIDING, FULL] * 2}, None),
        ({"model_type": "gemma2", "layer_types": [FULL, SLIDING] * 2}, OTHER_WINDOWS),
        ({"model_type": "gemma3_text", "layer_types": [*[SLIDING] * 5, FULL]}, None),
        ({"model_type": "gemma3_text", "layer_types": [SLIDING, FULL] * 3}, OTHER_WINDOWS),
        ({"model_type": "exaone4", "sliding_window": 4096, "num_hidden_layers": 64}, None),
        ({"model_type": "exaone4", "sliding_window": 4096, "num_hidden_layers": 30}, OTHER_WINDOWS),
        ({"model_type": "exaone4", "sliding_window": None, "num_hidden_layers": 30}, None),
        ({"model_type": "llama"}, None),
        # Weights of experts.
        ({"model_type": "qwen3_moe", "norm_topk_prob": True}, None),
        (
            {"model_type": "qwen3_moe", "norm_topk_prob": False},
            "always normalizes .* has norm_topk_prob = false",
        ),
        ({"model_type": "qwen3_moe"}, "always normalizes .* takes norm_topk_prob = false"),
        ({"model_type": "lfm2_moe"}, None),
        ({"model_type": "lfm2_moe", "norm_topk_prob": False}, "always normalizes"),
        ({"model_type": "qwen2_moe"}, None),
        ({"model_type": "qwen2_moe", "norm_topk_prob": True}, "never normalizes .* has norm_topk_prob = true"),
        ({"model_type": "olmoe", "norm_topk_prob": True}, "never normalizes"),
        # Here it is written into the file.
        ({"model_type": "deepseek_v3", "norm_topk_prob": False}, None),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(tmp_path: Path, config: dict[str, Any], said: str | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if said is None:
        check_arithmetic(tmp_path)
        return
    with pytest.raises(UserError, match=said) as refused:
        check_arithmetic(tmp_path)
    assert "merged" in refused.value.hint


def test_without_the_library_four_types_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "LIBRARY", "no_such_library")
    for quant in ("F32", "F16", "BF16", "Q8_0"):
        require_quantizer(quant)
    with pytest.raises(UserError, match="Q4_K_M is written by") as refused:
        require_quantizer("Q4_K_M")
    assert "localtune-tui[export]" in refused.value.hint


def test_experts_of_a_layer_become_one_tensor() -> None:
    from core.models.tensors import Tensor

    weights = {f"model.layers.0.mlp.experts.{number}.up_proj.weight": Tensor("BF16", (4, 8)) for number in range(6)}
    assert checks._largest(weights | {"model.embed_tokens.weight": Tensor("BF16", (10, 8))}) == 6 * 32
