"""Experts of mixtures in 4 bits: which modules they are, and how they are loaded."""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import bitsandbytes as bnb
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, core_model_loading

from core.config.schema import MethodSection
from core.memory.sizes import NF4_TABLES, quantized_bytes
from core.models.description import auto_class, read_description
from core.worker.checkpoint.checkpoint import save_adapter
from core.worker.fused.experts import Block, GroupedProducts, Offsets, UnfilledProducts, grouped_product
from core.worker.model import experts_implementation as experts
from core.worker.model.adapters import adapter_state, add_adapter, attach_adapters, load_adapter
from core.worker.model.expert_adapters import left_out
from core.worker.model.experts import (
    BLOCK,
    ExpertsParams4bit,
    experts_of,
    matrix_names,
    matrix_shapes,
    quantize_experts,
)
from core.worker.model.experts_implementation import ADAPTERS, IMPLEMENTATION, ExpertAdapter, use_own_experts
from core.worker.model.model import load_model, set_gradient_checkpointing, trainable_parameters
from tests.cases import cases
from tests.core.worker.model.mixtures import FEW_MIXTURES, IDS, MIXTURES, load, logits_and_gradient, put_weights_of
from tests.families.tiny import OTHERS, write_family
from tests.short_list import long_but


@cases("name", ["llama4", "jetmoe"])
def test_experts_that_transformers_does_not_mark_stay_as_they_are(name: str, base_of: Callable[[str], Path]) -> None:
    quantized, plain = load(base_of(name), "qlora"), load(base_of(name), "lora")
    assert not list(experts_of(quantized))
    stacked = {key for key, parameter in plain.named_parameters() if parameter.dim() == 3}
    assert stacked
    assert all(torch.equal(quantized.get_parameter(key), plain.get_parameter(key)) for key in stacked)
    assert torch.isfinite(quantized(input_ids=IDS).logits).all()


@cases(
    ("entry", "kept"),
    [("model.layers.1.mlp.experts", {"gate_up_proj", "down_proj"}), ("layers.1.*.down_proj", {"down_proj"})],
)
def test_experts_of_a_layer_stay_in_16_bit_where_that_is_asked_for(
    entry: str, kept: set[str], base_of: Callable[[str], Path]
) -> None:
    base = base_of("qwen3_moe")
    model = load(base, "qlora", keep_16bit=[entry])
    wanted = load(base, "lora")
    for number, layer in enumerate(model.model.layers):
        for matrix in matrix_names(layer.mlp.experts):
            parameter = getattr(layer.mlp.experts, matrix)
            assert isinstance(parameter, ExpertsParams4bit) is not (number == 1 and matrix in kept)
            if not isinstance(parameter, ExpertsParams4bit):
                assert torch.equal(parameter, getattr(wanted.model.layers[number].mlp.experts, matrix))
    assert torch.isfinite(model(input_ids=IDS).logits).all()


@cases("layers", [2, 6])
@cases("fused", [False, True])
def test_at_most_one_expert_is_in_memory_unquantized(
    layers: int, fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, Any] = {"num_hidden_layers": layers, "num_experts": 16, "moe_intermediate_size": 256}
    write_family("qwen3_moe", tmp_path, dtype="float32", **sizes)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    if fused:
        save_file(
            {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / "model.safetensors"
        )
    alive: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()
    during: list[int] = []
    read, quantize = core_model_loading._materialize_copy, bnb.functional.quantize_4bit

    def seen(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor: torch.Tensor = read(*args, **kwargs)
        alive[id(tensor)] = tensor
        return tensor

    def tracked(*args: Any, **kwargs: Any) -> Any:
        during.append(sum(tensor.nbytes for tensor in alive.values()))
        return quantize(*args, **kwargs)

    monkeypatch.setattr(core_model_loading, "_materialize_copy", seen)
    monkeypatch.setattr(bnb.functional, "quantize_4bit", tracked)
    load_model(tmp_path, method="qlora", precision="fp32", device="cpu", tokenizer=object())
    # Embeddings, head, norms and routers stay as they are read.
    left = sum(p.numel() * 4 for name, p in model.named_parameters() if "experts" not in name and "_proj" not in name)
    expert = 4 * 64 * 2 * 256
    assert max(during) <= left + (16 * expert if fused else expert)


@pytest.mark.parametrize("name", long_but(FEW_MIXTURES, MIXTURES))
def test_each_expert_is_what_bitsandbytes_makes_of_a_linear_layer(name: str, base_of: Callable[[str], Path]) -> None:
    quantized, plain = load(base_of(name), "qlora"), load(base_of(name), "lora")
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


def test_experts_with_a_norm_behind_are_computed_alike() -> None:
    from transformers.models.muse_spark.modeling_muse_spark import MuseSparkExperts

    values = {"num_local_experts": 4, "moe_hidden_size": 64, "hidden_act": "silu", "post_norm_eps": 1e-5}
    config = transformers.PretrainedConfig(hidden_size=64, moe_intermediate_size=128, **values)
    experts = MuseSparkExperts(config)
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


@pytest.mark.parametrize(
    "name",
    long_but(
        [*FEW_MIXTURES, "mixtral", "deepseek_v3", "nemotron_h"],
        [*MIXTURES, *(name for name, family in OTHERS.items() if family.experts)],
    ),
)
def test_experts_compute_what_transformers_does_in_16_and_in_4_bits(name: str, base_of: Callable[[str], Path]) -> None:
    base = base_of(name)
    plain, own = load(base, "lora"), load(base, "lora")
    plain.set_experts_implementation("eager")
    assert use_own_experts(own) > 0
    quantized = load(base, "qlora")
    modules = dict(experts_of(quantized))
    assert modules
    for module in modules.values():
        assert module.config._experts_implementation == IMPLEMENTATION
        assert all(isinstance(getattr(module, matrix), ExpertsParams4bit) for matrix in matrix_names(module))
    linear = [module for module in quantized.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert all(module.out_features != 8 for module in linear), "routers stay in 16 bit"
    twin = put_weights_of(quantized, load(base, "lora"))
    for one, other in ((own, plain), (quantized, twin)):
        logits, gradient = logits_and_gradient(one)
        wanted, wanted_gradient = logits_and_gradient(other)
        torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-4, atol=1e-5)


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


class Transfers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts tensors made from Python's numbers, and operations that wait for the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.uploads = 0
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name.removeprefix("aten::"), kwargs or {}
        self.uploads += name == "lift_fresh"
        sized = name == "repeat_interleave" and kwargs.get("output_size") is not None
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "repeat_interleave") and not sized:
            self.waits.append(name)
        return func(*args, **kwargs)


class TiledProducts(UnfilledProducts):
    """The kernel's use of the offsets, without its products."""

    def multiply(
        self, rows: torch.Tensor, matrices: torch.Tensor, offsets: Offsets, block: Block | None, into: torch.Tensor
    ) -> None:
        assert len(matrices) == len(offsets.host if block is None else block.numbers)
        assert len(offsets.tiles.table) == offsets.tiles.before[-1]


@pytest.mark.parametrize(
    ("products", "uploads"), [(TiledProducts(), 1), (GroupedProducts(), 2)], ids=["tiles", "padded"]
)
def test_a_layer_reads_the_device_once_and_uploads_its_indices_together(
    products: GroupedProducts, uploads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward, with adapters and with experts between the others that no token chose."""
    config = transformers.Qwen3MoeConfig(num_experts=8, hidden_size=64, moe_intermediate_size=64)
    layer = transformers.models.qwen3_moe.modeling_qwen3_moe.Qwen3MoeExperts(config)
    adapters = {}
    for name in matrix_names(layer):
        shape = getattr(layer, name).shape
        setattr(layer, name, quantize_experts(torch.randn(shape), shape))
        down, up = torch.randn(8 * 4, shape[2]), torch.randn(shape[1], 8 * 4)
        adapters[name] = [ExpertAdapter(down.requires_grad_(), up.requires_grad_(), 1.0)]
    setattr(layer, ADAPTERS, adapters)
    use_own_experts(layer)
    read = mock.Mock(wraps=torch.Tensor.tolist)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: read(tensor))
    monkeypatch.setattr(experts, "is_grouped", lambda _: True)
    monkeypatch.setattr(experts, "experts_at_once", lambda *_: 3)
    monkeypatch.setattr(experts, "grouped_products", lambda *_: products)
    tokens, index = torch.randn(30, 64, requires_grad=True), torch.tensor([[0, 2], [3, 7], [2, 3]] * 10)
    weights = torch.rand(30, 2)
    with Transfers() as seen:
        layer(tokens, index, weights).sum().backward()
    assert read.call_count + len(seen.waits) == 1
    assert seen.uploads == uploads


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


def step_of(base: Path, method: str, target_experts: str) -> list[torch.Tensor]:
    """Logits, and the gradients of all adapters, whose matrices up are not zero as they are at first."""
    model = adapt(base, method, target_experts=target_experts)
    disturb(model)
    model.train()
    set_gradient_checkpointing(model, True)
    logits = model(input_ids=IDS).logits
    (logits.square().mean() * 100).backward()
    return [logits.detach(), *(parameter.grad for parameter in trainable_parameters(model))]


@pytest.mark.parametrize(
    ("name", "method", "target_experts"),
    long_but(
        [("qwen3_moe", "qlora", "on"), ("qwen3_5_moe", "lora", "on"), ("gpt_oss", "qlora", "off")],
        [(name, *how) for name in MIXTURES for how in (("qlora", "on"), ("qlora", "off"), ("lora", "on"))],
    ),
)
def test_a_step_is_the_same_grouped_and_one_by_one(
    name: str, method: str, target_experts: str, base_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    single = step_of(base_of(name), method, target_experts)
    product, block = mock.Mock(wraps=grouped_product), mock.Mock(wraps=experts._block)
    monkeypatch.setattr(experts, "is_grouped", lambda _: True)
    monkeypatch.setattr(experts, "grouped_product", product)
    monkeypatch.setattr(experts, "experts_at_once", lambda *_: 3)
    monkeypatch.setattr(experts, "_block", block)
    grouped = step_of(base_of(name), method, target_experts)
    assert product.called is (method == "qlora")
    assert all(len(one.numbers) <= 3 for (_, _, one), _ in block.call_args_list)
    for wanted, found in zip(single, grouped, strict=True):
        assert (found is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@cases("shape", [(5, 64, 96), (3, 64, 320), (4, 10, 20), (2, 256, 192), (3, 64, 64)])
@cases("dtype", [torch.float32, torch.bfloat16])
def test_experts_dequantized_together_are_those_dequantized_alone(shape: Any, dtype: torch.dtype) -> None:
    """To the last bit, where their blocks follow each other and where they do not."""
    torch.manual_seed(0)
    original = torch.randn(shape, dtype=dtype)
    weight = quantize_experts(original, shape)
    # 96 scales are not a multiple of 64, and 320 not of 256.
    every = slice(0, shape[0])
    assert (weight.block(Block(range(shape[0]), 0, every, every)) - original).abs().max() < 0.7
    some: list[Any] = [0, shape[0] - 1]
    for numbers, index in ((range(shape[0]), every), ([1], slice(1, 2)), (some, torch.tensor(some))):
        together = weight.block(Block(numbers, 0, every, index))
        assert together.dtype == dtype
        assert torch.equal(together, torch.stack([weight.expert(number) for number in numbers]))


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
    saved = tmp_path / "adapter"
    save_adapter(model, saved)
    again = load(base_of(name), "lora", adapter=saved)
    whole = getattr(transformers, auto_class(read_description(base_of(name) / "config.json") or {}))
    plain = whole.from_pretrained(base_of(name), dtype=torch.float32)
    plain.set_experts_implementation("eager")
    theirs = PeftModel.from_pretrained(plain, str(saved), is_trainable=True).eval()
    names = set(adapter_state(model)[0])
    assert any(".experts.lora_A" in name for name in names) is (which == "on")
    assert not any("router" in name or name.endswith("mlp.gate.lora_A.weight") for name in names)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(input_ids=IDS).logits, found, rtol=0, atol=0)
        torch.testing.assert_close(theirs(input_ids=IDS).logits, found, rtol=1e-4, atol=2e-5)
    # Autograd on the experts' weights with the adapters' product added; some are text parts of a composite model.
    wanted = {name.replace(".language_model", ""): gradient for name, gradient in _gradients(theirs).items()}
    gradients = _gradients(model)
    assert gradients.keys() == wanted.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[key], rtol=1e-3, atol=5e-5)


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


def test_a_second_adapter_goes_beside_the_first(base_of: Callable[[str], Path], tmp_path: Path) -> None:
    base = base_of("glm4_moe_lite")
    folders = []
    for seed in (1, 2):
        model = adapt(base)
        disturb(model, seed)
        folders.append(tmp_path / f"adapter-{seed}")
        save_adapter(model, folders[-1])
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
