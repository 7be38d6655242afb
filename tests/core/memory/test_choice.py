"""Choice of the way to fit a run into memory: smaller micro-batches, some layers recomputed, all of them."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.analysis.result import measure_lengths
from core.memory.batching import (
    LENGTH_MULTIPLE,
    LOGITS_BYTES,
    WHOLE,
    chunk_positions,
    largest_shape,
    length_runs,
    micro_batches,
    padded_length,
    token_budgets,
)
from core.memory.calibration import Calibration, rates_of
from core.memory.choice import FILLED_SHARE, choose_way
from core.memory.plan import Machine, Plan, Way
from core.memory.planner import make_plan
from core.memory.rows import Rows, rows_of_lengths, rows_of_tokens
from core.models.architecture.architecture import read_architecture
from tests.cases import cases
from tests.core.memory.plans import GIB, config_of, plan_of
from tests.core.models.architecture import published
from tests.core.runs.helpers import there

LLAMA_3_2_3B = {
    **published.LLAMA_3_8B,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "tie_word_embeddings": True,
}


def plan_in(model: dict[str, Any], gib: float, length: int | None = None, **sections: Any) -> Plan:
    rows = None if length is None else Rows([(length, 8)])
    return plan_of(model, rows, Machine("cuda", round(gib * GIB), device="NVIDIA GeForce RTX 4090"), **sections)


@pytest.mark.slow
@cases(
    ("model", "gib", "length", "budget", "kept"),
    [
        (published.LLAMA_3_8B, 60, 2048, 8192, 32),
        (published.LLAMA_3_8B, 23, 2048, 4096, 32),
        (published.LLAMA_3_8B, 15, 512, 2048, 32),
        (LLAMA_3_2_3B, 15, 2048, 4096, 28),
        (published.LLAMA_2_13B, 23, 2048, 2048, 40),
    ],
)
def test_smaller_micro_batches_come_before_recomputation(
    model: dict[str, Any], gib: float, length: int, budget: int, kept: int
) -> None:
    plan = plan_in(model, gib, length)
    assert (plan.token_budget, plan.kept_layers, plan.checkpointing) == (budget, kept, False)
    assert plan.fits
    assert plan.micro_batch.rows == max(1, min(8, budget // length))
    recomputed = plan_in(model, gib, length, memory={"gradient_checkpointing": "on"})
    assert recomputed.kept_layers == 0
    assert plan.step.seconds < recomputed.step.seconds


@pytest.mark.slow
@cases("gib", [12, 18])
def test_some_layers_are_recomputed_where_all_are_too_many_to_keep(gib: int) -> None:
    """As many are kept as fit, and no more."""
    plan = plan_in(published.LLAMA_2_13B, gib)
    assert 0 < plan.kept_layers < 40
    assert plan.needed_bytes <= FILLED_SHARE * gib * GIB
    config, machine = config_of(), Machine("cuda", gib * GIB)
    architecture = read_architecture(published.LLAMA_2_13B, "m")
    more = make_plan(
        architecture,
        config,
        machine,
        token_budget=plan.token_budget,
        checkpointing=True,
        kept_layers=plan.kept_layers + 1,
    )
    assert more.needed_bytes > FILLED_SHARE * gib * GIB
    assert plan.reason.startswith(f"Activations of {plan.kept_layers} of 40 layers are kept, of the others recomputed")
    kept = "the last layer keeps" if plan.kept_layers == 1 else f"{plan.kept_layers} layers keep"
    assert kept in next(part.what for part in plan.parts if part.name == "activations")


@cases("kind", ["cpu", "cuda"])
@cases("model", [published.LLAMA_3_8B, published.GEMMA_2_9B, published.SMOLLM3_3B, published.QWEN_3_4B])
def test_memory_grows_and_time_shrinks_with_every_kept_layer(model: dict[str, Any], kind: Any) -> None:
    architecture = read_architecture(model, "m")
    config = config_of(train={"max_length": 512})
    plans = [
        make_plan(architecture, config, Machine(kind), checkpointing=kept < architecture.depth, kept_layers=kept)
        for kept in range(architecture.depth + 1)
    ]
    needed, seconds = [plan.needed_bytes for plan in plans], [plan.step.seconds for plan in plans]
    assert needed == sorted(needed)
    assert seconds == sorted(seconds, reverse=True)
    assert [plan.kept_layers for plan in plans] == list(range(architecture.depth + 1))


def test_a_longer_row_is_no_reason_to_cut_below_it() -> None:
    assert token_budgets(8192, 512) == [8192, 4096, 2048]
    assert token_budgets(8192, 3000) == [8192, 4096, 3000]
    assert token_budgets(8192, 8192) == [8192]
    assert token_budgets(8192, 20000) == [8192]
    assert token_budgets(2048, 100) == [2048, 1024, 512]
    assert token_budgets(WHOLE, 100) == [WHOLE]


def test_micro_batches_are_cut_as_the_worker_cuts_them() -> None:
    from core.worker.data.batches import split_window

    lengths = [40, 8, 16, 16, 24, 40, 8, 32]
    for budget in (1, 40, 64, 100, 1000):
        for most in (None, 2):
            cut = split_window(range(8), lengths, budget, most)
            widths = sorted(lengths, reverse=True)
            expected = [(len(rows), max(lengths[row] for row in rows)) for rows in cut]
            assert micro_batches(widths, budget, most) == expected


def test_a_step_inside_backward_is_one_pass_and_some_of_its_layers_are_recomputed() -> None:
    method: dict[str, Any] = {"method": {"name": "full"}, "train": {"optimizer": "adamw_8bit", "batch_size": 4}}
    plan = plan_in(published.LLAMA_3_8B, 50, 1024, **method)
    assert plan.token_budget == WHOLE
    assert plan.micro_batch.rows == 4
    assert 0 < plan.kept_layers < 32


@pytest.mark.slow
@cases(("choice", "kept"), [("on", {0}), ("off", {32}), ("auto", set(range(33)))], ids=["on", "off", "auto"])
@cases("gib", [7.5, 8, 9, 12, 16, 20, 23, 60])
def test_the_configuration_has_the_last_word(choice: str, kept: set[int], gib: float) -> None:
    plan = plan_in(published.LLAMA_3_8B, gib, memory={"gradient_checkpointing": choice})
    assert plan.kept_layers in kept
    assert plan.reason
    assert plan.offload is (choice != "off" and gib == 7.5)


@pytest.mark.slow
def test_what_is_kept_or_recomputed_is_reported_in_a_sentence() -> None:
    reasons = [plan_in(published.LLAMA_3_8B, gib).reason for gib in (60, 15, 11, 8)]
    assert reasons[0] == "Activations are kept: there is room for all of them."
    assert reasons[1].startswith("Activations are kept in micro-batches of up to 2,048 tokens: with up to 8,192 the ")
    assert " of 32 layers are kept, of the others recomputed, in micro-batches of up to 2,048 tokens: " in reasons[2]
    assert reasons[3].startswith("Activations are recomputed")
    assert all(reason.endswith(("free.", "GB.", "them.")) and reason.count(". ") == 0 for reason in reasons)


@functools.cache
def some_plan() -> Plan:
    return plan_in(published.SMOLLM2_135M, 1)


def fake_plan(way: Way, seconds: float, needed: int) -> Plan:
    plan = some_plan()
    return replace(
        plan,
        token_budget=way.token_budget,
        kept_layers=way.kept_layers,
        offload=way.offload,
        limit_bytes=1000,
        needed_bytes=needed,
        step=replace(plan.step, seconds=seconds),
    )


@given(budget_bytes=st.integers(1, 60), layer_bytes=st.integers(1, 80), again=st.floats(0, 1), cut=st.floats(0, 1))
def test_the_choice_is_the_fastest_of_all_that_fit(
    budget_bytes: int, layer_bytes: int, again: float, cut: float
) -> None:
    """Compared with trying every way; a choice that fills the memory leaves a little of it."""
    depth, budgets = 30, [16, 8, 4]

    def plan(way: Way) -> Plan:
        needed = way.token_budget * (budget_bytes + layer_bytes * way.kept_layers // 8)
        seconds = 1 + again * (depth - way.kept_layers) / depth + cut / way.token_budget
        return fake_plan(way, seconds, needed)

    found = choose_way(budgets, (0, depth), plan)
    ways = [plan(Way(budget, kept)) for budget in budgets for kept in range(depth + 1)]
    fitting = [one for one in ways if one.needed_bytes <= 1000 * (FILLED_SHARE if one.kept_layers else 1)]
    if plan(Way(16, depth)).fits:
        assert found.way == Way(16, depth)
    elif fitting:
        assert found.step.seconds == min(one.step.seconds for one in fitting)
    else:
        assert found.way == Way(4, 0)


def test_rates_are_those_measured_on_the_device() -> None:
    measured = Calibration("NVIDIA GeForce RTX 4090", 1, 0.0, "2.13", "2026-01-31", 1.6e14, 9e11)
    rates = rates_of(measured.device, measured, cuda=True, wide=False)
    assert (rates.matrix, rates.memory) == (1.6e14, 9e11)
    assert "measured" in rates.source
    assert rates_of("", None, cuda=True, wide=False).source == "estimated"
    assert rates_of("", None, cuda=False, wide=True).matrix < rates_of("", None, cuda=False, wide=False).matrix


LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=80)


@given(LENGTHS, st.integers(1, 16), st.integers(8, 3000), st.none() | st.integers(1, 8))
def test_no_micro_batch_is_larger(lengths: list[int], batch_size: int, budget: int, max_rows: int | None) -> None:
    before, rows, width = largest_shape(length_runs(lengths), batch_size, budget, max_rows)
    ordered = sorted(map(padded_length, lengths), reverse=True)
    assert ordered[before] == width
    assert before + rows <= len(lengths)
    possible = [ordered[0]]
    for start in range(len(ordered)):
        count = min(batch_size, max_rows or batch_size, len(ordered) - start)
        possible += [size * ordered[start] for size in range(1, count + 1) if size * ordered[start] <= budget]
    assert rows * width == max(possible)


@given(LENGTHS)
def test_runs_count_every_row(lengths: list[int]) -> None:
    runs = length_runs(lengths)
    assert sum(count for _, count in runs) == len(lengths)
    assert [width for width, _ in runs] == sorted({padded_length(length) for length in lengths}, reverse=True)
    assert all(width % LENGTH_MULTIPLE == 0 for width, _ in runs)


@given(LENGTHS, st.integers(1, 16), st.integers(8, 3000))
def test_a_histogram_never_makes_the_micro_batch_smaller(lengths: list[int], batch_size: int, budget: int) -> None:
    measured = measure_lengths(lengths, list(range(len(lengths))), sum(lengths), sum(lengths) // 2)
    rough = rows_of_lengths(there(measured))
    assert rough.count == len(lengths)
    assert rough.runs[0][0] == padded_length(max(lengths))
    _, rows, width = largest_shape(length_runs(lengths), batch_size, budget)
    _, rough_rows, rough_width = rough.largest_shape(batch_size, budget)
    # Down to whole multiples, of which each row of it may lose one.
    assert rough_rows * rough_width >= rows * width - LENGTH_MULTIPLE * rough_rows
    assert rough_rows * rough_width <= max(budget, rough.runs[0][0])


def test_rows_beyond_the_limit_are_dropped_or_cut() -> None:
    rows = rows_of_tokens([10, 20, 100], supervised=65)
    assert rows.supervised == 0.5
    assert rows.limited(200, "drop") is rows
    dropped = there(rows.limited(24, "drop"))
    assert dropped.runs == [(24, 1), (16, 1)]
    assert there(rows.limited(24, "truncate")).runs == [(24, 2), (16, 1)]
    assert there(dropped.tokens) < 130
    assert Rows([(128, 4)]).limited(64, "drop") is None


@given(st.integers(1, 10_000_000), st.sampled_from([2, 4]), st.sampled_from(sorted(LOGITS_BYTES)))
def test_logits_of_a_chunk_are_bounded_in_bytes(vocabulary: int, width: int, device: str) -> None:
    positions, most = chunk_positions(vocabulary, width, device), LOGITS_BYTES[device]
    assert positions in (64, 128, 256, 512, 1024)
    assert positions == 64 or width * positions * vocabulary <= most
    # Twice as many would be too many.
    assert positions == 1024 or 2 * width * positions * vocabulary > most
