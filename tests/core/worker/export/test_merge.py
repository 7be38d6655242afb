from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from core.errors import UserError
from core.export.request import MERGE_FROM
from core.models.tensors import read_weights, weight_files
from core.worker.export.merge import BeyondRangeError, Source, merge_weights
from core.worker.export.model_directory import Conversation, way_to_merge, write_configs
from core.worker.model.full_weights import choose_weights, trained_tensors
from core.worker.model.model import load_model
from core.worker.model.safetensors_io import write_tensors
from tests.cases import cases
from tests.core.worker.export.bench import logits, make_config, read_plainly, train_adapter, trained_model, write_base
from tests.families.tiny import FAMILIES, write_family
from tests.progress import quiet

TALK = Conversation(None, True, (2,), ("</s>",), "", "</s>")


def merge(base: Path, trained: Any, out: Path, quant: Any = "F32", *, rounded: bool = False) -> Any:
    out.mkdir()
    untied = merge_weights(base, trained, out, quant, rounded=rounded, progress=quiet)
    write_configs(base, out, quant, TALK, untied=untied)
    return read_plainly(out)


@cases(
    ("family", "settings", "method"),
    [
        ("llama", {"tie_word_embeddings": True}, {}),
        ("llama", {}, {"dora": True}),
        ("llama", {}, {"rslora": True}),
        ("llama", {}, {"init": "pissa"}),
        ("llama", {"attention_bias": True}, {"target_modules": ["q_proj", "down_proj"]}),
        ("llama", {"tie_word_embeddings": True}, {"target_modules": ["lm_head", "q_proj"]}),
        ("qwen3", {"head_dim": 16}, {"dora": True, "rslora": True}),
        ("phi3", {}, {}),
        ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}, {"target_modules": ["c_attn"]}),
        ("mixtral", {"num_local_experts": 4}, {"target_modules": ["q_proj", "v_proj"]}),
    ],
)
def test_an_adapter_merged_answers_as_it_did_beside_the_base(
    tmp_path: Path, family: str, settings: dict[str, Any], method: dict[str, Any]
) -> None:
    base = write_base(tmp_path / "base", family, **settings)
    trained, wanted = train_adapter(base, tmp_path / "adapter", **method)
    found = logits(merge(base, trained, tmp_path / "merged"))
    untrained = logits(read_plainly(base))
    assert (wanted - untrained).abs().max() > 0.05
    assert torch.allclose(found, wanted, atol=2e-5), (found - wanted).abs().max()


MIXTURES = [(name, method) for name, family in FAMILIES.items() if family.experts for method in ("lora", "qlora")]


@pytest.mark.long
@cases("name, method", MIXTURES)
def test_adapters_on_experts_are_merged_into_the_form_of_the_files(tmp_path: Path, name: str, method: str) -> None:
    base = write_family(name, tmp_path / "base", dtype="float32")
    trained, wanted = train_adapter(base, tmp_path / "adapter", name=method, target_experts="on")
    found = logits(merge(base, trained, tmp_path / "merged", rounded=method == "qlora"))
    assert (wanted - logits(read_plainly(base))).abs().max() > 0.05
    assert torch.allclose(found, wanted, atol=2e-4), (found - wanted).abs().max()
    assert list(read_weights(base)) == list(read_weights(tmp_path / "merged"))
    # An expert that has no adapter of its own would be as in the base.
    before, after = (load_file(path / "model.safetensors") for path in (base, tmp_path / "merged"))
    of_experts = [key for key in before if ".experts." in key and "bias" not in key and "scale" not in key]
    assert not any(torch.equal(before[key], after[key]) for key in of_experts)


def test_files_have_the_bases_names_and_untouched_weights_their_bytes(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", shard="60KB")
    assert len(weight_files(base)) > 2
    trained, wanted = train_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    merged = merge(base, trained, tmp_path / "merged", "BF16")
    assert [path.name for path in weight_files(base)] == [path.name for path in weight_files(tmp_path / "merged")]
    assert list(read_weights(base)) == list(read_weights(tmp_path / "merged"))
    for path in weight_files(base):
        before, after = load_file(path), load_file(tmp_path / "merged" / path.name)
        for name, tensor in before.items():
            assert torch.equal(tensor, after[name]) != ("q_proj" in name), name
    assert (logits(merged) - wanted).abs().max() < 0.05
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(2 * t.elements for t in read_weights(base).values())
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_head_of_its_own_leaves_the_embeddings_alone(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tie_word_embeddings=True)
    trained, _ = train_adapter(base, tmp_path / "adapter", target_modules=["lm_head"])
    merged = merge(base, trained, tmp_path / "merged")
    assert merged.config.tie_word_embeddings is False
    embeddings = read_plainly(base).get_input_embeddings().weight
    assert torch.equal(merged.get_input_embeddings().weight, embeddings)
    assert not torch.equal(merged.get_output_embeddings().weight, embeddings)


def test_weights_that_were_rounded_are_merged_as_they_were_trained(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    trained, wanted = train_adapter(base, tmp_path / "adapter", name="qlora")
    assert [way_to_merge(base, trained, asked) for asked in MERGE_FROM] == ["quantized", "base", "quantized"]
    rounded = logits(merge(base, trained, tmp_path / "rounded", rounded=True))
    own = logits(merge(base, trained, tmp_path / "own"))
    assert torch.allclose(rounded, wanted, atol=2e-5), (rounded - wanted).abs().max()
    assert (own - wanted).abs().max() > 1e-3


@cases("method", ["full", "freeze"])
@cases("tied", [True, False])
def test_trained_weights_replace_those_of_the_base(tmp_path: Path, method: str, tied: bool) -> None:
    base = write_base(tmp_path / "base", tie_word_embeddings=tied)
    config = make_config(base, name=method, trainable_layers=1)
    loaded = load_model(base, method=method, precision="fp32", device="cpu", tokenizer=object())
    model = choose_weights(loaded.model, config.method, seed=1)
    with torch.no_grad():
        for parameter in trained_tensors(model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    weights = tmp_path / "trained.safetensors"
    write_tensors(weights, trained_tensors(model))
    trained = trained_model(config, base, weights=weights)
    merged = merge(base, trained, tmp_path / "merged")
    assert merged.config.tie_word_embeddings is tied
    assert torch.allclose(logits(merged), logits(model), atol=1e-6)
    # The result of such a run is a whole model, which is its own base.
    model.save_pretrained(tmp_path / "result")
    again = merge(tmp_path / "result", trained_model(config, tmp_path / "result"), tmp_path / "again", "BF16")
    assert (logits(again) - logits(model)).abs().max() < 0.05


def test_wider_weights_stay_wide_and_weights_beyond_the_range_of_f16_are_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] = torch.full((64,), 1.0 + 2**-12)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    trained, _ = train_adapter(base, tmp_path / "adapter")
    merge(base, trained, tmp_path / "merged", "F16")
    found = load_file(tmp_path / "merged" / "model.safetensors")
    assert torch.equal(found["model.norm.weight"], tensors["model.norm.weight"])
    assert {tensor.dtype for tensor in found.values()} == {torch.float16, torch.float32}
    tensors["model.embed_tokens.weight"][3, 3] = 1e6
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BeyondRangeError, match=r"embed_tokens\.weight has weights beyond the range of F16"):
        merge(base, trained, tmp_path / "beyond", "F16")


def test_what_cannot_be_merged_is_named(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    trained, _ = train_adapter(base, tmp_path / "adapter")
    assert trained.adapter is not None
    path = trained.adapter / "adapter_model.safetensors"
    factors = load_file(path)
    first = next(name for name in factors if "lora_A" in name)
    save_file({**factors, first: factors[first][:, :8].contiguous()}, path)
    with pytest.raises(UserError, match=r"The adapter cannot be merged into model\.layers"):
        merge(base, trained, tmp_path / "other-shape")
    moved = {name.replace("layers.1.", "layers.7."): tensor for name, tensor in factors.items()}
    save_file(moved, path)
    with pytest.raises(UserError, match=r"has no layer model\.layers\.7\."):
        merge(base, trained, tmp_path / "other-base")
    save_file({**factors, first: factors[first] * float("nan")}, path)
    with pytest.raises(UserError, match="cannot be merged"):
        merge(base, trained, tmp_path / "not-finite")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"adapter_model\.safetensors cannot be read"):
        merge(base, trained, tmp_path / "cut")


def test_a_layer_that_was_saved_as_a_whole_is_put_in(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = write_base(tmp_path / "base")
    torch.manual_seed(3)
    config = LoraConfig(
        r=4,
        target_modules=["q_proj", "v_proj"],
        modules_to_save=["lm_head"],
        task_type="CAUSAL_LM",
        rank_pattern={"v_proj": 2},
        alpha_pattern={"layers.1.self_attn.q_proj": 32},
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(str(tmp_path / "adapter"))
    trained = trained_model(make_config(base), base, adapter=tmp_path / "adapter")
    found = logits(merge(base, trained, tmp_path / "merged"))
    assert torch.allclose(found, logits(model), atol=2e-5), (found - logits(model)).abs().max()


def test_one_tensor_at_a_time_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    base = write_base(tmp_path / "base", shard="60KB")
    trained, _ = train_adapter(base, tmp_path / "adapter")
    read, alive, most = Source.read, weakref.WeakSet[Any](), 0

    def counted(self: Source, key: str) -> torch.Tensor:
        nonlocal most
        tensor = read(self, key)
        alive.add(tensor)
        most = max(most, len(alive))
        return tensor

    monkeypatch.setattr(Source, "read", counted)
    (tmp_path / "merged").mkdir()
    merge_weights(base, trained, tmp_path / "merged", "F16", rounded=False, progress=quiet)
    assert most <= 2
