"""Answers of models with recurrent layers: continuing from the cache equals reading all tokens anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from core.worker.generate import decoding, stops
from core.worker.generate.cache_trial import CacheUse, cache_use
from core.worker.generate.decoding import BatchDecoder, KeyValues
from core.worker.generate.generate import PrefixCache, Prompt, _batches
from tests.core.worker.hybrids import HYBRIDS, make_hybrid
from tests.tiny_model import write_tiny_model

IDS = torch.randint(3, 320, (48,), generator=torch.Generator().manual_seed(1)).tolist()
#: Rounding noise; a lost state is off by at least a tenth.
TOLERANCE = 2e-3
#: Families whose code takes a state up again with any number of tokens.
IN_PIECES = ("qwen3_5", "qwen3_5_moe", "lfm2", "lfm2_moe", "granitemoehybrid", "falcon_h1", "nemotron_h")

#: A family for each kind of cache; the others are long.
KINDS = ("qwen3_5", "jamba", "recurrent_gemma", "minimax")
EACH = [pytest.param(name, marks=() if name in KINDS else pytest.mark.long) for name in HYBRIDS]


@pytest.fixture(scope="module", params=EACH)
def network(request: pytest.FixtureRequest) -> Any:
    model = make_hybrid(request.param)
    model.name = request.param
    return model


@torch.no_grad()
def anew(network: Any, tokens: list[int]) -> torch.Tensor:
    """Logits after tokens that are read at once."""
    found: torch.Tensor = network(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
    return found


def differ(found: torch.Tensor | None, wanted: torch.Tensor) -> float:
    assert found is not None
    return float((found[0] - wanted).norm() / wanted.norm())


def not_cancelled() -> bool:
    return False


@torch.no_grad()
def test_a_prompt_in_pieces_and_tokens_after_it_are_as_if_read_at_once(
    network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "PIECE_TOKENS", 11)
    state = KeyValues(network)
    first = state.read(IDS[:40], not_cancelled)
    for token in IDS[40:]:
        found = state.extend(torch.tensor([[token]]))
    assert state.length == len(IDS)
    # A model may hold its state itself, and lose it by reading anew.
    assert differ(first, anew(network, IDS[:40])) < TOLERANCE
    assert differ(found, anew(network, IDS)) < TOLERANCE


@torch.no_grad()
def test_another_turn_or_branch_equals_a_conversation_read_anew(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (decoding, stops):
        monkeypatch.setattr(module, "PIECE_TOKENS", 8)
    kept = PrefixCache()

    def ask(tokens: list[int]) -> int:
        """Read a prompt and write an answer; returns the tokens that were not read again."""
        prompt = Prompt(network, tokens, frozenset(), 10, None)
        state, read = kept.take("tuned", prompt)
        assert differ(state.read(tokens[read:], not_cancelled), anew(network, tokens)) < TOLERANCE
        for token in IDS[:10]:
            state.extend(torch.tensor([[token]]))
        kept.keep("tuned", prompt, state)
        return read

    resumes = cache_use(network).pieces
    assert ask(IDS[:20]) == 0
    # A state cannot be cut to fewer tokens, so that of the whole pieces was copied.
    assert [ask(IDS[:20]), ask(IDS)] == [16 * resumes] * 2
    assert ask([*IDS[:20], *IDS[35:45]]) == 0


@torch.no_grad()
def test_conversations_together_get_the_answers_that_each_gets_alone(network: Any) -> None:
    """With a common beginning that is long enough to be read once elsewhere, and rows that leave the batch."""
    prompts = [IDS[:20] + IDS[25:30], IDS[:20] + IDS[30:33], [*IDS[:20], 7]]
    steps = 4
    alone = []
    for prompt in prompts:
        tokens = list(prompt)
        for _ in range(steps):
            tokens.append(int(anew(network, tokens).argmax()))
        alone.append(tokens[len(prompt) :])
    # The first token of the first answer becomes its stop token.
    stop = alone[0][0]
    wanted = [answer[: answer.index(stop)] if stop in answer else answer for answer in alone]
    answers: list[list[int]] = [[] for _ in prompts]
    for batch in _batches([len(prompt) for prompt in prompts], steps, padded=cache_use(network).padding):
        decoder = BatchDecoder(network, [prompts[row] for row in batch], 0, frozenset([stop]))
        for _ in range(steps):
            decoder.step()
        for row, answer in zip(batch, decoder.answers, strict=True):
            answers[row] = answer
    assert answers == wanted


def test_what_the_caches_of_the_families_are_good_for() -> None:
    """An upgrade of transformers that changes this changes how long answers take."""
    for name in IN_PIECES:
        assert cache_use(make_hybrid(name)) == CacheUse(True, True, True, True), name
    assert not cache_use(make_hybrid("jamba")).pieces
    assert not cache_use(make_hybrid("recurrent_gemma")).padding
    assert not cache_use(make_hybrid("minimax")).tokens


def test_rows_that_may_not_be_padded_are_batched_by_length() -> None:
    assert _batches([5, 7, 5, 7, 6], 4, padded=False) == [[1, 3], [4], [0, 2]]
    assert _batches([5, 7, 5], 4) == [[1, 0, 2]]


def test_models_that_attend_are_not_tried(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(write_tiny_model(tmp_path / "model"))
    monkeypatch.setattr(network, "forward", None)
    assert cache_use(network) == CacheUse()
