from __future__ import annotations

from core.export.gguf.sizes import MEAN_BITS, gguf_bytes
from core.export.request import QUANTS
from core.models.architecture.architecture import read_architecture
from tests.core.models.architecture import published


def test_the_mean_of_a_model_whose_shapes_are_not_known_is_that_of_usual_models() -> None:
    architecture = read_architecture(published.LLAMA_3_8B, "config.json")
    for quant in QUANTS:
        found = gguf_bytes(architecture.parameters, architecture, quant)
        assert abs(found / (architecture.parameters * MEAN_BITS[quant] / 8) - 1) < 0.02, quant
