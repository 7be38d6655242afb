"""Shares of a card against figures computed by hand from the published formulas, and their sums over all cards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.errors import UserError
from core.memory.advice import advise
from core.memory.cards import (
    BUCKET,
    DEEPSPEED_BUCKET,
    FROZEN,
    Cards,
    Gathered,
    Shares,
    Sharing,
    Strategy,
    cards_of,
    gathered_sizes,
)
from core.memory.plan import Machine, Part
from core.memory.planner import arithmetic, make_plan
from core.memory.strategy import Chosen, chosen_strategy, part_of_card, part_of_machine
from core.memory.weights import weight_parts
from core.models.architecture.architecture import read_architecture
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


#: A model of two alike layers without anything outside, all of it trained: the largest layer, all layers, adapters
#: beside a layer, depth, outside, scales, trained elements, bytes of a gradient, gradients of a layer and outside.
GATHERED = Gathered(PSI, 2 * PSI, 0, 2, 0, {}, PSI, 2, PSI, 0)


def shares(
    strategy: Strategy,
    cards: Cards | int = SIXTY_FOUR,
    stage: int = 2,
    offload: Any = "none",
    adapters: bool = False,
    **changes: Any,
) -> Shares:
    cards = Cards(cards) if isinstance(cards, int) else cards
    return Shares(Sharing(strategy, cards, stage, offload, adapters), replace(GATHERED, **changes))


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
def test_bytes_on_the_wire_match_the_paper(stage: int, micro_batches: int, times: int) -> None:
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
    # Gradients of adapters are small: only stage 3 shares them out.
    adapters = [on_card(shares("deepspeed", 4, stage, adapters=True))["gradients"] for stage in (2, 3)]
    assert adapters == [2 * PSI, PSI // 2]


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


EIGHT = read_architecture(published.LLAMA_3_8B, "x")
#: The shape of Llama-3.1-70B.
SEVENTY = read_architecture(
    {
        **published.LLAMA_3_8B,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
    "x",
)
HOST = 64_000_000_000


def chosen(limit: float | None, cards: int = 2, machines: int = 1, **sections: Any) -> Chosen:
    machine = Machine("cuda", None if limit is None else int(limit * 1e9), host_bytes=HOST)
    return chosen_strategy(EIGHT, config_of(**sections), machine, cards=Cards(cards, machines))


@cases(
    ("limit", "cards", "named", "strategy", "reason"),
    [
        (24, 1, "auto", "none", "One process needs no strategy."),
        (24, 1, "none", "none", "One process needs no strategy."),
        (24, 2, "auto", "replicate", "replicate: the whole model fits on each card, where it takes "),
        (None, 2, "auto", "replicate", "replicate: it is not known how much memory a card has."),
        (7.5, 2, "auto", "fsdp2", "fsdp2: with the whole model a card would need "),
        *((limit, 2, name, name, f"{name}: ") for name in ("replicate", "fsdp2", "deepspeed") for limit in (3, 80)),
    ],
)
def test_a_strategy_is_chosen_and_one_that_is_named_is_taken_whatever_fits(
    limit: float | None, cards: int, named: str, strategy: str, reason: str
) -> None:
    found = chosen(limit, cards, distributed={"strategy": named})
    assert found.strategy == strategy
    assert found.reason.startswith(reason)
    assert found.fits is (None if limit is None else limit > 3)


def test_one_card_has_the_plan_that_it_had_and_two_send_gradients_or_gather_layers() -> None:
    one, replicated, shared = chosen(24, 1), chosen(24).plan, chosen(7.5).plan
    assert one.host_bytes == 0
    assert one.plan == make_plan(EIGHT, config_of(), Machine("cuda", int(24e9), host_bytes=HOST))
    # The gradients of 41.9 million adapter parameters in fp32, once around a ring of two.
    assert replicated.wire_bytes == 4 * 41_943_040
    assert replicated.by_name()["all_reduce"] == 4 * BUCKET
    assert shared.by_name()["gathered"] > 0


def test_auto_replicates_experts_in_4_bits_which_cannot_be_shared_out() -> None:
    mixture = read_architecture(published.QWEN_3_30B_A3B, "x")
    machine = Machine("cuda", int(12e9), host_bytes=HOST)
    found = chosen_strategy(mixture, config_of(memory={"offload_experts": "off"}), machine, cards=Cards(2))
    assert (found.strategy, found.fits) == ("replicate", False)
    assert "fsdp2 does not share out experts in 4 bits" in found.reason


def test_none_is_one_process() -> None:
    with pytest.raises(UserError, match=r"distributed.strategy is none, and the run would have 4 processes"):
        chosen(24, 2, 2, distributed={"strategy": "none"})


def test_a_model_of_70b_fits_on_two_cards_that_share_it_and_on_none_alone() -> None:
    machine = Machine("cuda", int(32e9), host_bytes=HOST)
    one = chosen_strategy(SEVENTY, config_of(), machine, cards=Cards(1))
    two = chosen_strategy(SEVENTY, config_of(), machine, cards=Cards(2))
    assert (one.fits, two.fits, two.strategy) == (False, True, "fsdp2")


def test_rows_of_a_step_are_divided_and_so_are_its_micro_batches() -> None:
    sections: dict[str, Any] = {
        "train": {"batch_size": 8, "max_length": 2048},
        "memory": {"gradient_checkpointing": "on"},
    }
    whole, half, third = (chosen(24, cards, **sections) for cards in (1, 2, 3))
    assert (whole.rows, half.rows, third.rows) == (8, 4, 3)
    config = config_of(**sections)
    assert part_of_card(config, half.sharing).train.batch_size == 4
    assert whole.plan.step.micro_batches == 2 * half.plan.step.micro_batches
    assert half.plan.micro_batch.rows <= 4


@pytest.mark.parametrize("strategy", ["fsdp2", "deepspeed"])
def test_shares_of_all_cards_are_the_whole(strategy: str) -> None:
    names = ("linear_weights", "embeddings", "norms", "adapters", "gradients", "optimizer")
    whole = chosen(None, 1).plan.by_name()
    for cards in (2, 8):
        found = chosen(None, cards, distributed={"strategy": strategy, "zero_stage": 3}).plan.by_name()
        for name in names:
            # Scales of 4-bit weights are on every card, and all but the layers that FSDP2 does not share out.
            everywhere = whole[name] - 6_979_321_856 // 2 if name == "linear_weights" else 0
            shared = FROZEN if strategy == "fsdp2" else FROZEN | {"gradients", "optimizer"}
            everywhere = everywhere if name in shared else whole[name]
            assert found[name] - everywhere == pytest.approx((whole[name] - everywhere) / cards, abs=1)


def test_offloading_takes_memory_of_the_machine_for_all_of_its_cards() -> None:
    section = {"strategy": "deepspeed", "zero_stage": 3}
    found = {
        offload: chosen(None, 2, distributed={**section, "offload": offload})
        for offload in ("none", "optimizer", "all")
    }
    needed = [one.plan.needed_bytes for one in found.values()]
    assert needed == sorted(needed, reverse=True)
    assert found["none"].host_bytes == 0
    # Two moments, weights and gradients in fp32; a counter for each of the 448 tensors.
    assert found["optimizer"].host_bytes == 16 * 41_943_040 + 448 * 4
    # With two machines of two cards, each of them has half of it.
    spread = chosen(None, 2, 2, distributed={**section, "offload": "all"})
    assert spread.host_bytes == pytest.approx(found["all"].host_bytes / 2, rel=0.001)
    frozen = chosen(24, 2, distributed={"strategy": "fsdp2", "offload": "all"})
    # Half a byte for each of 6.98 billion weights, the scales stay on the cards.
    assert frozen.host_bytes == 6_979_321_856 // 2
    what = {part.name: part.what for part in frozen.plan.parts}
    assert what["linear_weights"].endswith("; the rest in the machine's memory")
    assert "share" not in what["embeddings"]
    machine = Machine("cuda", int(24e9), host_bytes=int(3e9))
    short = chosen_strategy(EIGHT, config_of(distributed=section | {"offload": "all"}), machine, cards=Cards(2))
    assert (short.plan.fits, short.plan.host_fits, short.fits) == (True, False, False)


def test_nothing_is_updated_inside_backward_where_gradients_are_summed_over_cards() -> None:
    full: dict[str, Any] = {"method": {"name": "full"}}
    assert "gradients" not in chosen(None, 1, **full).plan.by_name()
    for strategy in ("replicate", "fsdp2", "deepspeed"):
        found = chosen(None, 2, distributed={"strategy": strategy}, **full).plan.by_name()
        assert found["gradients"] >= 2 * 8_030_261_248 // 2


def test_full_training_of_8b_by_zero_is_16_bytes_a_parameter_shared_out() -> None:
    section = {"strategy": "deepspeed", "zero_stage": 3}
    found = chosen(None, 8, method={"name": "full"}, train={"optimizer": "adamw"}, distributed=section).plan.by_name()
    states = ("linear_weights", "embeddings", "norms", "gradients", "optimizer", "master_weights")
    assert sum(found[name] for name in states) == pytest.approx(16 * 8_030_261_248 / 8, rel=1e-4)


def test_experts_are_shared_out_and_not_moved_to_host_memory() -> None:
    model = read_architecture(published.QWEN_3_30B_A3B, "x")
    config = config_of(memory={"offload_experts": "on"})
    sharing = Sharing("fsdp2", Cards(4), adapters=True)
    assert part_of_card(config, sharing).memory.offload_experts == "off"
    assert part_of_card(config, Sharing("replicate", Cards(4))).memory.offload_experts == "on"
    how = arithmetic(config, Machine("cuda"))
    whole = {part.name: part.bytes for part in weight_parts(model, how, 0)}
    sizes = gathered_sizes(model, how, (), [(16, 2048, 48)], width=4, whole=False)
    here = {part.name: part.bytes for part in Shares(sharing, sizes).of_card(weight_parts(model, how, 0))}
    scales = sizes.scales["experts"]
    assert here["experts"] == scales + (whole["experts"] - scales) // 4
    # The layers that are gathered are 2 of 48, with their routers and norms.
    assert here["gathered"] == pytest.approx(2 / 48 * (whole["experts"] + whole["linear_weights"]), rel=0.05)


def test_processes_on_a_cpu_divide_its_memory() -> None:
    found = chosen_strategy(EIGHT, config_of(), Machine("cpu", 16_000_000_000), cards=Cards(2))
    assert found.plan.limit_bytes == 8_000_000_000
    assert "communication" not in found.plan.by_name()


def test_advice_for_cards_that_share_is_to_move_to_host_memory_and_never_to_update_inside_backward() -> None:
    config = config_of(method={"name": "full"}, distributed={"strategy": "fsdp2"})
    machine = Machine("cuda", int(24e9), host_bytes=int(200e9))
    found = chosen_strategy(EIGHT, config, machine, cards=Cards(2))
    assert found.fits is False
    part, card = part_of_card(config, found.sharing), part_of_machine(machine, found.sharing.cards)
    advice = advise(EIGHT, part, card, None, found.plan, found.sharing)
    assert any(one.changes.get("distributed.offload") in ("optimizer", "all") and one.fits for one in advice)
    assert not any("memory.optimizer_in_backward" in one.changes for one in advice)
