from __future__ import annotations

import re
from dataclasses import replace

import pytest

from core.config.choices import AIMS, Aim
from core.config.facts import Facts
from core.errors import UserError
from core.models.architecture import measuring
from core.models.architecture.architecture import Architecture, read_architecture
from core.presets.choose import choose_preset
from core.presets.library import presets
from tests.cases import cases, tables
from tests.core.models.architecture import published
from tests.families.published_models import published_config

TABLES = tables(__file__)

GIB = 1 << 30


def model(billions: float, positions: int | None = 131072) -> Architecture:
    """A model of about this size in the shape of a known one, with as many layers as that needs."""
    shapes = ((1, published.SMOLLM2_135M), (5, published.QWEN_3_4B), (9.5, published.LLAMA_3_8B))
    larger = published.QWEN_2_5_14B if billions < 16 else published.QWEN_2_5_32B
    shape = next((shape for most, shape in shapes if billions < most), larger)
    found = read_architecture(shape, "m")
    (layer,) = found.layers
    depth = max(round((billions * 1e9 - found.embeddings) / layer.parameters), 1)
    return replace(read_architecture({**shape, "num_hidden_layers": depth}, "m"), positions=positions)


def facts(billions: float | None, card: float | None, positions: int | None = 131072) -> Facts:
    """A model of this size, and a card of so many GiB."""
    return Facts(
        model=None if billions is None else model(billions, positions),
        device_bytes=None if card is None else round(card * GIB),
    )


@cases(("billions", "card", "aim", "name"), TABLES["the_preset_for_a_model_and_a_card"])
def test_the_preset_for_a_model_and_a_card(billions: float | None, card: float | None, aim: Aim, name: str) -> None:
    choice = choose_preset(facts(billions, card), aim)
    assert choice.preset.name == name
    assert choice.why.startswith(f"{name}, as ")
    assert choice.why.endswith(".")
    assert choice.max_length is None


@cases("aim", AIMS)
def test_whatever_is_known_there_is_a_preset_or_a_sentence(aim: Aim) -> None:
    for billions in (None, 0.01, 1, 4.5, 8, 9.5, 14, 16, 35, 70, 700):
        for card in (None, 1, 4, 8, 12, 16, 24, 80):
            known = facts(billions, card)
            try:
                choice = choose_preset(known, aim, lengths=[10, 5000])
            except UserError as error:
                assert billions is None or billions > 8 or (card or 0) < 8
                assert "parameters" in error.message  # noqa: PT017
                continue
            preset = choice.preset
            assert preset.memory_gb <= (card or 0)
            if known.model is not None and card:
                assert preset.parameters[0] <= known.model.parameters / 1e9 <= preset.parameters[1]


def test_why_is_reported() -> None:
    choice = choose_preset(facts(8.03, 23.99), lengths=[100] * 10, card_name="the RTX 4090")
    assert choice.why == (
        "24gb-7b, as the model has 8.03 billion parameters, the RTX 4090 has 24 GB and no row sampled is longer than "
        "4096 tokens."
    )
    assert "there is none for best-quality there" in choose_preset(facts(0.1, None), "best-quality").why
    assert "135 million" in choose_preset(facts(0.135, None)).why


def test_long_rows_have_a_preset_for_long_rows_chosen() -> None:
    long, short = [6000] * 2 + [100] * 8, [6000] + [100] * 99
    assert choose_preset(facts(8, 24), lengths=long).preset.name == "24gb-7b-long-context"
    assert "no row sampled is longer than 16384" in choose_preset(facts(8, 24), lengths=long).why
    choice = choose_preset(facts(8, 24), lengths=short)
    assert choice.preset.name == "24gb-7b"
    assert "1% of the rows sampled are longer than 4096 tokens" in choice.why
    # An explicit request is kept.
    assert choose_preset(facts(8, 24), "best-quality", lengths=long).preset.name == "24gb-7b-best-quality"
    assert choose_preset(facts(8, 8), lengths=long).preset.name == "8gb-7b"


def test_the_length_is_cut_to_what_the_model_reads() -> None:
    choice = choose_preset(facts(8, 24, positions=2048))
    assert choice.max_length == 2048
    assert "train.max_length is 2048, as the model reads no more" in choice.why
    assert presets()[choice.preset.name].values["train.max_length"] == 4096


def test_a_preset_with_which_the_model_would_not_fit_is_not_taken() -> None:
    """Gemma 2 holds attention scores, which take more than its number of parameters lets one expect."""
    gemma = read_architecture({**published.GEMMA_2_9B, "max_position_embeddings": 8192}, "gemma")
    choice = choose_preset(Facts(model=gemma, device_bytes=16 * GIB), card_name="the card")
    assert choice.preset.name == "12gb-7b"
    assert "16gb-7b would need 29.3 GB" in choice.why
    long = choose_preset(Facts(model=gemma, device_bytes=24 * GIB), "long-context")
    assert long.preset.name == "12gb-7b-long-context"


@pytest.mark.long
@pytest.mark.slow
@cases(("name", "gib", "preset", "away"), TABLES["mixtures"])
def test_a_mixture_is_chosen_for_by_its_plan(name: str, gib: int, preset: str, away: str) -> None:
    """A mixture whose experts do not fit on the card gets the preset for smaller models."""
    mixture = read_architecture(published_config(name), name)
    choice = choose_preset(Facts(model=mixture, device_bytes=gib * GIB))
    assert choice.preset.name == preset
    told = re.search(r"its experts live in the machine's memory, where they take (.*)\.$", choice.why)
    assert (told[1] if told else "") == away


def test_a_mixture_that_fits_nowhere_is_too_large_and_it_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its weights alone: nothing of it is measured."""
    monkeypatch.setattr(measuring, "_run", lambda _job: pytest.fail("measured"))
    published = published_config("Qwen3-30B-A3B")
    wide = read_architecture({**published, "num_experts": 20 * published["num_experts"]}, "qwen")
    with pytest.raises(UserError, match=r"needs .* GB at least, and the card has 8\.6 GB"):
        choose_preset(Facts(model=wide, device_bytes=8 * GIB))


def test_a_dense_model_that_is_too_large_has_no_preset() -> None:
    dense = read_architecture(published_config("Qwen3-32B"), "qwen")
    with pytest.raises(UserError, match="there is no preset for that on the card"):
        choose_preset(Facts(model=dense, device_bytes=12 * GIB))
