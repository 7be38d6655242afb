"""Experts of mixtures in 4 bits: loaded, computed, and adapted, against transformers' own on dequantized weights."""

from __future__ import annotations

import copy
import weakref
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, core_model_loading

from core.config.schema import MethodSection
from core.errors import UserError
from core.memory.sizes import NF4_TABLES, quantized_bytes
from core.models.description import read_description
from core.models.text_part import auto_class
from core.worker.model.adapters import adapter_state, add_adapter, attach_adapters, load_adapter, load_state
from core.worker.model.expert_adapters import left_out
from core.worker.model.expert_weights import BLOCK, ExpertsParams4bit, dequantized, quantize_experts
from core.worker.model.experts import (
    IMPLEMENTATION,
    experts_of,
    group_by_expert,
    matrix_names,
    matrix_shapes,
    use_own_experts,
)
from core.worker.model.model import load_model
from tests.families.tiny import FAMILIES, write_family

MIXTURES = [name for name, family in FAMILIES.items() if family.experts]
IDS = torch.arange(3, 51).reshape(2, 24)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mixtures")
    return {name: write_family(name, folder / name) for name in MIXTURES}


def load(base: Path, method: str, precision: str = "fp32", **more: Any) -> Any:
    return load_model(base, method=method, precision=precision, device="cpu", for_training=True, **more).model


def dense_twin(quantized: Any, base: Path) -> Any:
    """The same model in full precision with what the 4-bit one has, its experts computed by transformers."""
    return put_weights_of(quantized, load(base, "lora"))


def put_weights_of(quantized: Any, plain: Any) -> Any:
    """The same model in full precision, with what a 4-bit one has, its experts computed by transformers."""
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


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_in_4_bits_compute_what_transformers_does(name: str, bases: dict[str, Path]) -> None:
    quantized = load(bases[name], "qlora")
    found = dict(experts_of(quantized))
    assert found
    for module in found.values():
        assert module.config._experts_implementation == IMPLEMENTATION
        assert all(isinstance(getattr(module, matrix), ExpertsParams4bit) for matrix in matrix_names(module))
    logits, gradient = logits_and_gradient(quantized)
    wanted, wanted_gradient = logits_and_gradient(dense_twin(quantized, bases[name]))
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MIXTURES)
def test_each_expert_is_what_bitsandbytes_makes_of_a_linear_layer(name: str, bases: dict[str, Path]) -> None:
    quantized, plain = load(bases[name], "qlora"), load(bases[name], "lora")
    for path, module in experts_of(quantized):
        for matrix in matrix_names(module):
            stacked, original = getattr(module, matrix), getattr(plain.get_submodule(path), matrix)
            for number in (0, len(original) - 1):
                data, state = bnb.functional.quantize_4bit(
                    original[number].contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
                )
                assert torch.equal(stacked.expert(number), bnb.functional.dequantize_4bit(data, state))
            experts, rows, columns = original.shape
            # The tables of values are there once a layer, and an offset for each expert.
            tables = NF4_TABLES - 4
            assert stacked.bytes() == experts * (quantized_bytes(rows * columns) - tables) + tables


SPECIAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "no gate": ("nemotron_h.modeling_nemotron_h", "NemotronHExperts", {"mlp_hidden_act": "relu2"}),
    "a norm behind": (
        "muse_spark.modeling_muse_spark",
        "MuseSparkExperts",
        {"num_local_experts": 4, "moe_hidden_size": 64, "hidden_act": "silu", "post_norm_eps": 1e-5},
    ),
}


@pytest.mark.parametrize("kind", list(SPECIAL))
def test_experts_of_other_kinds_are_computed_alike(kind: str) -> None:
    module_name, class_name, values = SPECIAL[kind]
    __import__(f"transformers.models.{module_name}")
    made = getattr(getattr(transformers.models, module_name.split(".")[0]), module_name.split(".")[1])
    config = transformers.PretrainedConfig(
        n_routed_experts=4, hidden_size=64, moe_intermediate_size=128, moe_latent_size=None, **values
    )
    experts = getattr(made, class_name)(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    experts.requires_grad_(False)
    config._experts_implementation = "eager"
    tokens = torch.randn(10, 64, requires_grad=True)
    index = torch.stack([torch.randperm(4)[:2] for _ in range(10)])
    weights = torch.rand(10, 2, requires_grad=True)
    wanted = experts(tokens, index, weights)
    wanted_gradients = torch.autograd.grad(wanted.square().sum(), (tokens, weights))
    use_own_experts(experts)
    found = experts(tokens, index, weights)
    gradients = torch.autograd.grad(found.square().sum(), (tokens, weights))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


_ROUTED: dict[str, Any] = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_GROUPED: dict[str, Any] = {**_ROUTED, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "first_k_dense_replace": 1,
}
_EXPERTS: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_LOCAL: dict[str, Any] = {"num_local_experts": 8, "num_experts_per_tok": 2}
#: Further families with experts of their own kinds, by the class of their configuration.
OTHERS: dict[str, dict[str, Any]] = {
    "MixtralConfig": _LOCAL,
    "OlmoeConfig": {**_EXPERTS, "num_key_value_heads": 4},
    "FlexOlmoConfig": {**_EXPERTS, "num_key_value_heads": 4},
    "Qwen2MoeConfig": {**_EXPERTS, "shared_expert_intermediate_size": 64},
    "DeepseekV2Config": {**_LATENT, **_ROUTED, "n_shared_experts": 1},
    "DeepseekV3Config": {**_LATENT, **_GROUPED},
    "Ernie4_5_MoeConfig": {
        "moe_num_experts": 8,
        "moe_k": 2,
        "moe_intermediate_size": 64,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
    },
    "HunYuanMoEV1Config": {"head_dim": 32, "num_experts": 8, "moe_topk": 2},
    "Dots1Config": {"first_k_dense_replace": 1, **_GROUPED},
    "Glm4MoeConfig": {"head_dim": 32, "first_k_dense_replace": 1, **_GROUPED},
    "MiniMaxConfig": {
        "head_dim": 32,
        "layer_types": ["linear_attention", "full_attention"],
        "block_size": 16,
        **_LOCAL,
    },
    "MiniMaxM2Config": {"head_dim": 32, **_LOCAL},
    "PhimoeConfig": _LOCAL,
    "GraniteMoeConfig": _LOCAL,
    "JambaConfig": {
        **_EXPERTS,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "AfmoeConfig": {
        **_EXPERTS,
        "head_dim": 32,
        "num_shared_experts": 1,
        "num_dense_layers": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "NemotronHConfig": {
        **_GROUPED,
        "head_dim": 32,
        "num_hidden_layers": 2,
        "layers_block_type": ["attention", "moe"],
        "moe_shared_expert_intermediate_size": 64,
    },
}


def write_other(name: str, folder: Path, **values: Any) -> Path:
    """A tiny model of a class of configurations, in bf16; no tokenizer is needed to load it."""
    shapes: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(getattr(transformers, name)(**{**shapes, **values}), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder


def load_other(base: Path, method: str) -> Any:
    return load_model(base, method=method, precision="fp32", device="cpu", for_training=True, tokenizer=object()).model


@pytest.mark.parametrize("name", list(OTHERS))
def test_experts_of_further_families_compute_what_transformers_does(name: str, tmp_path: Path) -> None:
    base = write_other(name, tmp_path, **OTHERS[name])
    plain, own = load_other(base, "lora"), load_other(base, "lora")
    plain.set_experts_implementation("eager")
    assert use_own_experts(own) > 0
    quantized = load_other(base, "qlora")
    modules = dict(experts_of(quantized))
    assert modules
    assert all(
        isinstance(getattr(one, matrix), ExpertsParams4bit) for one in modules.values() for matrix in matrix_names(one)
    )
    linear = [module for module in quantized.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert all(module.out_features != 8 for module in linear), "routers stay in 16 bit"
    twin = put_weights_of(quantized, load_other(base, "lora"))
    for one, other in ((own, plain), (quantized, twin)):
        logits, gradient = logits_and_gradient(one)
        wanted, wanted_gradient = logits_and_gradient(other)
        torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-4, atol=1e-5)


UNMARKED: dict[str, dict[str, Any]] = {
    "Llama4TextConfig": {"head_dim": 32, "intermediate_size_mlp": 128, "attention_chunk_size": 32, **_LOCAL},
    "JetMoeConfig": {"kv_channels": 16, **_LOCAL},
}


@pytest.mark.parametrize("name", list(UNMARKED))
def test_experts_that_transformers_does_not_mark_stay_as_they_are(name: str, tmp_path: Path) -> None:
    base = write_other(name, tmp_path, **UNMARKED[name])
    quantized, plain = load_other(base, "qlora"), load_other(base, "lora")
    assert not list(experts_of(quantized))
    stacked = {key for key, parameter in plain.named_parameters() if parameter.dim() == 3}
    assert stacked
    assert all(torch.equal(quantized.get_parameter(key), plain.get_parameter(key)) for key in stacked)
    assert torch.isfinite(quantized(input_ids=IDS).logits).all()


def test_nothing_of_the_weights_is_kept_for_backward() -> None:
    config = transformers.Qwen3MoeConfig(num_experts=8, hidden_size=128, moe_intermediate_size=256)
    experts = transformers.models.qwen3_moe.modeling_qwen3_moe.Qwen3MoeExperts(config)
    for name in matrix_names(experts):
        shape = getattr(experts, name).shape
        setattr(experts, name, quantize_experts(torch.randn(shape), shape))
    use_own_experts(experts)
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        experts(torch.randn(4, 128, requires_grad=True), torch.tensor([[0, 1]] * 4), torch.rand(4, 2))
    # Gate and rows of 8 choices; a matrix of one expert alone has 32,768 elements.
    assert sum(kept) < 8 * (6 * 256 + 2 * 128)


def test_experts_that_no_token_has_chosen_have_no_part() -> None:
    groups = group_by_expert(torch.tensor([[2, 0], [2, 5]]), 8)
    assert [(number, part.stop - part.start) for number, part in groups.parts()] == [(0, 1), (2, 2), (5, 1)]
    assert groups.order.tolist() == [1, 0, 2, 3]
    assert groups.order[groups.inverse].tolist() == [0, 1, 2, 3]


# Loading.


@pytest.mark.parametrize(
    ("entry", "kept"),
    [("model.layers.1.mlp.experts", {"gate_up_proj", "down_proj"}), ("layers.1.*.down_proj", {"down_proj"})],
)
def test_experts_of_a_layer_stay_in_16_bit_where_that_is_asked_for(
    entry: str, kept: set[str], bases: dict[str, Path]
) -> None:
    base = bases["qwen3_moe"]
    model = load(base, "qlora", keep_16bit=[entry])
    wanted = load(base, "lora")
    for number, layer in enumerate(model.model.layers):
        for matrix in matrix_names(layer.mlp.experts):
            parameter = getattr(layer.mlp.experts, matrix)
            assert isinstance(parameter, ExpertsParams4bit) is not (number == 1 and matrix in kept)
            if not isinstance(parameter, ExpertsParams4bit):
                assert torch.equal(parameter, getattr(wanted.model.layers[number].mlp.experts, matrix))
    assert torch.isfinite(model(input_ids=IDS).logits).all()


class _Alive:
    """Bytes that were read from files and are still there."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def track(self, tensor: torch.Tensor) -> torch.Tensor:
        size = tensor.numel() * tensor.element_size()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(tensor, self._gone, size)
        return tensor

    def _gone(self, size: int) -> None:
        self.now -= size


@pytest.mark.parametrize("layers", [2, 6])
@pytest.mark.parametrize("fused", [False, True])
def test_at_most_one_expert_is_in_memory_unquantized(
    layers: int, fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = transformers.Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        num_experts=16,
        num_experts_per_tok=2,
        moe_intermediate_size=256,
        intermediate_size=64,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if fused:
        model.config.save_pretrained(tmp_path)
        save_file(
            {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / "model.safetensors"
        )
    else:
        model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"")
    alive, read = _Alive(), core_model_loading._materialize_copy
    monkeypatch.setattr(
        core_model_loading, "_materialize_copy", lambda *args, **kwargs: alive.track(read(*args, **kwargs))
    )
    during: list[int] = []
    quantize = bnb.functional.quantize_4bit

    def tracked(*args: Any, **kwargs: Any) -> Any:
        during.append(alive.now)
        return quantize(*args, **kwargs)

    monkeypatch.setattr(bnb.functional, "quantize_4bit", tracked)
    load_model(tmp_path, method="qlora", precision="fp32", device="cpu", tokenizer=object())
    # Embeddings, head, norms and routers stay as they are read.
    left = sum(p.numel() * 4 for name, p in model.named_parameters() if "experts" not in name and "_proj" not in name)
    expert = 4 * 64 * 2 * 256
    assert max(during) <= left + (16 * expert if fused else expert)


def test_a_checkpoint_with_too_few_experts_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    source = bases["qwen3_moe"]
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(source / "model.safetensors")
    del weights["model.layers.0.mlp.experts.7.gate_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="experts"):
        load(tmp_path, "qlora")


# Adapters.


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
@pytest.mark.parametrize("which", ["on", "off"])
@pytest.mark.parametrize("name", MIXTURES)
def test_peft_by_itself_loads_what_is_saved(name: str, which: Any, bases: dict[str, Path], tmp_path: Path) -> None:
    model = adapt(bases[name], target_experts=which, dropout=0.2, rslora=True)
    disturb(model)
    model.eval()
    with torch.no_grad():
        found = model(input_ids=IDS).logits
        with model.disable_adapter():
            untouched = model(input_ids=IDS).logits
    assert (found - untouched).abs().max() > 0.1
    saved = save(model, tmp_path / "adapter")
    again = load(bases[name], "lora", adapter=saved)
    whole = getattr(transformers, auto_class(read_description(bases[name] / "config.json") or {}))
    plain = whole.from_pretrained(bases[name], dtype=torch.float32)
    plain.set_experts_implementation("eager")
    theirs = PeftModel.from_pretrained(plain, str(saved))
    names = {name for name, _ in adapter_state(model)[0].items()}
    assert any(".experts.lora_A" in name for name in names) is (which == "on")
    assert not any("router" in name or name.endswith("mlp.gate.lora_A.weight") for name in names)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(input_ids=IDS).logits, found, rtol=0, atol=0)
        torch.testing.assert_close(theirs.eval()(input_ids=IDS).logits, found, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_gradients_of_adapters_are_those_of_the_sum(name: str, bases: dict[str, Path]) -> None:
    """Against autograd on the experts' weights with the adapters' product added."""
    model = adapt(bases[name], target_modules=["q_proj"])
    disturb(model)
    gradients = _gradients(model)
    plain = load(bases[name], "lora")
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


def test_recomputation_gives_the_same_gradients(bases: dict[str, Path]) -> None:
    kept = adapt(bases["qwen3_moe"], "qlora", precision="bf16")
    disturb(kept)
    again = copy.deepcopy(kept)
    again.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        one, other = _gradients(kept.train()), _gradients(again.train())
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_dropout_drops_inputs_of_adapters_in_training_alone(bases: dict[str, Path]) -> None:
    model = adapt(bases["qwen3_moe"], target_modules=["none_of_them", "q_proj"], dropout=0.5)
    disturb(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj.lora_B" in name:
                parameter.zero_()
        assert not torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)
        model.eval()
        assert torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_steps_lower_the_loss(method: Any, bases: dict[str, Path]) -> None:
    model = adapt(bases["qwen3_moe"], method, target_modules=["none_of_them", "q_proj"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("experts" in name and "lora_" in name)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1


def test_a_state_is_put_back_to_the_bit(bases: dict[str, Path]) -> None:
    model = adapt(bases["glm4_moe_lite"], "qlora", precision="bf16")
    disturb(model)
    other = adapt(bases["glm4_moe_lite"], "qlora", precision="bf16", seed=5)
    state = {name: tensor.clone() for name, tensor in adapter_state(model)[0].items()}
    assert load_state(other, state) == []
    for (name, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(one, two), name


def test_a_second_adapter_goes_beside_the_first(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["glm4_moe_lite"]
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


def test_auto_leaves_narrow_experts_out_and_says_so(bases: dict[str, Path]) -> None:
    base = load(bases["qwen3_moe"], "lora")
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
    name: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    """PEFT's own all-linear: the first matrix has twice the rank there, and the router an adapter."""
    plain = AutoModelForCausalLM.from_pretrained(bases[name], dtype=torch.float32)
    plain.set_experts_implementation("eager")
    theirs = get_peft_model(plain, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    disturb(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    config = theirs.peft_config["default"]
    assert "gate.weight" in config.target_parameters
    assert list(config.rank_pattern.values()) == [8]
    ours = load(bases[name], "lora", adapter=tmp_path / "adapter").eval()
    with torch.no_grad():
        wanted = theirs.eval()(input_ids=IDS).logits
        torch.testing.assert_close(ours(input_ids=IDS).logits, wanted, rtol=1e-4, atol=2e-5)
