"""Initialization, target layers and saving of adapters."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.config.schema import MethodSection, TrainSection
from core.errors import UserError
from core.worker.checkpoint import checkpoint as checkpoints
from core.worker.generate.generate import answering_as
from core.worker.model.adapters import (
    INITIAL,
    adapted_layers,
    attach_adapters,
    load_adapter,
    parameter_groups,
    switched_off,
)
from core.worker.model.model import LoadedModel, load_model, trainable_parameters
from core.worker.optim.optim import make_optimizer, set_learning_rate
from tests.cases import cases
from tests.core.models.spoiling import copy_model, drop_tensors, split_weights
from tests.short_list import long_but

IDS = torch.arange(1, 41).reshape(2, 20)
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def load(directory: Path, name: str = "lora", precision: str = "fp32") -> LoadedModel:
    return load_model(directory, method=name, precision=precision, device="cpu", for_training=True)


def adapt(directory: Path, *, name: Any = "lora", precision: str = "fp32", fresh: bool = True, **method: Any) -> Any:
    section = MethodSection(**{"name": name, "rank": 4} | method)
    return attach_adapters(load(directory, name, precision).model, section, seed=0, base=directory, fresh=fresh)


@torch.no_grad()
def logits(model: Any, precision: str = "fp32") -> torch.Tensor:
    model.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        found: torch.Tensor = model(input_ids=IDS).logits.float()
    model.train()
    return found


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference at a position, of the position in the middle.

    After steps this large a single position may be far off in bf16, depending on the processor.
    """
    return float((one - other).abs().amax(dim=-1).median())


def train(model: Any, steps: int = 5, *, optimizer: Any = None) -> list[float]:
    """Steps large enough that every matrix moves."""
    optimizer = optimizer or torch.optim.AdamW(trainable_parameters(model), lr=2e-2)
    losses = []
    for _ in range(steps):
        ids = torch.randint(0, 300, (2, 12))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def layer_of(model: Any, name: str = "model.layers.0.mlp.up_proj") -> Any:
    return model.get_base_model().get_submodule(name)


# Taken from the base: PiSSA.


@cases(("name", "precision", "tolerance"), [("lora", "fp32", 1e-5), ("qlora", "bf16", 0.03)])
def test_before_the_first_step_the_model_is_the_base(
    tiny_model_dir: Path, name: str, precision: str, tolerance: float
) -> None:
    base = logits(load(tiny_model_dir, name, precision).model, precision)
    model = adapt(tiny_model_dir, name=name, precision=precision, init="pissa")
    assert float((logits(model, precision) - base).abs().max()) <= tolerance
    assert float(layer_of(model).lora_B["default"].weight.detach().abs().max()) > 0


@cases("rslora", [False, True])
def test_pissa_begins_with_the_principal_directions(tiny_model_dir: Path, rslora: bool) -> None:
    layer = layer_of(adapt(tiny_model_dir, init="pissa", rslora=rslora, alpha=24.0))
    weight = layer.get_base_layer().weight.detach()
    left, values, right = torch.linalg.svd(weight)
    wanted = left[:, :4] @ torch.diag(values[:4]) @ right[:4]
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(layer.scaling["default"] * (up @ down).detach(), wanted, atol=1e-5, rtol=1e-4)
    # Both factors share the singular values, so that neither learns faster than the other.
    torch.testing.assert_close(down.norm(dim=1), up.norm(dim=0), atol=1e-5, rtol=1e-4)


@cases(("rslora", "name", "precision", "tolerance"), [(True, "lora", "fp32", 1e-4), (False, "qlora", "bf16", 0.05)])
def test_the_saved_adapter_is_plain_lora_for_the_original_base(
    tiny_model_dir: Path, tmp_path: Path, rslora: bool, name: str, precision: str, tolerance: float
) -> None:
    model = adapt(tiny_model_dir, name=name, precision=precision, init="pissa", rslora=rslora)
    train(model)
    expected = logits(model, precision)
    checkpoints.save_adapter(model, tmp_path)
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (said["r"], said["init_lora_weights"], said["use_rslora"]) == (8, True, False)
    trained = trainable_parameters(model)
    # Beside the adapters two moments, and the number of steps for each tensor.
    assert checkpoints.size_estimate(model) == 16 * sum(tensor.numel() for tensor in trained) + 4 * len(trained)
    base = load(tiny_model_dir, name, precision).model
    untouched = logits(base, precision)
    again = load_model(tiny_model_dir, method=name, precision=precision, device="cpu", adapter=tmp_path).model
    assert distance(expected, untouched) > 10 * tolerance
    assert distance(logits(again, precision), expected) <= tolerance


def test_the_base_answers_untouched_and_the_beginning_stays_frozen(tiny_model_dir: Path) -> None:
    model = adapt(tiny_model_dir, name="qlora", precision="bf16", init="pissa", dropout=0.1)
    train(model, 2)
    frozen = {name: tensor.clone() for name, tensor in model.state_dict().items() if f".{INITIAL}." in name}
    assert frozen
    with switched_off(model):
        assert torch.equal(logits(model, "bf16"), logits(load(tiny_model_dir, "qlora", "bf16").model, "bf16"))
    with answering_as(model, "base"):
        pass
    assert all(f".{INITIAL}." not in name for name, tensor in model.named_parameters() if tensor.requires_grad)
    train(model, 2)
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in frozen.items())


# Making up for 4 bits: LoftQ.


@cases(("sharded", "alpha"), [(False, 32.0), (True, 4.0)])
def test_loftq_brings_every_layer_nearer_to_its_16_bit_weights(
    tiny_model_dir: Path, tmp_path: Path, sharded: bool, alpha: float
) -> None:
    directory = copy_model(tiny_model_dir, tmp_path / "model")
    if sharded:
        split_weights(directory)
    model = adapt(directory, name="qlora", precision="bf16", init="loftq", rank=16, alpha=alpha)
    full = dict(load(directory).model.named_parameters())
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        layer = layer_of(model, name)
        weight = layer.get_base_layer().weight
        quantized = bnb.functional.dequantize_4bit(weight.data, weight.quant_state).float()
        added = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        error = full[f"{name}.weight"].detach() - quantized
        values = torch.linalg.svdvals(error)
        # The best approximation of that rank leaves the other singular values (Eckart and Young).
        assert float((error - added).detach().norm()) == pytest.approx(float(values[16:].norm()), rel=1e-3)
        assert float(values[16:].norm()) < 0.95 * float(error.norm())


def test_loftq_leaves_layers_in_16_bit_as_they_are(tiny_model_dir: Path) -> None:
    kept = load_model(
        tiny_model_dir, method="qlora", precision="fp32", device="cpu", for_training=True, keep_16bit=["layers.0.*"]
    ).model
    method = MethodSection(name="qlora", init="loftq", rank=8, dropout=0.0)
    model = attach_adapters(kept, method, seed=0, base=tiny_model_dir)
    for name, begins in (("model.layers.0.mlp.up_proj", False), ("model.layers.1.mlp.up_proj", True)):
        assert bool(layer_of(model, name).lora_B["default"].weight.any()) == begins


@cases(
    ("method", "says"),
    [
        ({"init": "loftq"}, "this base is not rounded"),
        ({"init": "pissa", "rank": 1024}, "at rank 1024 needs layers of that rank"),
        ({"name": "qlora", "init": "loftq", "rank": 1024}, "at rank 1024 needs layers of that rank"),
    ],
)
def test_a_beginning_that_no_layer_has_is_refused(tiny_model_dir: Path, method: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        adapt(tiny_model_dir, **method)


def test_loftq_names_the_weight_that_the_files_lack(tiny_model_dir: Path, tmp_path: Path) -> None:
    other = copy_model(tiny_model_dir, tmp_path / "other")
    drop_tensors(other, "layers.0.mlp.gate_proj")
    base = load(tiny_model_dir, "qlora", "bf16").model
    with pytest.raises(UserError, match=r"model\.layers\.0\.mlp\.gate_proj\.weight"):
        attach_adapters(base, MethodSection(name="qlora", rank=4, init="loftq"), seed=0, base=other)


# Going on.


OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "lion_8bit")
BEGINNINGS: tuple[dict[str, Any], ...] = (
    {"init": "pissa"},
    {"init": "loftq", "name": "qlora", "precision": "bf16"},
    {"init": "pissa", "name": "qlora", "precision": "bf16"},
    {"loraplus_ratio": 16.0},
    {"loraplus_ratio": 8.0, "dora": True},
)


@pytest.mark.parametrize(
    ("options", "optimizer"),
    long_but(list(zip(BEGINNINGS, OPTIMIZERS, strict=True)), itertools.product(BEGINNINGS, OPTIMIZERS)),
    ids=str,
)
def test_going_on_from_a_checkpoint_is_exact(
    tiny_model_dir: Path, tmp_path: Path, options: dict[str, Any], optimizer: Any
) -> None:
    settings = {"dropout": 0.2, "rank": 32} | options
    section = TrainSection(learning_rate=1e-3, optimizer=optimizer)

    def begin(*, fresh: bool) -> tuple[Any, Any]:
        model = adapt(tiny_model_dir, fresh=fresh, **settings)
        made = make_optimizer(parameter_groups(model, settings.get("loraplus_ratio")), section)
        set_learning_rate(made, 5e-3)
        return model, made

    model, first = begin(fresh=True)
    train(model, 3, optimizer=first)
    written = checkpoints.save_checkpoint(tmp_path, model=model, optimizer=first, step=3, facts={})
    expected = train(model, 3, optimizer=first)

    other, second = begin(fresh=False)
    checkpoints.restore(checkpoints.verify_checkpoint(written.path), model=other, optimizer=second)
    set_learning_rate(second, 5e-3)
    assert train(other, 3, optimizer=second) == expected
    wanted = dict(model.named_parameters())
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter, wanted[name]), name


# Learning rates by group.


def test_loraplus_gives_the_matrices_that_begin_at_zero_a_higher_rate(tiny_model_dir: Path) -> None:
    model = adapt(tiny_model_dir, dora=True)
    rest, up = parameter_groups(model, 16.0)
    assert isinstance(up, dict)
    assert isinstance(rest, dict)
    for group, is_up in ((rest, False), (up, True)):
        members = {id(parameter) for parameter in group["params"]}
        assert members == {
            id(parameter)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and ("lora_B" in name) is is_up
        }
    optimizer = make_optimizer(parameter_groups(model, None), TrainSection())
    set_learning_rate(optimizer, 3e-4)
    assert [group["lr"] for group in optimizer.param_groups] == [3e-4], "without a ratio"
    optimizer = make_optimizer([rest, up], TrainSection())
    set_learning_rate(optimizer, 1e-3)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 16e-3]
    # Adam's first step moves every weight by its rate.
    before = {id(parameter): parameter.detach().clone() for parameter in trainable_parameters(model)}
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    moved = {
        which: max(float((parameter.detach() - before[id(parameter)]).abs().max()) for parameter in group["params"])
        for which, group in (("rest", rest), ("up", up))
    }
    assert moved["up"] == pytest.approx(16e-3, rel=1e-2)
    assert moved["rest"] <= 1.01e-3


# Which layers.


@cases(
    ("targets", "found"),
    [
        ("all-linear", dict.fromkeys(LINEAR, 2)),
        (["q_proj", "v_proj"], {"q_proj": 2, "v_proj": 2}),
        ([r"re:model\.layers\.0\..*\.(q|v)_proj"], {"q_proj": 1, "v_proj": 1}),
        (["layers.[0-9].mlp.up*", "o_proj"], {"up_proj": 2, "o_proj": 2}),
    ],
)
def test_what_names_and_patterns_stand_for(tiny_model_dir: Path, targets: Any, found: dict[str, int]) -> None:
    assert adapted_layers(adapt(tiny_model_dir, target_modules=targets)) == found


@cases("targets", [["w_qkv"], ["w_*"], ["re:q_proj"], ["re:.*norm"]])
def test_targets_that_match_nothing_are_refused_with_those_there_are(tiny_model_dir: Path, targets: list[str]) -> None:
    with pytest.raises(UserError, match=r"(?s)matches no layer.*q_proj") as caught:
        adapt(tiny_model_dir, target_modules=targets)
    assert targets[0] in caught.value.message


# Put on a base.


UP = "base_model.model.model.layers.1.mlp.up_proj"


@cases(
    ("change", "says"),
    [
        (lambda state: [state.pop(f"{UP}.lora_A.weight")], rf"lacks factors .*{UP}\.lora_A"),
        (lambda state: [state.pop(f"{UP}.lora_{end}.weight") for end in "AB"], rf"lacks .*{UP}\.lora_A.*{UP}\.lora_B"),
        (lambda state: [state.update({"base_model.model.other": torch.ones(4)})], "has no place for: .*other"),
        (lambda state: [state.update({f"{UP}.lora_A.weight": torch.ones(2, 64)})], "does not fit this model"),
    ],
)
def test_factors_that_are_missing_or_left_over_are_named(
    tmp_path: Path, tiny_model_dir: Path, change: Any, says: str
) -> None:
    adapter = tmp_path / "adapter"
    checkpoints.save_adapter(adapt(tiny_model_dir), adapter)
    load_adapter(load(tiny_model_dir).model, adapter, trainable=False)
    state = load_file(adapter / "adapter_model.safetensors")
    change(state)
    save_file(state, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match=says) as caught:
        load_adapter(load(tiny_model_dir).model, adapter, trainable=False)
    assert "\n" not in caught.value.message
