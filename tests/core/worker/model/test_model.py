from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch

from core.config.schema import MethodSection
from core.errors import UserError
from core.worker.loss.loss import SupervisedLoss
from core.worker.model.adapters import attach_adapters
from core.worker.model.device import choose_dtype
from core.worker.model.model import (
    LoadedModel,
    evaluation_mode,
    load_model,
    trainable_parameters,
)
from tests.cases import cases

IDS = torch.arange(1, 41).reshape(2, 20)
LEARNED = torch.ones(2, 20, dtype=torch.bool)


def load(directory: Path, method: str = "qlora", precision: str = "bf16") -> LoadedModel:
    loaded = load_model(directory, method=method, precision=precision, device="cpu", for_training=True)
    loaded = replace(loaded, model=attach_adapters(loaded.model, MethodSection(rank=4), seed=0))
    for parameter in trainable_parameters(loaded.model):
        torch.nn.init.normal_(parameter, std=0.02)
    return loaded


def gradient(model: Any) -> torch.Tensor:
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.autograd.backward(SupervisedLoss(model)(IDS, LEARNED))
    grads = [parameter.grad for parameter in trainable_parameters(model)]
    return torch.cat([grad.flatten() for grad in grads if grad is not None])


@cases("method", ["qlora", "lora"])
def test_only_adapters_are_trained_in_fp32_and_the_base_keeps_its_dtype(tiny_model_dir: Path, method: str) -> None:
    model = load(tiny_model_dir, method).model
    base = model.get_base_model()
    kinds = {layer.weight.quant_state.quant_type for layer in model.modules() if isinstance(layer, bnb.nn.Linear4bit)}
    assert kinds == ({"nf4"} if method == "qlora" else set())
    assert base.get_input_embeddings().weight.dtype == torch.bfloat16
    assert base.get_output_embeddings().weight.dtype == torch.bfloat16
    assert base.model.norm.weight.dtype == torch.bfloat16
    trained = trainable_parameters(model)
    assert trained
    assert all(parameter.dtype == torch.float32 for parameter in trained)
    assert all(".lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad)


def test_an_evaluation_changes_no_gradients(tiny_model_dir: Path) -> None:
    model = load(tiny_model_dir).model
    untouched = gradient(model)
    with evaluation_mode(model), torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        SupervisedLoss(model)(IDS, LEARNED)
    torch.testing.assert_close(gradient(model), untouched)


def test_fp16_on_a_cpu_and_a_directory_without_a_model_are_refused(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("fp32", cpu) == torch.float32
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(tmp_path, method="lora", precision="fp32", device="cpu")
    with pytest.raises(UserError, match="fp16"):
        choose_dtype("fp16", cpu)
