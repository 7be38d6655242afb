"""Model classes and saved quantizations, and the methods that accept them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.models.architectures import check_quantization, saved_quantization

NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.mark.parametrize(
    ("said", "name"),
    [
        (None, None),
        ("nonsense", None),
        (NF4, "bitsandbytes NF4"),
        ({"load_in_4bit": True}, "bitsandbytes 4-bit (FP4)"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes 8-bit"),
        ({"quant_method": "gptq", "bits": 4}, "GPTQ"),
        ({"quant_method": "awq"}, "AWQ"),
        ({}, "UNKNOWN"),
    ],
)
def test_how_weights_were_saved_is_told(said: Any, name: str | None) -> None:
    assert saved_quantization({"quantization_config": said}) == name
    assert saved_quantization({"text_config": {"quantization_config": said}}) == name


def test_only_qlora_takes_what_is_quantized_and_only_nf4() -> None:
    where = Path("model")
    check_quantization({}, where, "lora")
    check_quantization({"quantization_config": NF4}, where, "qlora")
    with pytest.raises(UserError, match=r"method\.name is lora") as caught:
        check_quantization({"quantization_config": NF4}, where, "lora")
    assert "Set method.name to qlora" in caught.value.hint
    for method in ("gptq", "awq", "fp8"):
        with pytest.raises(UserError, match=f"saved quantized \\({method.upper()}\\)") as caught:
            check_quantization({"quantization_config": {"quant_method": method}}, where, "qlora")
        assert "before it was quantized" in caught.value.hint
