from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Phi3Config
from transformers.models.llama.modeling_llama import LlamaMLP

from core.config.schema import MethodSection
from core.worker.fused.gated import ACTIVATIONS, GatedFeedForward, GatedProduct, Gating
from core.worker.fused.gated_networks import fuse_gated, recognize
from core.worker.fused.install import fuse
from core.worker.fused.mode import comparable
from core.worker.model.adapters import TRAINED, attach_adapters, switched_off
from core.worker.model.model import load_model, set_gradient_checkpointing
from tests.cases import cases

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
IDS = torch.arange(36).reshape(3, 12) % 61 + 1


def adapted(config: Any, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).requires_grad_(False)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.1)
    return stirred(attach_adapters(model, MethodSection(rank=4, **options), seed=0))


def stirred(model: Any) -> Any:
    """A model whose adapters have an effect."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1, generator=generator)
    return model.train()


def networks(model: Any) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__.endswith("MLP")]


@contextmanager
def one_by_one() -> Iterator[None]:
    """Everything fused but the gated networks, which run as their modules do."""
    with patch.object(GatedFeedForward, "__call__", lambda form, x: form._usual(x)):
        yield


def loss_and_gradients(model: Any) -> list[torch.Tensor]:
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=model.dtype == torch.bfloat16):
        logits = model(input_ids=IDS, use_cache=False).logits
    loss = logits.float().logsumexp(-1).mean()
    return [loss, *torch.autograd.grad(loss, [one for one in model.parameters() if one.requires_grad])]


def assert_equal_to_one_by_one(model: Any) -> list[torch.Tensor]:
    """Loss and gradients are bit-equal to those of unfused networks; returns them."""
    found = loss_and_gradients(model)
    with one_by_one():
        wanted = loss_and_gradients(model)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))
    return found


CONFIGS = (LlamaConfig(**SMALL), Gemma2Config(**SMALL), Phi3Config(**SMALL))


@cases("checkpointing", [False, True])
@cases("dropout", [0.0, 0.3])
@cases("dtype", [torch.float32, torch.bfloat16], ids=str)
@cases("config", CONFIGS, ids=lambda config: config.model_type)
def test_it_learns_to_the_bit_as_one_by_one(
    config: Any, dtype: torch.dtype, dropout: float, checkpointing: bool
) -> None:
    model = adapted(config, dtype, dropout=dropout)
    assert fuse(model, TRAINED).gated == 2
    set_gradient_checkpointing(model, checkpointing)
    assert_equal_to_one_by_one(model)


@cases("targets", [["q_proj"], ["gate_proj", "q_proj"], ["down_proj"], ["up_proj", "down_proj"]])
def test_some_of_its_layers_have_no_adapter(targets: list[str]) -> None:
    model = adapted(CONFIGS[0], target_modules=targets)
    assert fuse(model, TRAINED).gated == 2
    assert_equal_to_one_by_one(model)


@cases("options", [{}, {"dropout": 0.2}])
def test_four_bits_learn_as_one_by_one(tiny_model_dir: Path, options: dict[str, Any]) -> None:
    loaded = load_model(tiny_model_dir, method="qlora", precision="fp32", device="cpu")
    model = stirred(attach_adapters(loaded.model, MethodSection(rank=4, **options), seed=0))
    assert fuse(model, TRAINED).gated == model.config.num_hidden_layers
    assert_equal_to_one_by_one(model)


@cases("checkpointing", [False, True])
@cases("dtype", [torch.float32, torch.bfloat16], ids=str)
@cases(("config", "trained"), [(0, ""), (1, ""), (2, ""), (0, "layers.1"), (0, "down_proj"), (0, "up_proj")])
def test_trained_layers_learn_to_the_bit_as_one_by_one(
    config: int, trained: str, dtype: torch.dtype, checkpointing: bool
) -> None:
    """All of them, those of a layer, or some."""
    model = of_own_weights(CONFIGS[config], trained, dtype)
    assert fuse(model, TRAINED).gated == 2
    set_gradient_checkpointing(model, checkpointing)
    assert_equal_to_one_by_one(model)


def test_a_trained_bias_has_its_gradient() -> None:
    model = of_own_weights(LlamaConfig(**SMALL, mlp_bias=True))
    assert fuse(model, TRAINED).gated == 2
    assert_equal_to_one_by_one(model)


def of_own_weights(config: Any, trained: str = "", dtype: torch.dtype = torch.float32) -> Any:
    """A model without adapters, whose parameters with ``trained`` in their names are trained."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name).data.normal_(std=0.1)
    return model.train()


@cases("config", [0, 2])
def test_of_trained_layers_two_wide_tensors_are_kept(config: int) -> None:
    model = of_own_weights(CONFIGS[config])
    fuse(model, TRAINED)
    storages = [tensor.untyped_storage() for tensor in kept_for_backward(model, learned=True)]
    assert sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) == 64 * 4 * (32 + 2 * 48)


def kept_for_backward(model: Any, *, learned: bool) -> list[torch.Tensor]:
    """Tensors that a pass of a network over 64 tokens keeps, parameters left out."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        networks(model)[0](torch.randn(1, 64, 32, requires_grad=learned))
    return [tensor for tensor in kept if tensor.untyped_storage().data_ptr() not in own]


@cases(("config", "dropout", "wide"), [(0, 0.0, 2), (0, 0.3, 2.25), (2, 0.0, 2), (2, 0.3, 2.25)])
def test_two_wide_tensors_are_kept(config: int, dropout: float, wide: float) -> None:
    """And of the dropout, a byte for each feature."""
    model = adapted(CONFIGS[config], dropout=dropout)
    fuse(model, TRAINED)
    projections = 2 if config == 0 else 1
    # The input, or a dropped input for each projection with its mask in the input's dtype; and the adapters' own.
    inputs = 32 * (2 * projections if dropout else 1)
    expected = 64 * 4 * (inputs + wide * 48 + 4 * (projections + 1))
    storages = [tensor.untyped_storage() for tensor in kept_for_backward(model, learned=True)]
    assert sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) == expected


def test_a_pass_without_gradients_is_the_networks_own_unless_it_is_compared() -> None:
    model = adapted(CONFIGS[0])
    fuse(model, TRAINED)
    network = networks(model)[0]
    form: Any = vars(network)["forward"].usual
    form._usual, form._project = Mock(wraps=form._usual), Mock(wraps=form._project)
    x = torch.randn(1, 3, 32)
    with torch.no_grad():
        plain = network(x)
        assert (form._usual.call_count, form._project.call_count) == (1, 0)
        with comparable():
            fused = network(x)
    assert (form._usual.call_count, form._project.call_count) == (1, 1)
    torch.testing.assert_close(plain, fused)


def test_adapters_that_are_off_have_no_part_in_it() -> None:
    model = adapted(CONFIGS[0])
    fuse(model, TRAINED)
    network, x = networks(model)[0], torch.randn(2, 5, 32)
    with switched_off(model):
        found = network(x)
    layers = [getattr(network, name).get_base_layer() for name in ("gate_proj", "up_proj", "down_proj")]
    wanted = layers[2](torch.nn.functional.silu(layers[0](x)) * layers[1](x))
    torch.testing.assert_close(found, wanted)
    assert not torch.equal(found, network(x))


# Recognition.


def network_of(activation: str = "silu", **members: Any) -> Any:
    """A frozen network of Llama, with another forward if there is one among the members."""
    kind = type("OtherMLP", (LlamaMLP,), members) if members else LlamaMLP
    return kind(LlamaConfig(**SMALL, hidden_act=activation)).requires_grad_(False)


@cases(
    ("activation", "found"),
    [
        ("swish", "silu"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("gelu_new", "gelu_tanh"),
        ("gelu", "gelu"),
        ("quick_gelu", None),
        ("prelu", None),
    ],
)
def test_activation_functions_are_recognized_by_what_they_do(activation: str, found: str | None) -> None:
    recognized = recognize(network_of(activation))
    assert (None if recognized is None else recognized.name) == found


def raising(_network: Any, _x: torch.Tensor) -> torch.Tensor:
    raise NotImplementedError


@cases(
    "forward",
    [
        lambda self, x: self.down_proj(self.act_fn(self.gate_proj(x).clamp(max=7.0)) * self.up_proj(x)),
        # It asks for an attribute that is none of its layers.
        lambda self, x: self.down_proj(self.act_fn(self.gate_proj(x) if self.hidden_size else x) * self.up_proj(x)),
        lambda self, x: self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x)),
        raising,
    ],
    ids=["clamped", "asking", "turned", "raising"],
)
def test_a_network_that_does_anything_else_is_left_alone(forward: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
    network = network_of(forward=forward)
    assert recognize(network) is None
    assert fuse_gated(network, {}, torch.float32) == 0
    assert "forward" not in vars(network)


@cases(
    "change",
    [
        lambda network: network.register_forward_hook(lambda *_: None),
        lambda network: network.down_proj.register_forward_pre_hook(lambda *_: None),
        lambda network: setattr(network, "forward", lambda x: x),
    ],
    ids=["hooked", "hooked within", "patched"],
)
def test_a_network_that_others_have_a_hand_in_is_left_alone(change: Callable[[Any], object]) -> None:
    network = network_of()
    assert fuse_gated(network, {}, torch.float32) == 1
    del network.forward
    change(network)
    assert fuse_gated(network, {}, torch.float32) == 0
    assert not isinstance(vars(network).get("forward"), GatedFeedForward)


def test_adapters_that_cannot_be_fused_leave_the_network_alone() -> None:
    assert fuse(adapted(CONFIGS[0], dora=True), TRAINED).gated == 0


# The product.


@cases("activation", ACTIVATIONS, ids=lambda activation: activation.name)
@cases("joined", [False, True])
def test_the_gradients_of_the_product_are_right(activation: Any, joined: bool) -> None:
    torch.manual_seed(0)
    gate, up = (torch.randn(2, 3, 5, dtype=torch.float64).requires_grad_() for _ in range(2))

    def product(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        inputs = (torch.cat([gate, up], dim=-1), None) if joined else (gate, up)
        out: torch.Tensor = GatedProduct.apply(*inputs, Gating(activation))  # type: ignore[no-untyped-call]
        return out

    assert torch.autograd.gradcheck(product, (gate, up))
    outer = torch.randn(2, 3, 5, dtype=torch.float64)
    gating = Gating(activation)
    *gradients, made = gating.gradients_and_product(outer.clone(), gate.detach(), up.detach())
    assert torch.equal(made, gating.product(gate, up).detach())
    for ours, theirs in zip(gradients, gating.gradients(outer, gate.detach(), up.detach()), strict=True):
        assert torch.equal(ours, theirs)


def test_below_the_first_adapter_only_the_input_of_the_down_projection_is_kept() -> None:
    model = adapted(CONFIGS[0], target_modules=["down_proj"])
    fuse(model, TRAINED)
    kept = [tensor.shape for tensor in kept_for_backward(model, learned=False)]
    assert kept.count(torch.Size([64, 48])) == 1
    assert torch.Size([1, 64, 48]) not in kept
