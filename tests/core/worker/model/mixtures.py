"""Tiny mixtures of experts for tests: loaded in 4 and 16 bits, and computed by transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch

from core.worker.model.experts import dequantized, experts_of, matrix_names
from core.worker.model.model import load_model
from tests.families.tiny import FAMILIES

MIXTURES = [name for name, family in FAMILIES.items() if family.experts]
#: Experts read one by one, other kinds of layers, and biases.
FEW_MIXTURES = ("qwen3_moe", "qwen3_5_moe", "gpt_oss")
IDS = torch.arange(3, 51).reshape(2, 24)


def load(base: Path, method: str, precision: str = "fp32", **more: Any) -> Any:
    return load_model(base, method=method, precision=precision, device="cpu", for_training=True, **more).model


def put_weights_of(quantized: Any, plain: Any) -> Any:
    """A full-precision model with the dequantized weights of a 4-bit one, its experts computed by transformers."""
    with torch.no_grad():
        for name, module in quantized.named_modules():
            if isinstance(module, bnb.nn.Linear4bit):
                weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
                plain.get_submodule(name).weight.copy_(weight)
        for name, module in experts_of(quantized):
            for matrix in matrix_names(module):
                getattr(plain.get_submodule(name), matrix).copy_(dequantized(getattr(module, matrix)))
    plain.set_experts_implementation("eager")
    return plain


def logits_and_gradient(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and the gradient of the embedded tokens."""
    seen: list[torch.Tensor] = []

    def hook(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    with model.get_input_embeddings().register_forward_hook(hook):
        logits = model(input_ids=IDS).logits
    (logits.square().mean() * 100).backward()
    assert seen[0].grad is not None
    return logits.detach(), seen[0].grad
