from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from core.config.schema import MethodSection
from core.worker.generate.sources import Sources, fold
from core.worker.model.adapters import attach_adapters
from core.worker.model.model import load_model
from tests.cases import cases
from tests.families.tiny import write_family

IDS = torch.arange(20)[None] + 5


def adapted(directory: Path, precision: str = "fp32", method: str = "lora", **config: Any) -> Any:
    loaded = load_model(directory, method=method, precision=precision, device="cpu")
    torch.manual_seed(3)
    settings = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **config}
    model = get_peft_model(loaded.model, LoraConfig(**settings)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


@cases("method", ["lora", "qlora"])
@cases("precision", ["fp32", "bf16"])
def test_it_answers_as_the_adapter_and_the_base_comes_back_to_the_bit(
    tiny_model_dir: Path, precision: str, method: str
) -> None:
    model = adapted(tiny_model_dir, precision, method)
    tuned = logits(model)
    with model.disable_adapter():
        base = logits(model)
    unfold = fold(model, "default")
    assert unfold is not None
    assert not any("lora" in name for name, _ in model.get_base_model().named_modules())
    tolerance = 1e-5 if precision == "fp32" else 0.1
    assert (logits(model) - tuned).abs().max() < tolerance < (base - tuned).abs().max()
    unfold()
    assert torch.equal(logits(model), tuned)
    with model.disable_adapter():
        assert torch.equal(logits(model), base)


@cases("method", ["lora", "qlora"])
@cases("name", ["qwen3_moe", "glm4_moe_lite"])
def test_adapters_on_experts_stay_beside_those_that_are_folded(tmp_path: Path, name: str, method: Any) -> None:
    loaded = load_model(write_family(name, tmp_path), method=method, precision="fp32", device="cpu")
    section = MethodSection(name=method, rank=4, target_experts="on")
    model = attach_adapters(loaded.model, section, seed=0).eval()
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned = logits(model)
    with model.disable_adapter():
        base = logits(model)
    unfold = fold(model, "default")
    assert unfold is not None
    left = {key.partition(".lora_")[0] for key, _ in model.get_base_model().named_parameters() if "lora_" in key}
    assert left
    assert all("experts" in key and "shared" not in key for key in left)
    assert (logits(model) - tuned).abs().max() < 1e-5 < (base - tuned).abs().max()
    unfold()
    assert torch.equal(logits(model), tuned)


@cases(("method", "more"), [("qlora", {"use_dora": True}), ("lora", {"use_dora": True}), ("lora", {"lora_bias": True})])
def test_what_would_not_be_exact_stays_apart(tiny_model_dir: Path, method: str, more: dict[str, Any]) -> None:
    model = adapted(tiny_model_dir, method=method, **more)
    tuned = logits(model)
    assert fold(model, "default") is None
    assert torch.equal(logits(model), tuned)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_where_the_copies_have_no_room_it_stays_apart(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    model = adapted(tiny_model_dir, method=method)
    monkeypatch.setattr("core.worker.generate.sources.memory", lambda: (100, 200))
    assert fold(model, "default") is None


def test_a_single_source_is_folded_and_a_comparison_is_not(tiny_model_dir: Path) -> None:
    loaded = load_model(tiny_model_dir, method="lora", precision="fp32", device="cpu")
    object.__setattr__(loaded, "model", adapted(tiny_model_dir))
    sources = Sources(loaded, tiny_model_dir, said="adapter", has_adapter=True, template=None)
    folded = [sources._unfold_weights is not None]
    sources.fold()
    with sources.answering("tuned") as model:
        folded.append(sources._unfold_weights is not None)
        tuned = logits(model)
    with sources.answering("base") as model:
        folded.append(sources._unfold_weights is not None)
        assert (logits(model) - tuned).abs().max() > 0.01
    with sources.answering("tuned") as model:
        folded.append(sources._unfold_weights is not None)
        assert (logits(model) - tuned).abs().max() < 1e-5
    # Whoever compares is not made to wait for folding at every turn.
    assert folded == [False, True, False, False]


def test_adapters_of_other_kinds_answer_as_they_do_alone(tiny_model_dir: Path, tmp_path: Path) -> None:
    """DoRA, and a module of its own: each adapter beside others gives the logits that it gives by itself."""
    kinds: dict[str, dict[str, Any]] = {
        "plain": {"r": 2},
        "dora": {"use_dora": True, "use_rslora": True},
        "module": {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
    }
    alone: dict[str, torch.Tensor] = {}
    for name, config in kinds.items():
        model = adapted(tiny_model_dir, **config)
        if name == "module":
            model.base_model.model.model.norm.modules_to_save["default"].weight.data.mul_(1.5)
        alone[name] = logits(model)
        model.save_pretrained(str(tmp_path / name))
    loaded = load_model(tiny_model_dir, method="lora", precision="fp32", device="cpu")
    alone["base"] = logits(loaded.model)
    sources = Sources(loaded, tiny_model_dir, said="adapter", has_adapter=False, template=None)
    for name in kinds:
        sources.add(name, tmp_path / name, said=name, template=None, base_sha256=None)
    for name in ("dora", "base", "module", "plain", "dora", "base"):
        with sources.answering(name) as model:
            assert (logits(model) - alone[name]).abs().max() < 1e-5, name
    assert sources.said_of("dora") == "dora"
