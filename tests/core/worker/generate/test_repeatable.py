"""Answers do not depend on what was asked before: bit for bit, with what stays of other conversations."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from core.chat.request import ChatRequest, GenerationSettings
from core.worker.data.encode import as_model_tokenizer
from core.worker.generate.generate import PrefixCache, answer_prompt, prepare_prompt
from core.worker.generate.scores import TokenScores
from core.worker.model.model import LoadedModel, load_model

SYSTEM = {"role": "system", "content": "ticket " * 130}


@pytest.fixture(scope="module")
def tiny(tiny_model_dir: Path) -> LoadedModel:
    """In bf16, where an answer depends on the order of its sums."""
    return load_model(tiny_model_dir, method="lora", precision="bf16", device="cpu")


def questions() -> list[ChatRequest]:
    """A hundred short prompts: questions, further turns of them, and drawn answers."""
    asked = []
    for number in range(50):
        messages = [SYSTEM, {"role": "user", "content": "ticket " * (number % 7) + f"number {number}"}]
        asked.append(ChatRequest(messages, settings=GenerationSettings(4)))
        turns = [
            *messages,
            {"role": "assistant", "content": "area " * (number % 9)},
            {"role": "user", "content": "and?"},
        ]
        asked.append(ChatRequest(turns, settings=GenerationSettings(4, 1.0, seed=number)))
    return asked


def answers(network: Any, tokenizer: Any, asked: list[ChatRequest]) -> tuple[dict[int, Any], int]:
    """The text and the scores of each answer, by its question; and the number of tokens that were not read again."""
    kept, found, reused = PrefixCache(), {}, 0
    bytes_of = as_model_tokenizer(tokenizer, ()).token_bytes
    for question in asked:
        prompt = prepare_prompt(network, tokenizer, question.messages, question.budget)
        told: list[Any] = []
        generation = answer_prompt(
            network,
            tokenizer,
            prompt,
            question.settings,
            told.append,
            lambda: False,
            began=time.monotonic(),
            kept=kept,
            scores=TokenScores(question, bytes_of, told.append),
        )
        found[id(question)] = (generation.text, told)
        reused += generation.reused_tokens
    return found, reused


@pytest.mark.parametrize("sliding", [False, True])
def test_a_hundred_prompts_in_two_orders_have_the_same_answers(tiny: LoadedModel, sliding: bool) -> None:
    network = tiny.model
    if sliding:
        config = Gemma3TextConfig(
            vocab_size=network.config.vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16, sliding_window=64,
            layer_types=["sliding_attention", "full_attention"], max_position_embeddings=1024,
        )  # fmt: skip
        network = Gemma3ForCausalLM(config).bfloat16().eval()
    asked = questions()
    first, reused = answers(network, tiny.tokenizer, asked)
    # A sliding window has no beginning to go back to.
    assert reused >= (1 if sliding else 99 * 128), "the system prompt is read once"
    random.Random(3).shuffle(asked)
    second, _ = answers(network, tiny.tokenizer, asked)
    assert first == second
    alone, nothing = answers(network, tiny.tokenizer, asked[:1])
    assert (alone[id(asked[0])], nothing) == (first[id(asked[0])], 0)
