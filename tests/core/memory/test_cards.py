"""Shares of a card against figures computed by hand from the published formulas, and their sums over all cards."""

from __future__ import annotations

from typing import Any

import pytest

from core.memory.cards import (
    BUCKET,
    DEEPSPEED_BUCKET,
    Cards,
    Gathered,
    Shares,
    Sharing,
    Strategy,
    cards_of,
    gathered_sizes,
)
from core.memory.plan import Machine, Part
from core.memory.planner import arithmetic
from core.models.architecture.families import read_architecture
from tests.cases import cases
from tests.core.memory.plans import config_of
from tests.core.models.architecture import published

#: ZeRO's example (arXiv 1910.02054, figure 1): 7.5 billion parameters in 16 bit, AdamW's 12 bytes for each, 64 cards.
PSI, SIXTY_FOUR = 7_500_000_000, Cards(8, 8)
STATES = [
    Part("linear_weights", 2 * PSI, "weights in 16 bit"),
    Part("gradients", 2 * PSI, "gradients in 16 bit"),
    Part("optimizer", 8 * PSI, "two moments in fp32"),
]
#: The names of the model states; the paper does not count buckets and gathered layers.
MODEL_STATES = ("linear_weights", "gradients", "optimizer", "master_weights")


def shares(
    strategy: Strategy, cards: Cards | int = SIXTY_FOUR, *how: Any, adapters: bool = False, **changes: Any
) -> Shares:
    """Shares of a model of two alike layers without anything outside, all of it trained."""
    given: dict[str, Any] = {
        "largest": PSI,
        "layers": 2 * PSI,
        "beside": 0,
        "depth": 2,
        "outside": 0,
        "scales": {},
        "trained": PSI,
        "width": 2,
        "layer_gradients": PSI,
        "outside_gradients": 0,
    }
    cards = Cards(cards) if isinstance(cards, int) else cards
    return Shares(Sharing(strategy, cards, *how, adapters=adapters), Gathered(**given | changes))


def on_card(shares: Shares, parts: list[Part] = STATES) -> dict[str, int]:
    return {part.name: part.bytes for part in shares.of_card(parts)}


@cases(("stage", "gigabytes"), [(1, 31.4), (2, 16.6), (3, 1.9)])
def test_the_model_states_of_zero_are_those_of_its_paper(stage: int, gigabytes: float) -> None:
    found = on_card(shares("deepspeed", SIXTY_FOUR, stage))
    assert sum(found[name] for name in MODEL_STATES) / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_without_a_strategy_they_are_all_there_and_replicated_ones_too() -> None:
    assert shares("none", 1).of_card(STATES) == STATES
    assert shares("replicate").of_card(STATES)[:3] == STATES
    # In fp32, and gradients converted to it.
    assert on_card(shares("replicate"))["all_reduce"] == 8 * BUCKET


@cases(
    ("stage", "micro_batches", "times"),
    # ZeRO, section 7: as much as an all-reduce, 2 Ψ, for stages 1 and 2; 3 Ψ for stage 3. Gradients of 16 bit.
    [(1, 1, 2), (1, 4, 2), (2, 1, 2), (2, 4, 5), (3, 1, 3), (3, 4, 12)],
)
def test_bytes_on_the_wire_are_those_of_the_paper(stage: int, micro_batches: int, times: int) -> None:
    assert shares("deepspeed", SIXTY_FOUR, stage).on_wire(micro_batches) == times * 2 * PSI * 63 // 64


@cases(("cards", "times"), [(1, 0), (2, 1.0), (4, 1.5), (8, 1.75)])
def test_a_replicated_step_sends_the_gradients_once_around_the_ring(cards: int, times: float) -> None:
    assert shares("replicate", cards, trained=1000, width=4).on_wire(7) == times * 4000


def test_fsdp2_gathers_layers_forward_and_backward_and_what_is_outside_once() -> None:
    # For each of three micro-batches 2 x 600 + 50 + 400, of which a card has half itself.
    found = shares("fsdp2", 2, layers=600, outside=50, trained=100, width=4)
    assert found.on_wire(3) == 3 * (1200 + 50 + 400) // 2


def test_fsdp2_leaves_adapters_whole_and_sums_their_gradients_once() -> None:
    sizes = {"layers": 600, "largest": 300, "beside": 40, "outside": 50, "trained": 20, "width": 4}
    here = shares("fsdp2", 2, adapters=True, **sizes)
    # For each of three micro-batches 2 x 600, and twice 80 of gradients; a card has half itself.
    assert here.on_wire(3) == (3 * 1200 + 160) // 2
    named = {"linear_weights": 600, "embeddings": 40, "norms": 2, "adapters": 80, "gradients": 80, "optimizer": 160}
    parts = [Part(name, size, "") for name, size in named.items()]
    assert on_card(here, parts) == named | {"linear_weights": 300, "all_reduce": 80, "gathered": 600}
    away = shares("fsdp2", 2, 2, "optimizer", adapters=True, **sizes)
    assert away.on_host(parts) == 300
    assert on_card(away, parts) == named | {"linear_weights": 0, "all_reduce": 80, "gathered": 600}


def test_offloaded_optimizers_take_16_bytes_for_each_parameter_of_a_machine() -> None:
    # DeepSpeed's own estimate for ZeRO with an offloaded optimizer, without its factor for buffers.
    for stage in (2, 3):
        optimizer = shares("deepspeed", 4, stage, "optimizer")
        assert 4 * optimizer.on_host(STATES) == 16 * PSI
        found = on_card(optimizer)
        assert (found["optimizer"], found["gradients"], found["master_weights"]) == (0, 0, 0)
        assert found["linear_weights"] == (2 * PSI if stage == 2 else PSI // 2)
    everything = shares("deepspeed", 4, 3, "all")
    assert 4 * everything.on_host(STATES) == 18 * PSI
    assert on_card(everything)["linear_weights"] == 0


@cases("offload", ["optimizer", "all"])
def test_fsdp2_moves_all_that_it_shares_out(offload: Any) -> None:
    away = shares("fsdp2", 2, 2, offload)
    assert 2 * away.on_host(STATES) == (8 + 2 + 2) * PSI
    nothing = {"linear_weights": 0, "gradients": 0, "optimizer": 0}
    assert on_card(away).items() >= {**nothing, "gathered": 2 * PSI}.items()


@cases("offload", ["none", "optimizer", "all"])
def test_stages_that_do_not_share_weights_out_keep_them(offload: Any) -> None:
    found = on_card(shares("deepspeed", 4, 2, offload))
    assert found["linear_weights"] == 2 * PSI
    assert "gathered" not in found


def test_a_bucket_is_no_larger_than_what_is_trained() -> None:
    assert on_card(shares("deepspeed", 2, trained=1000, width=4))["all_reduce"] == 4000
    assert on_card(shares("deepspeed", 2))["all_reduce"] == 2 * DEEPSPEED_BUCKET


def test_gathered_sizes_of_a_published_model_in_4_bits() -> None:
    model = read_architecture(published.LLAMA_3_8B, "x")
    how = arithmetic(config_of(), Machine("cuda"))
    found = gathered_sizes(model, how, (), [(16, 4096, 32 * 7)], width=4, whole=False)
    # A layer of Llama 3 8B: q and o 4096², k and v 4096 x 1024, three of 4096 x 14336; two norms in 16 bit.
    weights = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    adapters = 4 * 16 * 4096 * 7
    assert found.largest == weights // 2 + 2 * 2 * 4096
    assert (found.layers, found.beside, found.depth) == (32 * found.largest, adapters, 32)
    assert found.outside == 2 * (2 * 128256 * 4096 + 4096)
    assert found.outside_gradients == 0
    assert found.gradients == 32 * found.layer_gradients == 32 * adapters
    # A byte per 64 weights, four bytes per 256 of these, and the code books of each matrix.
    tables = 32 * 7 * (16 + 256 + 1) * 4
    assert found.scales == {"linear_weights": 32 * weights // 64 + 32 * weights // 64 // 256 * 4 + tables}


def test_gradients_of_a_model_that_is_trained_whole_are_inside_and_outside() -> None:
    model = read_architecture(published.LLAMA_3_8B, "x")
    how = arithmetic(config_of(method={"name": "full"}), Machine("cuda"))
    trained = [(128256, 4096, 2), (4096, 4096, 64)]
    found = gathered_sizes(model, how, (), trained, width=2, whole=True)
    assert found.outside_gradients == 2 * 2 * 128256 * 4096
    assert found.layer_gradients == 2 * 2 * 4096 * 4096


@cases(
    ("strategy", "stage", "shared"),
    [
        ("none", 2, (False, False, False)),
        ("replicate", 2, (False, False, False)),
        ("fsdp2", 1, (True, True, True)),
        ("deepspeed", 1, (True, False, False)),
        ("deepspeed", 2, (True, True, False)),
        ("deepspeed", 3, (True, True, True)),
    ],
)
def test_what_each_strategy_shares_out(strategy: Strategy, stage: int, shared: tuple[bool, bool, bool]) -> None:
    sharing = Sharing(strategy, Cards(2), stage)
    assert (sharing.optimizer, sharing.gradients, sharing.weights) == shared
    adapters = Sharing(strategy, Cards(2), stage, adapters=True)
    own = (
        (False, False, True) if strategy == "fsdp2" else (shared[0], strategy == "deepspeed" and stage == 3, shared[2])
    )
    assert (adapters.optimizer, adapters.gradients, adapters.weights) == own


@cases(
    ("section", "visible", "expected"),
    [
        ({}, 4, Cards(1, 1)),
        ({"gpus": ["0", "2"]}, 4, Cards(2, 1)),
        ({"gpus": "all"}, 4, Cards(4, 1)),
        ({"gpus": "all"}, 0, Cards(1, 1)),
        ({"processes": 3}, 1, Cards(3, 1)),
        ({"processes": 2, "gpus": "all"}, 4, Cards(2, 1)),
        ({"gpus": "0", "hosts": ["tower", "attic"]}, 1, Cards(1, 3)),
    ],
)
def test_cards_of_a_configuration(section: dict[str, Any], visible: int, expected: Cards) -> None:
    config = config_of(distributed=section)
    assert cards_of(config.distributed, visible) == expected
    assert expected.number == expected.here * expected.machines
