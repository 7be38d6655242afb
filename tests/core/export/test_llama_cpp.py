from __future__ import annotations

import pytest

from core.errors import UserError
from core.export import llama_cpp
from core.export.llama_cpp import MEAN_BITS, gguf_bytes, require_quantizer
from core.export.request import QUANTS
from core.models.architecture.architecture import read_architecture
from tests.core.models.architecture import published


def test_the_mean_of_a_model_whose_shapes_are_not_known_is_that_of_usual_models() -> None:
    architecture = read_architecture(published.LLAMA_3_8B, "config.json")
    for quant in QUANTS:
        found = gguf_bytes(architecture.parameters, architecture, quant)
        assert abs(found / (architecture.parameters * MEAN_BITS[quant] / 8) - 1) < 0.02, quant


def test_without_the_library_four_types_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "LIBRARY", "no_such_library")
    for quant in ("F32", "F16", "BF16", "Q8_0"):
        require_quantizer(quant)
    with pytest.raises(UserError, match="Q4_K_M is written by") as refused:
        require_quantizer("Q4_K_M")
    assert "localtune-tui[export]" in refused.value.hint
