from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from core.memory.batching import chunk_positions
from core.memory.phases import logits_bytes
from core.models.architecture.architecture import read_architecture
from core.worker.loss.loss import Head, Reduction, SupervisedLoss, chunked_cross_entropy
from core.worker.measure.tracker import AllocationTracker
from tests.cases import cases
from tests.core.models.architecture.published import LLAMA_3_8B


def tiny(kind: Any, **extra: Any) -> Any:
    torch.manual_seed(0)
    config = kind(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        **extra,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def head_of(linear: torch.nn.Linear, **config: float) -> Head:
    described = SimpleNamespace(get_text_config=lambda: SimpleNamespace(**config))
    return Head(SimpleNamespace(get_output_embeddings=lambda: linear, config=described))


@cases("chunk", [1, 7, 1000])
@cases("frozen", [True, False])
@cases("config", [{}, {"final_logit_softcapping": 2.0}])
@cases("reduction", ["sum", "none"])
def test_chunks_give_the_loss_and_the_gradients_of_the_whole(
    chunk: int, frozen: bool, config: dict[str, float], reduction: Reduction
) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 50, bias=False).requires_grad_(not frozen)
    head = head_of(linear, **config)
    hidden = torch.randn(23, 16, requires_grad=True)
    targets = torch.randint(0, 50, (23,))
    factors = 0.25 if reduction == "sum" else torch.linspace(0.1, 2, 23)
    learned = [hidden, *([] if frozen else [linear.weight])]
    whole = F.cross_entropy(head(hidden), targets, reduction=reduction) * factors
    wanted = torch.autograd.grad(whole.sum(), learned)
    loss = chunked_cross_entropy(head, hidden, targets, chunk, reduction) * factors
    got = torch.autograd.grad(loss.sum(), learned)
    torch.testing.assert_close(loss, whole)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@cases("config", [{}, {"final_logit_softcapping": 2.0}])
@cases("frozen", [True, False])
def test_the_logits_of_a_chunk_are_the_only_large_tensor(frozen: bool, config: dict[str, float]) -> None:
    """As the plan counts them, with the slice that is in fp32."""
    vocabulary, hidden = 100_003, torch.randn(40, 4, dtype=torch.bfloat16, requires_grad=True)
    linear = torch.nn.Linear(4, vocabulary, bias=False, dtype=torch.bfloat16).requires_grad_(not frozen)
    with AllocationTracker() as tracker:
        tracker.begin()
        loss = chunked_cross_entropy(head_of(linear, **config), hidden, torch.randint(0, 9, (40,)), 20)
        torch.autograd.grad(loss, [hidden] if frozen else [hidden, linear.weight])
    architecture = replace(read_architecture(LLAMA_3_8B, "m"), vocabulary=vocabulary, softcap=bool(config))
    counted = logits_bytes(architecture, 2, "cpu", 20)
    # Of the trained head the gradient of the other chunk, which the plan counts by itself.
    assert max(tracker.points) - (0 if frozen else linear.weight.nbytes) == pytest.approx(counted, rel=0.02)


@cases("model", [tiny(LlamaConfig), tiny(Gemma2Config, final_logit_softcapping=5.0)])
def test_the_loss_is_the_models_own_on_the_supervised_tokens(model: Any) -> None:
    torch.manual_seed(1)
    input_ids = torch.randint(1, 97, (3, 12))
    supervised = torch.rand(3, 12) < 0.4
    supervised[:, -1] = True
    labels = torch.where(supervised, input_ids, -100)
    theirs = model(input_ids=input_ids, labels=labels).loss * supervised[:, 1:].sum()
    loss = SupervisedLoss(model)
    torch.testing.assert_close(loss(input_ids, supervised), theirs, atol=1e-4, rtol=1e-4)
    assert loss.verify(input_ids[:1])[0] < 1e-5


def test_chunks_have_the_size_that_the_plan_counts() -> None:
    """At a vocabulary as large as Llama 3's and with more supervised positions than a chunk has."""
    vocabulary, seen = 128_256, list[int]()

    class Spy(torch.nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            seen.append(len(hidden))
            return super().forward(hidden)

    model = tiny(LlamaConfig)
    torch.manual_seed(0)
    model.lm_head = Spy(32, vocabulary, bias=False)
    model.config.vocab_size = vocabulary
    model.requires_grad_(False)
    model.model.embed_tokens.weight.requires_grad_()
    input_ids = torch.randint(1, 97, (2, 181))
    learned = torch.ones(2, 181, dtype=torch.bool)
    loss = SupervisedLoss(model)(input_ids, learned)
    chunk = chunk_positions(vocabulary, 4, "cpu")
    assert seen == [chunk] * (360 // chunk) + [360 % chunk]
    (gradient,) = torch.autograd.grad(loss, [model.model.embed_tokens.weight])
    whole = model(input_ids=input_ids, labels=input_ids).loss * 360
    (wanted,) = torch.autograd.grad(whole, [model.model.embed_tokens.weight])
    torch.testing.assert_close(loss, whole, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4)


def test_scaled_logits_are_scaled() -> None:
    linear, hidden = torch.nn.Linear(4, 6, bias=False), torch.randn(3, 4)
    head = head_of(linear, logit_scale=0.5, logits_scaling=2.0)
    torch.testing.assert_close(head(hidden), linear(hidden) * 0.25)
