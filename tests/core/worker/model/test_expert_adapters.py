"""Adapters on experts of mixtures, against PEFT's own on dequantized weights."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from core.config.schema import MethodSection
from core.models.description import read_description
from core.models.text_part import auto_class
from core.worker.model.adapters import adapter_state, add_adapter, attach_adapters, load_adapter, load_state
from core.worker.model.expert_adapters import left_out
from core.worker.model.experts import experts_of, matrix_shapes
from tests.core.worker.model.mixtures import IDS, MIXTURES, load
from tests.short_list import long_but


def adapt(base: Path, name: Any = "lora", *, seed: int = 0, precision: str = "fp32", **method: Any) -> Any:
    section = MethodSection(**{"name": name, "rank": 4, "target_experts": "on"} | method)
    return attach_adapters(load(base, name, precision), section, seed=seed)


def disturb(model: Any, seed: int = 1) -> None:
    """Values that make a difference, for the adapters."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=draws) * 0.05)


def save(model: Any, folder: Path) -> Path:
    state, config = adapter_state(model)
    config.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "which"),
    long_but(
        [("qwen3_moe", "off"), ("qwen3_5_moe", "on"), ("gpt_oss", "on")], itertools.product(MIXTURES, ["on", "off"])
    ),
)
def test_peft_by_itself_loads_what_is_saved(
    name: str, which: Any, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    model = adapt(base_of(name), target_experts=which, dropout=0.2, rslora=True)
    disturb(model)
    model.eval()
    with torch.no_grad():
        found = model(input_ids=IDS).logits
        with model.disable_adapter():
            untouched = model(input_ids=IDS).logits
    assert (found - untouched).abs().max() > 0.1
    saved = save(model, tmp_path / "adapter")
    again = load(base_of(name), "lora", adapter=saved)
    whole = getattr(transformers, auto_class(read_description(base_of(name) / "config.json") or {}))
    plain = whole.from_pretrained(base_of(name), dtype=torch.float32)
    plain.set_experts_implementation("eager")
    theirs = PeftModel.from_pretrained(plain, str(saved))
    names = {name for name, _ in adapter_state(model)[0].items()}
    assert any(".experts.lora_A" in name for name in names) is (which == "on")
    assert not any("router" in name or name.endswith("mlp.gate.lora_A.weight") for name in names)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(input_ids=IDS).logits, found, rtol=0, atol=0)
        torch.testing.assert_close(theirs.eval()(input_ids=IDS).logits, found, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_gradients_of_adapters_are_those_of_the_sum(name: str, base_of: Callable[[str], Path]) -> None:
    """Against autograd on the experts' weights with the adapters' product added."""
    model = adapt(base_of(name), target_modules=["q_proj"])
    disturb(model)
    gradients = _gradients(model)
    plain = load(base_of(name), "lora")
    plain.set_experts_implementation("eager")
    with_peft = _adapted_by_peft(plain, model)
    wanted = _gradients(with_peft)
    assert gradients.keys() == wanted.keys()
    assert any("experts" in name for name in gradients)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[key], rtol=1e-3, atol=1e-5)


def _adapted_by_peft(plain: Any, model: Any) -> Any:
    state, config = adapter_state(model)
    made = get_peft_model(
        plain,
        LoraConfig(
            r=config.r,
            lora_alpha=config.lora_alpha,
            target_modules=list(config.target_modules),
            target_parameters=list(config.target_parameters),
        ),
    )
    set_peft_model_state_dict(made, state)
    return made


def _gradients(model: Any) -> dict[str, torch.Tensor]:
    (model(input_ids=IDS).logits.square().mean() * 100).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def test_recomputation_gives_the_same_gradients(base_of: Callable[[str], Path]) -> None:
    kept = adapt(base_of("qwen3_moe"), "qlora", precision="bf16")
    disturb(kept)
    again = copy.deepcopy(kept)
    again.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        one, other = _gradients(kept.train()), _gradients(again.train())
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_dropout_drops_inputs_of_adapters_in_training_alone(base_of: Callable[[str], Path]) -> None:
    model = adapt(base_of("qwen3_moe"), target_modules=["none_of_them", "q_proj"], dropout=0.5)
    disturb(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj.lora_B" in name:
                parameter.zero_()
        assert not torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)
        model.eval()
        assert torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_a_state_is_put_back_to_the_bit(base_of: Callable[[str], Path]) -> None:
    model = adapt(base_of("glm4_moe_lite"), "qlora", precision="bf16")
    disturb(model)
    other = adapt(base_of("glm4_moe_lite"), "qlora", precision="bf16", seed=5)
    state = {name: tensor.clone() for name, tensor in adapter_state(model)[0].items()}
    assert load_state(other, state) == []
    for (name, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(one, two), name


def test_a_second_adapter_goes_beside_the_first(base_of: Callable[[str], Path], tmp_path: Path) -> None:
    base = base_of("glm4_moe_lite")
    folders = []
    for seed in (1, 2):
        model = adapt(base)
        disturb(model, seed)
        folders.append(save(model, tmp_path / f"adapter-{seed}"))
    alone = [
        load_adapter(load(base, "lora"), folder, trainable=False).eval()(input_ids=IDS).logits for folder in folders
    ]
    both = load_adapter(load(base, "lora"), folders[0], trainable=False)
    add_adapter(both, folders[1], "second")
    both.eval()
    assert torch.equal(both(input_ids=IDS).logits, alone[0])
    both.set_adapter("second")
    assert torch.equal(both(input_ids=IDS).logits, alone[1])


def test_auto_leaves_narrow_experts_out_and_says_so(base_of: Callable[[str], Path]) -> None:
    base = load(base_of("qwen3_moe"), "lora")
    method = MethodSection(name="lora", rank=4)
    assert matrix_shapes(next(iter(experts_of(base)))[1]) == ((128, 64), (64, 64))
    sentence = left_out(base, method)
    assert sentence is not None
    assert "at rank 4" in sentence
    model = attach_adapters(base, method, seed=0)
    assert not any("experts" in name for name, p in model.named_parameters() if p.requires_grad)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["qwen3_moe", "glm4_moe_lite"])
def test_an_adapter_that_peft_put_on_experts_and_routers_is_loaded(
    name: str, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """PEFT's own all-linear: the first matrix has twice the rank there, and the router an adapter."""
    plain = AutoModelForCausalLM.from_pretrained(base_of(name), dtype=torch.float32)
    plain.set_experts_implementation("eager")
    theirs = get_peft_model(plain, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    disturb(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    config = theirs.peft_config["default"]
    assert "gate.weight" in config.target_parameters
    assert list(config.rank_pattern.values()) == [8]
    ours = load(base_of(name), "lora", adapter=tmp_path / "adapter").eval()
    with torch.no_grad():
        wanted = theirs.eval()(input_ids=IDS).logits
        torch.testing.assert_close(ours(input_ids=IDS).logits, wanted, rtol=1e-4, atol=2e-5)
