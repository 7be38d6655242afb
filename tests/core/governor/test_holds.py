from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from core.governor.holds import TemperatureHold
from core.governor.limits import FLOOR
from tests.core.governor.card_model import CardModel

LIMIT = 75.0
#: Within so many degrees, from so many seconds after a disturbance on.
BAND, SETTLING = 2.0, 120


def hold(card: CardModel, held: TemperatureHold, seconds: int, duty: float) -> list[tuple[float, float]]:
    """Temperature and duty cycle at each second."""
    told = []
    for _ in range(seconds):
        card.run(1.0, duty)
        duty = held.observe(card.moment, card.reading(), duty)
        told.append((card.temperature, duty))
    return told


def off_limit(told: list[tuple[float, float]]) -> float:
    """The most degrees above the limit, or below it while more duty was to be had."""
    return max(max(warm - LIMIT, (LIMIT - warm) if duty < 0.97 else 0.0) for warm, duty in told)


cards = st.builds(
    CardModel,
    resistance=st.floats(0.1, 0.3),
    tau=st.floats(15, 300),
    ambient=st.floats(16, 34),
    seed=st.integers(0, 99),
)


def test_temperature_does_not_overshoot_when_it_gets_to_the_limit() -> None:
    card = CardModel(resistance=0.2)
    told = hold(card, TemperatureHold(LIMIT), 900, 1.0)
    assert max(warm for warm, _ in told) < LIMIT + BAND
    mean = sum(duty for _, duty in told[400:]) / 500
    assert mean == pytest.approx(card.duty_for(LIMIT), abs=0.03), "no slower than it has to be"


@given(cards, st.sampled_from(["room", "fan"]))
def test_temperature_is_held_on_any_card(card: CardModel, disturb: str) -> None:
    room, resistance = (8.0, 1.0) if disturb == "room" else (0.0, 1.3)
    worst = CardModel(resistance=card.resistance * resistance, ambient=card.ambient + room)
    assume(worst.duty_for(LIMIT) > FLOOR + 0.05)
    held = TemperatureHold(LIMIT)
    before = hold(card, held, 700, 1.0)
    card.ambient += room
    card.resistance *= resistance
    after = hold(card, held, 400, before[-1][1])
    assert off_limit(after[SETTLING:]) < BAND


@given(cards, st.floats(4.1, 20))
def test_a_card_that_stays_cool_is_not_slowed(card: CardModel, below: float) -> None:
    card = CardModel((LIMIT - below - card.ambient) / card.busy_w, card.tau, card.ambient, seed=card.seed)
    assert card.settled(1.0) == pytest.approx(LIMIT - below)
    told = hold(card, TemperatureHold(LIMIT), 600, 1.0)
    # A small card that comes within some degrees of the limit is held back for seconds on the way there: for 19 at most
    # on a grid of the values that are drawn here.
    assert sum(1.0 - duty for _, duty in told) < 30
