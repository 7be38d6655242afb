from __future__ import annotations

import pytest

from core.config.facts import Facts, ModelShape
from core.config.presets.choose import choose_preset
from core.config.presets.library import AIMS, Aim, presets
from core.errors import UserError

GIB = 1 << 30


def facts(billions: float | None, card: float | None, positions: int | None = 131072) -> Facts:
    """A model of this size, all of it in its embedding, and a card of so many GiB."""
    model = None
    if billions is not None:
        model = ModelShape(1, 1, 1, 1, 1, 1, True, round(billions * 1e9), True, positions, False)
    return Facts(model=model, device_bytes=None if card is None else round(card * GIB))


@pytest.mark.parametrize(
    ("billions", "card", "aim", "name"),
    [
        (0.13, None, "balanced", "cpu-small"),
        (0.13, None, "quick-look", "cpu-small-quick-look"),
        (None, None, "balanced", "cpu-small"),
        (None, 23.99, "balanced", "24gb-7b"),
        (None, 7.99, "balanced", "8gb-7b"),
        (3.2, 8.0, "balanced", "8gb-small"),
        (8.0, 7.99, "balanced", "8gb-7b"),
        (8.0, 11.99, "long-context", "12gb-7b-long-context"),
        (8.0, 15.99, "quick-look", "12gb-7b-quick-look"),
        # With error correction, as on a data center's card.
        (8.0, 22.5, "balanced", "24gb-7b"),
        (8.0, 23.99, "best-quality", "24gb-7b-best-quality"),
        # Too large for 16 bits on that card.
        (9.2, 23.99, "best-quality", "16gb-7b-best-quality"),
        (14.7, 23.99, "balanced", "24gb-13b"),
        (32.8, 23.99, "balanced", "24gb-30b"),
        (32.8, 79.6, "balanced", "24gb-30b"),
    ],
)
def test_the_preset_for_a_model_and_a_card(billions: float | None, card: float | None, aim: Aim, name: str) -> None:
    choice = choose_preset(facts(billions, card), aim)
    assert choice.preset.name == name
    assert choice.why.startswith(f"{name}, as ")
    assert choice.why.endswith(".")
    assert choice.max_length is None


@pytest.mark.parametrize("aim", AIMS)
def test_whatever_is_known_there_is_a_preset_or_a_sentence(aim: Aim) -> None:
    for billions in (None, 0.01, 1, 4.5, 8, 9.5, 14, 16, 35, 70, 700):
        for card in (None, 1, 4, 8, 12, 16, 24, 80):
            try:
                choice = choose_preset(facts(billions, card), aim, lengths=[10, 5000])
            except UserError as error:
                assert billions is None or billions > 8 or (card or 0) < 8
                assert "parameters" in error.message  # noqa: PT017
                continue
            preset = choice.preset
            assert preset.memory_gb <= (card or 0)
            if billions is not None and card:
                assert preset.parameters[0] <= billions <= preset.parameters[1]


def test_why_is_said() -> None:
    choice = choose_preset(facts(8.03, 23.99), lengths=[100] * 10, card_name="the RTX 4090")
    assert choice.why == (
        "24gb-7b, as the model has 8.03 billion parameters, the RTX 4090 has 24 GB and no row looked at is longer than "
        "4096 tokens."
    )
    assert "there is none for best-quality there" in choose_preset(facts(0.1, None), "best-quality").why
    assert "135 million" in choose_preset(facts(0.135, None)).why


def test_long_rows_have_a_preset_for_long_rows_chosen() -> None:
    long, short = [6000] * 2 + [100] * 8, [6000] + [100] * 99
    assert choose_preset(facts(8, 24), lengths=long).preset.name == "24gb-7b-long-context"
    assert "no row looked at is longer than 16384" in choose_preset(facts(8, 24), lengths=long).why
    choice = choose_preset(facts(8, 24), lengths=short)
    assert choice.preset.name == "24gb-7b"
    assert "1% of the rows looked at are longer than 4096 tokens" in choice.why
    # What was asked for stands.
    assert choose_preset(facts(8, 24), "best-quality", lengths=long).preset.name == "24gb-7b-best-quality"
    assert choose_preset(facts(8, 8), lengths=long).preset.name == "8gb-7b"


def test_the_length_is_cut_to_what_the_model_reads() -> None:
    choice = choose_preset(facts(8, 24, positions=2048))
    assert choice.max_length == 2048
    assert "train.max_length is 2048, as the model reads no more" in choice.why
    assert presets()[choice.preset.name].values["train.max_length"] == 4096
