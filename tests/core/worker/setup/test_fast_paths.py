from __future__ import annotations

import contextlib
import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    Mamba2Config,
    MistralConfig,
)
from transformers.models.mistral import modeling_mistral

from core.config.schema import Config
from core.errors import UserError
from core.worker.data.batches import collate
from core.worker.data.encode import TokenizedRow
from core.worker.fused import attention
from core.worker.fused.install import Fused
from core.worker.fused.lora import LoraLinear
from core.worker.loss.loss import SupervisedLoss
from core.worker.loss.objectives import AdapterOffReference
from core.worker.model.model import LoadedModel, set_gradient_checkpointing, trainable_parameters
from core.worker.setup.objective import SelfCheck, check_model, choose_packing, wants_packing
from core.worker.setup.ready_model import fuse_layers
from tests.cases import cases
from tests.core.worker.steps.stepper import Stepper, adapted

SYSTEM = np.arange(30, 50)


def rows(count: int = 6) -> list[TokenizedRow]:
    random = np.random.default_rng(0)
    made = []
    for _ in range(count):
        own = random.integers(5, 250, random.integers(4, 20))
        ids = np.concatenate([SYSTEM, own]).astype(np.int32)
        supervised = np.zeros(len(ids), dtype=np.bool_)
        supervised[len(SYSTEM) + 2 :] = True
        made.append(TokenizedRow(ids, supervised))
    return made


def config(**sections: dict[str, Any]) -> Config:
    return Config.model_validate({"data": {"train": "rows.jsonl"}, **sections})


def settle(wanted: Config, loaded: LoadedModel, fused: Fused) -> SupervisedLoss:
    packed = wants_packing(wanted, fused)
    found = check_model(loaded, SupervisedLoss(loaded.model), rows(), contextlib.nullcontext, laid_out=packed)
    return SupervisedLoss(loaded.model, choose_packing(wanted, loaded, rows(), fused, found))


class Setup:
    def __init__(self, directory: Path, wanted: Config, precision: str = "fp32") -> None:
        self.loaded = adapted(directory, precision=precision, **wanted.method.model_dump())
        self.fused = fuse_layers(wanted, self.loaded, attention_alone=wanted.train.compile)
        self.loss = settle(wanted, self.loaded, self.fused)

    def gradient(self, chosen: list[TokenizedRow]) -> torch.Tensor:
        """Of the summed loss of some rows as one batch."""
        parameters = trainable_parameters(self.loaded.model)
        loss = self.loss(*collate(chosen, 0, self.loaded.device))
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)])


@cases(
    ("train", "recomputed"),
    [({}, False), ({}, True), ({"packing": True}, False), ({"packing": True, "share_prefix": False}, False)],
)
def test_gradients_of_a_batch_are_sums_over_rows(tiny_model_dir: Path, train: dict[str, Any], recomputed: bool) -> None:
    plain = Setup(tiny_model_dir, config(train={"fused_layers": False, "share_prefix": False}))
    together = Setup(tiny_model_dir, config(train=train))
    assert together.loss.packing.share is train.get("share_prefix", True)
    assert together.loss.packing.pack is train.get("packing", False)
    set_gradient_checkpointing(together.loaded.model, recomputed)
    wanted = torch.stack([plain.gradient([row]) for row in rows()]).sum(dim=0)
    torch.testing.assert_close(together.gradient(rows()), wanted, atol=1e-5, rtol=1e-3)


@cases("method", [{"dropout": 0.1}, {"neftune_alpha": 5.0}])
def test_rows_with_draws_of_their_own_share_nothing(tiny_model_dir: Path, method: dict[str, Any]) -> None:
    assert not Setup(tiny_model_dir, config(method=method)).loss.packing.share


@cases("dropout", [{}, {"resid_pdrop": 0.1}, {"attn_pdrop": 0.1}])
def test_rows_share_nothing_where_the_model_has_dropout_of_its_own(dropout: dict[str, float]) -> None:
    shape = {"vocab_size": 260, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    still = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    assert arrange(GPT2Config(**shape, **still | dropout)).packing.share is (not dropout)


@cases("train", [{}, {"packing": True}])
@cases("budget", [1, 90])
def test_shared_beginnings_do_not_depend_on_the_cut(tiny_model_dir: Path, train: dict[str, Any], budget: int) -> None:
    setup = Setup(tiny_model_dir, config(train=train))
    steps = Stepper(setup.loaded, setup.loss, rows())
    assert steps.micro_batches.loss.packing.share
    loss, gradient = steps.run_anew(range(len(rows())))
    steps.state.token_budget = budget
    other, found = steps.run_anew(range(len(rows())))
    assert other == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(found, gradient, atol=1e-6, rtol=1e-4)


def test_a_step_runs_again_when_a_fused_backward_lacks_memory(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = Setup(tiny_model_dir, config())
    steps = Stepper(setup.loaded, setup.loss, rows(), free_caches=setup.fused.drop_weights)
    steps.state.token_budget = 200
    loss, gradient = steps.run_anew(range(len(rows())))
    usual, calls = LoraLinear.backward, itertools.count(1)

    def failing(ctx: Any, *outputs: torch.Tensor) -> Any:
        if next(calls) == 7:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return usual(ctx, *outputs)

    monkeypatch.setattr(LoraLinear, "backward", staticmethod(failing))
    other, found = steps.run_anew(range(len(rows())))
    assert steps.notices == ["memory_cut"]
    assert next(calls) > 8
    assert other == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(found, gradient, atol=1e-6, rtol=1e-4)


def test_log_probabilities_are_the_same_to_the_last_bit_with_gradients_and_without(tiny_model_dir: Path) -> None:
    """Log-ratios of preference training must differ by learning alone, not by rounding."""
    setup = Setup(tiny_model_dir, config(), precision="bf16")
    for name, parameter in setup.loaded.model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    batch = collate(rows(), 0, setup.loaded.device)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = setup.loss.log_probabilities(*batch).detach()
        before = AdapterOffReference(setup.loaded.model, setup.loss)(rows(), *batch)
    assert torch.equal(found, before)


def arrange(model_config: Any, *, attention_alone: bool = False, **train: Any) -> SupervisedLoss:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(model_config))
    wanted = config(train=train)
    loaded = LoadedModel(model, None, torch.device("cpu"), torch.float32)
    return settle(wanted, loaded, fuse_layers(wanted, loaded, attention_alone=attention_alone))


def assert_as_padded(loss: SupervisedLoss) -> None:
    """The loss is that of the padded batch."""
    batch = collate(rows(), 0, torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(loss(*batch), SupervisedLoss(loss._causal)(*batch))


SMALL = {"vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
LLAMA = {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}


RECURRENT = Mamba2Config(**SMALL, num_heads=8, head_dim=8, state_size=8, n_groups=1, chunk_size=8)
#: Convolutions of three tokens. New weights are so small that rows leak by less than rounding.
CONVOLVED = Lfm2Config(**SMALL, **LLAMA, layer_types=["conv", "full_attention"], block_ff_dim=48, block_multiple_of=8)


@cases(
    ("model_config", "reason"),
    [
        (RECURRENT, ""),
        (CONVOLVED, "its short convolutions carry a state from token to token"),
        (MistralConfig(**SMALL, **LLAMA, attention_dropout=0.1), "its attention is not plainly causal or has dropout"),
        (LlamaConfig(**SMALL, **LLAMA, attn_implementation="eager"), "the model's attention is eager"),
        (FalconConfig(**SMALL, num_attention_heads=4), "its attention has code of its own"),
    ],
    ids=["recurrent", "convolved", "dropout", "eager", "falcon"],
)
def test_packing_is_refused_where_rows_would_not_be_kept_apart(model_config: Any, reason: str) -> None:
    assert not arrange(model_config).packing.share
    with pytest.raises(UserError, match=rf"train\.packing is on, and rows .* would not be kept apart: .*{reason}"):
        arrange(model_config, packing=True)


@cases(("masked", "kind"), [(True, "cuda"), (False, "cuda"), (True, "cpu")])
def test_attention_has_a_price_where_a_card_needs_masks(tiny_model_dir: Path, masked: bool, kind: str) -> None:
    setup = Setup(tiny_model_dir, config())
    check = SelfCheck(0.0, None, masked=masked)
    loaded = LoadedModel(setup.loaded.model, None, torch.device(kind), torch.float32)
    found = choose_packing(config(), loaded, rows(), setup.fused, check)
    assert found.share
    if not (masked and kind == "cuda"):
        assert found.pair == 0
        return
    settings = setup.loaded.model.config
    size, keys = settings.hidden_size, settings.num_key_value_heads * settings.head_dim
    queries = settings.num_attention_heads * settings.head_dim
    weights = 2 * size * (queries + keys) + 3 * size * settings.intermediate_size
    # The adapters of a tiny model add much.
    assert 0.4 * 2 * queries / weights < found.pair < 2 * queries / weights


def test_a_family_that_looks_into_its_masks_gets_them_spelled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = modeling_mistral.MistralAttention.forward

    def looking(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if (mask := kwargs.get("attention_mask")) is not None:
            kwargs["attention_mask"] = mask[:, :, :, : hidden_states.shape[1]]
        return usual(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(modeling_mistral.MistralAttention, "forward", looking)
    monkeypatch.setattr(attention, "_windowed", {"cpu"})
    loss = arrange(MistralConfig(**SMALL, **LLAMA, sliding_window=26))
    assert attention._windowed == set()
    assert_as_padded(loss)


def test_rows_longer_than_a_window_go_padded() -> None:
    """A window shorter than the rows: refused by the layout, and right all the same."""
    loss = arrange(MistralConfig(**SMALL, **LLAMA, sliding_window=26), packing=True)
    assert loss.packing.pack
    assert_as_padded(loss)


def test_nothing_is_fused_that_is_not_wanted(tiny_model_dir: Path) -> None:
    setup = Setup(tiny_model_dir, config(train={"fused_layers": False}))
    assert setup.fused == Fused((), 0, False, False)
    assert not setup.loss.packing.share
