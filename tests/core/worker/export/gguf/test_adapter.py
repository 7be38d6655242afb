from __future__ import annotations

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
