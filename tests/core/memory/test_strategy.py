"""The strategy that several cards take, why, and the plan of each of them."""

from __future__ import annotations

from typing import Any

import pytest

from core.errors import UserError
from core.memory.advice import advise
from core.memory.cards import BUCKET, FROZEN, Cards, Shares, Sharing, gathered_sizes
from core.memory.plan import Machine
from core.memory.planner import arithmetic, make_plan
from core.memory.strategy import Chosen, chosen_strategy, part_of_card, part_of_machine
from core.memory.weights import weight_parts
from core.models.architecture.families import read_architecture
from tests.cases import cases
from tests.core.memory.plans import config_of
from tests.core.models.architecture import published

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


def test_one_card_needs_no_strategy_and_has_the_plan_that_it_had() -> None:
    found = chosen(24, 1)
    assert (found.strategy, found.host_bytes) == ("none", 0)
    assert found.plan == make_plan(EIGHT, config_of(), Machine("cuda", int(24e9), host_bytes=HOST))


def test_auto_replicates_where_the_model_fits_on_each_card() -> None:
    found = chosen(24)
    assert found.strategy == "replicate"
    assert found.reason.startswith("replicate: the whole model fits on each card, where it takes ")
    # The gradients of 41.9 million adapter parameters in fp32, once around a ring of two.
    assert found.plan.wire_bytes == 4 * 41_943_040
    assert found.plan.by_name()["all_reduce"] == 4 * BUCKET
    unknown = chosen(None)
    assert (unknown.strategy, unknown.fits) == ("replicate", None)


def test_auto_shares_the_weights_out_where_a_card_is_too_small() -> None:
    found = chosen(7.5)
    assert found.strategy == "fsdp2"
    assert found.reason.startswith("fsdp2: with the whole model a card would need ")
    assert found.fits
    assert found.plan.by_name()["gathered"] > 0


def test_auto_replicates_experts_in_4_bits_which_cannot_be_shared_out() -> None:
    mixture = read_architecture(published.QWEN_3_30B_A3B, "x")
    machine = Machine("cuda", int(12e9), host_bytes=HOST)
    found = chosen_strategy(mixture, config_of(memory={"offload_experts": "off"}), machine, cards=Cards(2))
    assert (found.strategy, found.fits) == ("replicate", False)
    assert "fsdp2 does not share out experts in 4 bits" in found.reason


@cases("strategy", ["replicate", "fsdp2", "deepspeed"])
def test_a_strategy_that_is_named_is_taken_whatever_fits(strategy: str) -> None:
    for limit in (3, 80):
        found = chosen(limit, distributed={"strategy": strategy})
        assert found.strategy == strategy
        assert found.reason == f"{strategy}: distributed.strategy says so."


def test_none_is_one_process() -> None:
    assert chosen(24, 1, distributed={"strategy": "none"}).strategy == "none"
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
    assert config.train.batch_size == 8, "it is not changed by its parts"
    assert whole.plan.step.micro_batches == 2 * half.plan.step.micro_batches
    assert half.plan.micro_batch.rows <= 4


@pytest.mark.parametrize("strategy", ["fsdp2", "deepspeed"])
def test_each_card_needs_less_the_more_there_are(strategy: str) -> None:
    section = {"strategy": strategy, "zero_stage": 3}
    needed = [
        chosen(None, cards, train={"batch_size": 1}, distributed=section).plan.needed_bytes for cards in (1, 2, 4, 8)
    ]
    assert needed == sorted(needed, reverse=True)
    # The shares are not zero: layers are gathered all the same.
    assert needed[-1] > needed[0] / 8


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
    machine = Machine("cpu", 16_000_000_000)
    assert part_of_machine(machine, Cards(4)).limit_bytes == 4_000_000_000
    found = chosen_strategy(EIGHT, config_of(), machine, cards=Cards(2))
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
