from __future__ import annotations

from core.export.gguf.sizes import MEAN_BITS, gguf_bytes
from core.export.request import QUANTS
from core.models.architecture.families import read_architecture
from core.models.inspection import STARTER_FACTS
from tests.core.models.architecture import published


def test_rows_that_are_no_multiples_of_256_take_more_bits() -> None:
    """The starter model's hidden size is 576; its Q4_K_M file has 105 MB with the tokenizer."""
    parameters, architecture = STARTER_FACTS.parameters, STARTER_FACTS.architecture
    assert parameters is not None
    assert round(gguf_bytes(parameters, architecture, "Q4_K_M") / 1e6) == 104
    assert round(gguf_bytes(parameters, None, "Q4_K_M") / 1e6) == 82


def test_the_mean_of_a_model_whose_shapes_are_not_known_is_that_of_usual_models() -> None:
    architecture = read_architecture(published.LLAMA_3_8B, "config.json")
    for quant in QUANTS:
        found = gguf_bytes(architecture.parameters, architecture, quant)
        assert abs(found / (architecture.parameters * MEAN_BITS[quant] / 8) - 1) < 0.02, quant
