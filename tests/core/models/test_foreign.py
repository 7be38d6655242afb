"""Foreign code in model descriptions: keys that ask for code, kernels or other files, at any depth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.models.check import check_model_config
from core.models.description import refuse_foreign
from tests.cases import cases

from .spoiling import copy_model, edit_json

CODE = {"AutoModel": "evil.Model"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"auto_map": CODE}, r"has auto_map"),
    ({"text_config": {"auto_map": CODE}}, r"has text_config\.auto_map"),
    ({"parts": [{"a": [{"auto_map": "evil.Model"}]}]}, r"has parts\[0\]\.a\[0\]\.auto_map"),
    ({"custom_generate": "owner/name"}, "has custom_generate"),
    ({"_attn_implementation": "kernels-community/x"}, "_attn_implementation names kernels-community/x"),
    ({"attn_implementation": "paged|owner/x@main:f"}, r"names paged\|owner/x@main:f"),
    ({"attn_implementation": {"": "sdpa", "text_config": {"": "o/x"}}}, "names o/x"),
    ({"attn_implementation": ["o/x"]}, "names o/x"),
    ({"vision_config": {"_attn_implementation_internal": "o/x"}}, r"vision_config\._attn_implementation_internal"),
    ({"_experts_implementation": "o/x"}, "_experts_implementation names o/x"),
    ({"a": {"b": {"mamba_kernel": "o/x"}}}, r"a\.b\.mamba_kernel"),
    ({"use_kernels": True}, "use_kernels asks for native code"),
    ({"text_config": {"kernel_config": {"RMSNorm": "o/x"}}}, r"text_config\.kernel_config asks"),
    ({"transformers_weights": "other.safetensors"}, "transformers_weights names other.safetensors"),
]
ACCEPTED: list[dict[str, Any]] = [
    {"_attn_implementation": "eager", "text_config": {"attn_implementation": "sdpa", "linear_conv_kernel_dim": 4}},
    {"attn_implementation": {"": "sdpa", "vision_config": "eager"}, "use_kernels": False, "kernel_config": None},
    {"auto_map": None, "vocabulary_map": {"auto_map": 7, "use_kernels": 8, "Ġkernel": 9}},
    {"auto_map": {}, "_name_or_path": "owner/name", "rope_scaling": {"type": "a/b"}},
]


@cases(("content", "says"), REFUSED)
def test_what_asks_for_the_code_of_others_is_refused_with_its_key(
    tmp_path: Path, tiny_model_dir: Path, content: dict[str, Any], says: str
) -> None:
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        model = copy_model(tiny_model_dir, tmp_path / name)
        edit_json(model / name, **content)
        with pytest.raises(UserError, match=says) as caught:
            check_model_config(model)
        assert name in caught.value.message
        assert caught.value.hint


@cases("content", ACCEPTED)
def test_what_only_looks_like_it_is_accepted(content: dict[str, Any]) -> None:
    description: dict[str, Any] = json.loads(json.dumps(content))
    refuse_foreign(description, Path("config.json"))
    assert description == content, "it is looked at, not changed"
    with pytest.raises(UserError, match=r"inner\.auto_map"):
        refuse_foreign({**description, "inner": {**description, "auto_map": CODE}}, Path("config.json"))
