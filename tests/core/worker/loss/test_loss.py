from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from core.memory.batching import chunk_positions
from core.worker.loss.loss import Head, SupervisedLoss, chunked_cross_entropy
from tests.cases import cases


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


@cases("chunk", [1, 7, 1000])
@cases("frozen", [True, False])
def test_chunks_give_the_loss_and_the_gradients_of_the_whole(chunk: int, frozen: bool) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=False).requires_grad_(not frozen)
    hidden = torch.randn(23, 16, requires_grad=True)
    targets = torch.randint(0, 50, (23,))
    whole = F.cross_entropy(head(hidden), targets, reduction="sum") * 0.25
    wanted = torch.autograd.grad(whole, [hidden, *([] if frozen else [head.weight])])
    loss = chunked_cross_entropy(head, hidden, targets, chunk) * 0.25
    got = torch.autograd.grad(loss, [hidden, *([] if frozen else [head.weight])])
    torch.testing.assert_close(loss, whole)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


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
    assert seen == [chunk_positions(vocabulary), 360 - chunk_positions(vocabulary)]
    (gradient,) = torch.autograd.grad(loss, [model.model.embed_tokens.weight])
    whole = model(input_ids=input_ids, labels=input_ids).loss * 360
    (wanted,) = torch.autograd.grad(whole, [model.model.embed_tokens.weight])
    torch.testing.assert_close(loss, whole, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4)


def test_scaled_logits_are_scaled() -> None:
    linear = torch.nn.Linear(4, 6, bias=False)
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(logit_scale=0.5, logits_scaling=2.0))
    model = SimpleNamespace(get_output_embeddings=lambda: linear, config=config)
    hidden = torch.randn(3, 4)
    torch.testing.assert_close(Head(model)(hidden), linear(hidden) * 0.25)
