"""Runs of earlier versions on a composite model, which had adapters on its towers, go on with its text part alone."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from core.worker.checkpoint.checkpoint import without_towers
from core.worker.model.adapters import attach_adapters, load_state
from core.worker.model.full_weights import choose_weights, put_weights, trained_tensors
from core.worker.model.model import load_model, trainable_parameters
from core.worker.model.safetensors_io import read_tensors
from tests.cases import cases
from tests.core.worker.export.bench import make_config
from tests.families.tiny import write_family

IDS = torch.arange(3, 51).reshape(2, 24)


@pytest.fixture(scope="module", params=["gemma3", "gemma4"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3 has its tower before the language model, Gemma 4 behind it."""
    return write_family(request.param, tmp_path_factory.mktemp("base") / request.param, dtype="float32")


def _supported(whole: Any, targets: str) -> list[str]:
    """Full names of linear layers that an expression matches."""
    layers = (name for name, module in whole.named_modules() if type(module) is torch.nn.Linear)
    return [name for name in layers if re.fullmatch(targets, name)]


def step(model: Any, optimizer: Any) -> float:
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


@cases("groups", [1, 2])
def test_adapters_go_on_with_their_optimizer(base: Path, groups: int) -> None:
    def make_optimizer(parameters: list[torch.nn.Parameter]) -> Any:
        halves = [parameters[0::2], parameters[1::2]] if groups == 2 else [parameters]
        return torch.optim.AdamW([{"params": half} for half in halves], lr=1e-2)

    whole: Any = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    targets = r".*language_model.*\.[qv]_proj|.*vision_tower.*\.(q_proj|q_proj\.linear)"
    config = LoraConfig(r=4, lora_alpha=8, target_modules=_supported(whole, targets))
    before: Any = get_peft_model(whole, config)
    optimizer = make_optimizer(trainable_parameters(before))
    for _ in range(2):
        step(before, optimizer)
    state = get_peft_model_state_dict(before)
    assert any("vision" in name for name in state)
    loaded = load_model(base, method="lora", precision="fp32", device="cpu").model
    method = make_config(base, target_modules=["q_proj", "v_proj"]).method
    after = attach_adapters(loaded, method, seed=3)
    assert load_state(after, state) == []
    resumed = make_optimizer(trainable_parameters(after))
    saved = copy.deepcopy(optimizer.state_dict())
    resumed.load_state_dict(without_towers(saved, len(trainable_parameters(after))))
    for _ in range(2):
        assert step(after, resumed) == pytest.approx(step(before, optimizer), abs=1e-6)


def test_trained_weights_of_the_whole_model_are_read(base: Path, tmp_path: Path) -> None:
    whole: Any = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for parameter in whole.model.language_model.parameters():
            parameter.mul_(1.25)
    path = tmp_path / "trained.safetensors"
    save_file({name: parameter.detach() for name, parameter in whole.named_parameters()}, path)
    config = make_config(base, name="full")
    model = choose_weights(load_model(base, method="full", precision="fp32", device="cpu").model, config.method, seed=0)
    read_tensors(path, trained_tensors(model))
    other = load_model(base, method="full", precision="fp32", device="cpu").model
    put_weights(other, path, "full")
    with torch.no_grad():
        wanted = whole.eval()(input_ids=IDS).logits
        for found in (model, other):
            torch.testing.assert_close(found.eval()(input_ids=IDS).logits, wanted, rtol=0, atol=1e-5)
    states = {name: number for number, name in enumerate(dict(whole.named_parameters()))}
    assert set(without_towers(states, 0)) == set(trained_tensors(model))
