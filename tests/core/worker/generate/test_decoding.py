from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from core.chat.request import GenerationSettings
from core.errors import UserError
from core.worker.generate.decoding import LIKELIEST, Sampler, TextStream
from tests.cases import cases


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte a token, so that most characters are cut somewhere."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


BYTES = byte_tokenizer()
#: Number of draws that estimate a distribution.
DRAWS = 500


@given(st.text())
def test_text_comes_in_whole_characters(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    stream = TextStream(BYTES)
    pieces = [stream.push(token) for token in BYTES(text, add_special_tokens=False)["input_ids"]]
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text
    pieces.append(stream.flush())
    assert "".join(pieces) == stream.text == text


@given(st.lists(st.integers(0, 255), max_size=40))
def test_any_tokens_give_the_text_that_they_give_together(tokens: list[int]) -> None:
    stream = TextStream(BYTES)
    for token in tokens:
        stream.push(token)
    stream.flush()
    whole = BYTES.decode(tokens)
    # Broken bytes may count as more or fewer replacement characters, depending on where they are cut.
    assert stream.text.replace("\ufffd", "") == whole.replace("\ufffd", "")
    assert ("\ufffd" in stream.text) == ("\ufffd" in whole)


def test_broken_bytes_do_not_hold_the_stream_up_forever() -> None:
    stream = TextStream(BYTES)
    broken = BYTES.convert_tokens_to_ids(chr(0xFF))
    assert any(stream.push(broken) for _ in range(20))


def distribution(sampler: Sampler, logits: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Tokens drawn at evenly spaced places of the distribution: ``(vocabulary,)``."""
    places = iter((torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS)
    monkeypatch.setattr(torch, "rand", lambda *_args, **_kwargs: next(places))
    found = torch.zeros(len(logits), dtype=torch.float64)
    for _ in range(DRAWS):
        found[sampler.choose(logits)] += 1 / DRAWS
    return found


def test_a_seed_gives_the_same_tokens() -> None:
    logits = torch.randn(2000, generator=torch.Generator().manual_seed(2))
    settings = [GenerationSettings(temperature=1.0, top_p=0.95, seed=seed) for seed in (7, 7, 8)]
    first, second, other = map(Sampler, settings)
    tokens = [first.choose(logits) for _ in range(50)]
    assert tokens == [second.choose(logits) for _ in range(50)]
    assert tokens != [other.choose(logits) for _ in range(50)]


def test_only_the_likeliest_logits_come_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []
    usual = torch.Tensor.cpu

    def counted(tensor: torch.Tensor) -> torch.Tensor:
        moved.append(tensor.numel())
        return usual(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", counted)
    logits = 4 * torch.randn(50_000, generator=torch.Generator().manual_seed(3))
    for _ in range(20):
        Sampler(GenerationSettings(temperature=0.7, top_p=0.9)).choose(logits)
    assert moved == [2 * LIKELIEST + 1] * 20
    Sampler(GenerationSettings()).choose(logits)
    assert len(moved) == 20


@cases("value", [float("nan"), float("inf")])
@cases("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_reported(value: float, temperature: float) -> None:
    with pytest.raises(UserError, match="not numbers"):
        Sampler(GenerationSettings(temperature=temperature)).choose(torch.tensor([1.0, value, 0.0]))


def by_transformers(
    logits: torch.Tensor, *, temperature: float, top_k: int, top_p: float, min_p: float
) -> torch.Tensor:
    """The distribution that transformers' own warpers leave, in their order."""
    import transformers

    warpers = transformers.LogitsProcessorList([transformers.TemperatureLogitsWarper(temperature)])
    warpers += [transformers.TopKLogitsWarper(top_k)] if top_k else []
    warpers += [transformers.TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [transformers.MinPLogitsWarper(min_p)] if min_p else []
    warped: torch.Tensor = warpers(torch.zeros(1, 1, dtype=torch.long), logits[None])
    return warped.softmax(-1)[0]


@cases(("size", "spread"), [(12, 3.0), (2000, 0.01), (2000, 3.0)])
@cases(
    ("top_k", "top_p", "min_p"),
    [
        *((0, 1e-6, 0.0), (0, 0.3, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.0), (3, 1.0, 0.0), (0, 1.0, 0.2)),
        *((6, 0.8, 0.0), (0, 0.9, 0.1), (5, 0.95, 0.15), (1, 1.0, 0.0), (1500, 0.9, 0.0)),
    ],
)
def test_what_is_drawn_is_what_transformers_would_draw(
    size: int, spread: float, top_k: int, top_p: float, min_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from a nearly flat distribution, where the likeliest tokens hold little."""
    torch.manual_seed(1)
    logits = torch.randn(size) * spread
    settings = GenerationSettings(temperature=1.3, top_k=top_k, top_p=top_p, min_p=min_p)
    wanted = by_transformers(logits, temperature=1.3, top_k=min(top_k, size), top_p=top_p, min_p=min_p)
    found = distribution(Sampler(settings), logits, monkeypatch)
    assert set(found.nonzero().flatten().tolist()) <= set(wanted.nonzero().flatten().tolist())
    assert float((found - wanted).abs().max()) <= 1 / DRAWS + 1e-6


def test_frequency_and_presence_penalties_are_those_of_openai() -> None:
    settings = GenerationSettings(frequency_penalty=0.5, presence_penalty=0.75)
    logits, written = torch.tensor([3.0, 2.0, 1.5, 0.0]), list[int]()
    sampler = Sampler(settings, before=[0])
    for _ in range(8):
        lowered = [
            logit - 0.5 * written.count(token) - 0.75 * (token in written)
            for token, logit in enumerate(logits.tolist())
        ]
        assert sampler.choose(logits) == lowered.index(max(lowered))
        written.append(lowered.index(max(lowered)))
    assert len(set(written)) == 3, "the prompt does not count"


def test_a_bias_is_added_to_the_logits_of_tokens() -> None:
    logits = torch.tensor([3.0, 2.0, 1.5, 0.0])
    assert Sampler(GenerationSettings(logit_bias={"0": -100, "3": 3})).choose(logits) == 3
    with pytest.raises(UserError, match="the token 4, and the model has 4"):
        Sampler(GenerationSettings(logit_bias={"4": 1})).choose(logits)


@pytest.mark.parametrize("temperature", [0.0, 1e-3])
def test_a_penalty_falls_on_tokens_that_were_there(temperature: float) -> None:
    settings = GenerationSettings(temperature=temperature, repetition_penalty=1.5)
    logits = torch.tensor([3.0, 2.9, 2.2, -1.0])
    sampler = Sampler(settings, before=[0])
    # 3 / 1.5 is less than 2.9; once that was taken, 2.2 is the likeliest.
    assert [sampler.choose(logits) for _ in range(3)] == [1, 2, 0]
    assert logits.tolist() == pytest.approx([3.0, 2.9, 2.2, -1.0]), "the logits of the model stay as they are"
    assert Sampler(settings, before=[0]).choose(torch.tensor([-1.0, -1.2])) == 1, "less than nothing becomes still less"
