from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.errors import UserError
from core.worker.export.gguf.adapter import _order, read_pairs, refuse_unknown
from tests.cases import cases

CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}
Q = "base_model.model.model.layers.0.self_attn.q_proj"


def save(path: Path, names: dict[str, tuple[int, int]]) -> Path:
    """A file with factors of ones."""
    import torch
    from safetensors.torch import save_file

    save_file({name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in names.items()}, path)
    return path


@cases(
    ("values", "said"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["embed_tokens"]}, "whole modules"),
        ({"trainable_token_indices": [1]}, "trained tokens"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "adapters on parameters"),
        ({"lora_bias": True}, "biases"),
        ({"bias": "all"}, "biases"),
        ({"fan_in_fan_out": True}, "transposed"),
        ({"peft_type": "VERA"}, "of the kind VERA"),
    ],
)
def test_what_a_file_cannot_have_is_refused(values: dict[str, Any], said: str) -> None:
    refuse_unknown(CONFIG)
    with pytest.raises(UserError, match=said) as refused:
        refuse_unknown(CONFIG | values)
    assert "merged" in refused.value.hint


@pytest.mark.parametrize("is_rank_stabilized", [False, True])
def test_scales_of_all_modules_become_one(tmp_path: Path, is_rank_stabilized: bool) -> None:
    """llama.cpp computes alpha / rank, with the rank of each module and one alpha."""
    other = Q.replace("q_proj", "k_proj")
    weights = save(
        tmp_path / "adapter.safetensors",
        {
            f"{Q}.lora_A.weight": (4, 6),
            f"{Q}.lora_B.weight": (8, 4),
            f"{other}.lora_A.weight": (2, 6),
            f"{other}.lora_B.weight": (8, 2),
        },
    )
    config = CONFIG | {
        "use_rslora": is_rank_stabilized,
        "rank_pattern": {"k_proj": 2},
        "alpha_pattern": {r"layers\.0\.self_attn\.k_proj": 3},
    }
    alpha, pairs = read_pairs(weights, config)
    for module, own_alpha, rank in (("q_proj", 8, 4), ("k_proj", 3, 2)):
        pair = pairs[f"model.layers.0.self_attn.{module}"]
        assert pair.down.dtype == pair.up.dtype == np.float32
        wanted = own_alpha / (math.sqrt(rank) if is_rank_stabilized else rank) * rank
        assert alpha / rank * (pair.up @ pair.down) == pytest.approx(np.full((8, 6), wanted))


def test_an_embedding_is_looked_up_and_its_own_weights_are_left_out(tmp_path: Path) -> None:
    module = "base_model.model.model.embed_tokens"
    names = {f"{module}.lora_embedding_A": (4, 20), f"{module}.lora_embedding_B": (6, 4)}
    weights = save(tmp_path / "adapter.safetensors", names | {f"{module}.base_layer.weight": (20, 6)})
    _, pairs = read_pairs(weights, CONFIG)
    assert pairs["model.embed_tokens"].down.shape == (20, 4)
    assert pairs["model.embed_tokens"].up.shape == (6, 4)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({f"{Q}.lora_A.weight": (4, 6)}, "half of what it adds to model.layers.0.self_attn.q_proj"),
        ({f"{Q}.lora_magnitude_vector": (4, 1)}, "lora_magnitude_vector"),
    ],
)
def test_what_is_no_pair_of_factors_is_named(tmp_path: Path, names: dict[str, tuple[int, int]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_pairs(save(tmp_path / "adapter.safetensors", names), CONFIG)


def test_only_whole_rows_may_be_moved() -> None:
    rows = np.repeat(np.array([[2.0], [0.0], [1.0]]), 4, axis=1)
    columns = np.tile(np.arange(4.0), (3, 1))
    order = _order(rows, columns, 4)
    assert order is not None
    assert order.tolist() == [2, 0, 1]
    assert _order(rows, columns[:, ::-1], 4) is None
    assert _order(rows * 0.5, columns, 4) is None
    assert _order(rows.T, columns.T, 4) is None
