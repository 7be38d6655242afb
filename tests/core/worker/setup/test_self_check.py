from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from transformers import AutoModelForCausalLM, GraniteConfig, LlamaConfig

from core.errors import UserError
from core.worker.data.encode import TokenizedRow
from core.worker.fused import attention
from core.worker.fused.cross_entropy import Scaling
from core.worker.fused.install import fuse
from core.worker.loss.loss import SupervisedLoss
from core.worker.model.model import LoadedModel
from core.worker.oom.retry import MemoryShortageError
from core.worker.setup.objective import LEAST, SelfCheck, check_head, check_model
from tests.cases import cases

SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 1}
SHAPE = {**SMALL, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 2}


def attempt(config: Any, *, laid_out: bool = True, prepare: Any = lambda *_: None) -> SelfCheck:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.train()
    fuse(model, "default")
    loss = SupervisedLoss(model)
    prepare(model, loss)
    ids = np.arange(3, 90, dtype=np.int32)
    rows = [TokenizedRow(ids, np.ones(len(ids), dtype=np.bool_))]
    loaded = LoadedModel(model, None, torch.device("cpu"), torch.float32)
    before = torch.get_rng_state()
    found = check_model(loaded, loss, rows, contextlib.nullcontext, laid_out=laid_out)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    return found


@cases("config", [LlamaConfig(**SHAPE), GraniteConfig(**SHAPE, logits_scaling=4.0)])
def test_a_model_that_is_understood_passes(config: Any) -> None:
    found = attempt(config)
    assert found.mixed is None
    check_head(found, torch.float32, "a-model")


def test_a_head_that_is_not_understood_is_refused() -> None:
    def prepare(model: Any, loss: SupervisedLoss) -> None:
        loss.head.scaling = Scaling(3.0)

    for found in (attempt(LlamaConfig(**SHAPE), prepare=prepare), SelfCheck(float("nan"), None)):
        with pytest.raises(UserError, match=r"The output head of a-model works in a way .* here \(logits"):
            check_head(found, torch.float32, "a-model")


def test_leaks_between_packed_rows_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    def across(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> torch.Tensor:
        """Causal attention over the whole sequence."""
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2)

    monkeypatch.setattr(attention, "_attend_groups", across)
    found = attempt(LlamaConfig(**SHAPE))
    assert found.mixed is not None
    assert found.mixed.startswith("its hidden states would differ by ")


def test_layers_that_do_not_know_of_rows_are_noticed_where_rows_are_laid_out() -> None:
    def prepare(model: Any, loss: SupervisedLoss) -> None:
        model.set_attn_implementation("sdpa")

    found = attempt(LlamaConfig(**SHAPE), prepare=prepare)
    assert found.mixed == "0 of its 2 layers have attention that can be told where rows end"
    assert attempt(LlamaConfig(**SHAPE), laid_out=False, prepare=prepare).mixed is None


def short_of_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Attention over more than so many tokens of all rows does not fit."""
    usual = F.scaled_dot_product_attention

    def limited(query: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if query.shape[0] * query.shape[2] > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return usual(query, *args, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", limited)


def test_with_little_memory_only_the_head_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, LEAST)
    found = attempt(LlamaConfig(**SHAPE))
    check_head(found, torch.float32, "a-model")
    assert found.mixed == "memory ran out in trying it (CUDA out of memory. Tried to allocate 2.00 GiB.)"


def test_a_model_without_memory_for_a_few_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, LEAST - 1)
    with pytest.raises(MemoryShortageError, match="Memory ran out with 16 tokens, before training"):
        attempt(LlamaConfig(**SHAPE))
