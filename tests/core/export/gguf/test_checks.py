from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.export.gguf import checks
from core.export.gguf.checks import check_model, require_quantizer
from tests.cases import cases


@pytest.fixture
def model(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be changed."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def change(model: Path, name: str, **values: Any) -> None:
    """Change keys of a JSON file of the model."""
    path = model / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_sound_model_is_measured(model: Path, converter: Path) -> None:
    checked = check_model(model, converter)
    assert checked.dtype == "BF16"
    assert checked.largest == 312 * 64, "the embedding"
    assert checked.elements == 94_016


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
    change(model, "config.json", **values)
    with pytest.raises(UserError, match=said):
        check_model(model, converter)


@cases(
    ("values", "is_refused"),
    [
        ({"query_pre_attn_scalar": 256}, True),
        ({"query_pre_attn_scalar": 128}, False),
        # The largest size is scaled by its hidden size's share: 5376 / 32.
        ({"query_pre_attn_scalar": 168, "num_hidden_layers": 62}, False),
        ({"query_pre_attn_scalar": 128, "num_hidden_layers": 62}, True),
    ],
)
def test_gemma_is_scaled_as_llama_cpp_does_it(values: dict[str, Any], is_refused: bool) -> None:
    config = {"model_type": "gemma3_text", "head_dim": 128, "hidden_size": 5376, "num_attention_heads": 32, **values}
    if not is_refused:
        checks._check_scale(config)
        return
    with pytest.raises(UserError, match="query_pre_attn_scalar") as refused:
        checks._check_scale(config)
    assert "merged" in refused.value.hint


@cases(
    ("config", "is_refused"),
    [
        ({"model_type": "gemma2", "layer_types": ["sliding_attention", "full_attention"] * 2}, False),
        ({"model_type": "gemma2", "layer_types": ["full_attention", "sliding_attention"] * 2}, True),
        ({"model_type": "gemma3_text", "layer_types": [*["sliding_attention"] * 5, "full_attention"]}, False),
        ({"model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"] * 3}, True),
        ({"model_type": "exaone4", "sliding_window": 4096, "num_hidden_layers": 64}, False),
        ({"model_type": "exaone4", "sliding_window": 4096, "num_hidden_layers": 30}, True),
        ({"model_type": "exaone4", "sliding_window": None, "num_hidden_layers": 30}, False),
        ({"model_type": "llama"}, False),
    ],
)
def test_windows_are_where_llama_cpp_has_them(config: dict[str, Any], is_refused: bool) -> None:
    if not is_refused:
        checks._check_windows(config)
        return
    with pytest.raises(UserError, match="attention windows in other layers"):
        checks._check_windows(config)


@cases(
    ("config", "said"),
    [
        ({"model_type": "qwen3_moe", "norm_topk_prob": True}, None),
        ({"model_type": "qwen3_moe", "norm_topk_prob": False}, "always normalizes .* has norm_topk_prob = false"),
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
def test_weights_of_experts_are_what_llama_cpp_computes(config: dict[str, Any], said: str | None) -> None:
    if said is None:
        checks._check_routing(config)
        return
    with pytest.raises(UserError, match=said) as refused:
        checks._check_routing(config)
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
