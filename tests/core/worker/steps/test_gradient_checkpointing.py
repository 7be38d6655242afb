"""Gradient checkpointing of some layers: the same gradients to the last bit, whichever layers are recomputed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from core.worker.model.model import decoder_layers, set_gradient_checkpointing
from core.worker.steps import GradientCheckpointing
from tests.cases import cases
from tests.core.worker.setup.test_memory_decision import MODELS
from tests.core.worker.steps.stepper import make_state
from tests.core.worker.steps.test_window import WINDOW, Windows

IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
#: The families whose memory is planned, and two more.
FAMILIES = {name: model for name, model in MODELS.items() if "vision_config" not in model}
FAMILIES |= {name: {**MODELS["granite"], "model_type": name} for name in ("smollm3", "gpt_neox")}


def make(family: str, **options: Any) -> Any:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**FAMILIES[family], **IDS, **options}))


def recomputed(model: Any) -> Iterator[bool]:
    """For each layer, True if it is recomputed."""
    for layer in decoder_layers(model):
        yield layer.gradient_checkpointing


@cases("family", FAMILIES)
def test_every_family_has_a_switch_for_each_layer(family: str) -> None:
    model = make(family)
    layers = len(decoder_layers(model))
    assert set_gradient_checkpointing(model, True, kept_layers=layers - 1) == layers - 1
    assert list(recomputed(model)) == [True] + [False] * (layers - 1)
    assert set_gradient_checkpointing(model, True) == 0
    assert list(recomputed(model)) == [True] * layers
    assert set_gradient_checkpointing(model, False, kept_layers=2) == 0
    assert list(recomputed(model)) == [False] * layers
    ran: list[int] = []
    set_gradient_checkpointing(model.train(), True, kept_layers=layers - 1)
    for place, layer in enumerate(decoder_layers(model)):
        # The child is within the layer, so that a recomputation calls it again.
        for module in (layer, next(layer.children())):
            module.register_forward_pre_hook(lambda *_, place=place: ran.append(place))
    model(input_ids=torch.randint(3, 60, (1, 8)), use_cache=False).logits.sum().backward()
    assert [ran.count(place) for place in range(layers)] == [3] + [2] * (layers - 1)


@cases("kept", [0, 1, 2])
def test_gradients_are_the_same_to_the_last_bit(tiny_model_dir: Path, kept: int) -> None:
    """With dropout, whose masks are drawn again."""
    steps = Windows(tiny_model_dir, dropout=0.3)
    torch.manual_seed(7)
    _, wanted = steps.run_anew(WINDOW)
    steps.checkpointing.enable(kept_layers=kept)
    assert sum(recomputed(steps.model)) == len(decoder_layers(steps.model)) - steps.state.kept_layers
    torch.manual_seed(7)
    assert torch.equal(steps.run_anew(WINDOW)[1], wanted)


def test_fewer_layers_are_kept_each_time_memory_runs_out() -> None:
    model = make("llama", num_hidden_layers=32, hidden_size=64, intermediate_size=64)
    checkpointing = GradientCheckpointing(model, make_state())
    found: list[int] = []
    while not found or found[-1]:
        checkpointing.enable(kept_layers=checkpointing.fewer_kept_layers())
        found.append(checkpointing.state.kept_layers)
        assert sum(recomputed(model)) == 32 - found[-1]
    assert found == [16, 8, 4, 0]


def test_a_model_without_switches_per_layer_is_recomputed_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama")
    state = make_state()
    state.checkpointing, state.kept_layers = True, 2
    # As in models that call the checkpoint function themselves.
    monkeypatch.setattr("core.worker.model.model.decoder_layers", lambda _: [torch.nn.Linear(1, 1) for _ in range(4)])
    assert GradientCheckpointing(model, state).state.kept_layers == 0
    assert all(recomputed(model))


def test_kept_layers_are_saved_and_states_of_earlier_versions_have_none(tiny_model_dir: Path) -> None:
    steps = Windows(tiny_model_dir)
    model, state = steps.model, steps.state
    steps.checkpointing.enable(kept_layers=1)
    facts = {**state.facts(), "step": 3}
    assert facts["kept_layers"] == 1
    state.kept_layers = 0
    state.restore(facts)
    steps.checkpointing.apply()
    assert (state.kept_layers, list(recomputed(model))[-1]) == (1, False)
    del facts["kept_layers"]
    state.restore(facts)
    steps.checkpointing.apply()
    assert (state.checkpointing, state.kept_layers) == (True, 0)
    assert all(recomputed(model))
