"""Structure of models whose experts are computed in other ways than most."""

from __future__ import annotations

import json
from typing import Any

import torch

from core.memory.sizes import Arithmetic, quantized_experts_bytes
from core.memory.weights import weight_parts
from core.models.architecture.architecture import Architecture
from core.models.architecture.measuring import Unmeasured, measure_architecture
from core.worker.model.quantizer import quantized_experts
from core.worker.model.text_part import described_causal_lm
from tests.cases import cases
from tests.families.tiny import OTHERS
from tests.measured_here import measured_here

__all__ = ["measured_here"]

QLORA = Arithmetic(bytes=2, autocast=True, private_inputs=False, quantized=True, cuda=True)
LORA = Arithmetic(bytes=2, autocast=True, private_inputs=True, quantized=False, cuda=True)


def structure_of(family: str) -> tuple[Architecture, Any]:
    """The structure as it is measured, and the model on the meta device."""
    description = OTHERS[family].config().to_dict()
    found = measure_architecture(Unmeasured(json.dumps(description, sort_keys=True, default=str), "a model"))
    return found, described_causal_lm(description, "a model").build(torch.bfloat16)


@cases("family", [name for name, family in OTHERS.items() if not family.experts])
def test_experts_of_classes_that_are_not_marked_stay_in_16_bit(family: str) -> None:
    found, model = structure_of(family)
    assert not quantized_experts(model, ())
    assert not any(layer.experts for layer in found.layers)
    linear = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Linear)}
    inside = [parameter for name, parameter in model.named_parameters() if name.startswith(f"{found.prefix}.")]
    bare = sum(each.numel() for each in inside if each.dim() > 1 and id(each) not in linear)
    assert found.bare_experts == bare > 0
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    for how, name in ((QLORA, "experts_16bit"), (LORA, "experts")):
        parts = {part.name: part.bytes for part in weight_parts(found, how, 0)}
        assert parts[name] == 2 * bare
        assert parts["norms"] < 50_000


def test_experts_without_a_gate_are_in_4_bits() -> None:
    found, model = structure_of("nemotron_h")
    shapes = quantized_experts(model, ())
    assert {name.rpartition(".")[2] for name in shapes} == {"up_proj", "down_proj"}
    sizes = [quantized_experts_bytes(shape[0], shape.numel()) for shape in shapes.values()]
    parts = {part.name: part.bytes for part in weight_parts(found, QLORA, 0)}
    assert parts["experts"] == sum(sizes)
    kept = {part.name: part.bytes for part in weight_parts(found, QLORA, 0, ["experts.up_proj"])}
    assert kept["experts"] + kept["experts_16bit"] > parts["experts"]
    assert found.bare_experts == 0
