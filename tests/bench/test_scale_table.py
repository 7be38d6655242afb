"""Several cards on paper: the page has the figures of the memory plan, and its sentences hold."""

from __future__ import annotations

import pytest

from bench.gpu_checks.models import EIGHT
from bench.scale_table import ARRANGEMENTS, GIGABIT, LENGTH, MODELS, ONE, PAGE, ROWS, page, plan_step
from core.models.architecture.architecture import read_architecture
from tests.measured_here import measured_here

__all__ = ["measured_here"]

pytestmark = pytest.mark.long


def test_the_page_has_the_table_of_today() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "run: python bench/scale_table.py --write"


def test_replicated_adapters_send_their_gradients_alone() -> None:
    model = read_architecture(EIGHT.config, "8B")
    trained = 16 * 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    slow = next(one for one in ARRANGEMENTS if one.link == GIGABIT and one.cards.number == 2)
    step = plan_step(model, slow, "replicate")
    assert step.chosen.plan.wire_bytes == 4 * trained
    # 167.8 MB at 117.5 MB/s.
    assert step.sending == pytest.approx(1.43, abs=0.01)
    assert step.seconds == step.computing + step.sending
    assert step.tokens_per_second == pytest.approx(ROWS * LENGTH / step.seconds)


def test_shared_weights_are_of_no_use_over_ethernet_and_adapters_are() -> None:
    model = read_architecture(EIGHT.config, "8B")
    alone = plan_step(model, ONE, "auto").tokens_per_second
    for arrangement in ARRANGEMENTS:
        replicated = plan_step(model, arrangement, "replicate").tokens_per_second
        assert replicated > 1.4 * alone
        if arrangement.cards.machines == 2 and arrangement.cards.here == 1:
            assert plan_step(model, arrangement, "fsdp2").tokens_per_second < alone


def test_70b_takes_four_cards_or_two_and_the_machines_memory() -> None:
    model = read_architecture(MODELS["70B"].config, "70B")
    two, four = ARRANGEMENTS[:2]
    assert not plan_step(model, two, "fsdp2").chosen.fits
    assert plan_step(model, two, "fsdp2", "all").chosen.fits
    assert plan_step(model, four, "fsdp2").chosen.fits
