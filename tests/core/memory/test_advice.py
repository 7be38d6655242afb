"""Memory advice: advised changes really make the run fit, at the stated cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config.schema import Config
from core.memory import planner
from core.memory.advice import Advice, advise, changed
from core.memory.plan import Machine, Plan
from core.memory.planner import make_plan
from core.memory.rows import Rows
from core.models.architecture import measuring
from core.models.architecture.architecture import read_architecture
from core.models.architecture.measuring import Growth, LayerGrowth, Passes, Regime, to_json
from tests.cases import cases
from tests.core.memory.plans import config_of
from tests.core.models.architecture import published

MEASURED = planner._measured


def advised(
    model: dict[str, Any], config: Config, limit: int | None, rows: Rows | None = None, **machine: Any
) -> tuple[Plan, tuple[Advice, ...]]:
    """The plan of a run, and the advice, whose changes do what it says."""
    architecture, gpu = read_architecture(model, "x"), Machine(**{"kind": "cuda", "limit_bytes": limit} | machine)
    plan = make_plan(architecture, config, gpu, rows)
    answers = advise(architecture, config, gpu, rows, plan)
    for answer in answers:
        # The changed configuration is valid in a file.
        again = Config.model_validate(changed(config, answer.changes).model_dump())
        applied = make_plan(architecture, again, gpu, rows)
        assert answer.total_bytes == plan.total_bytes - answer.saves_bytes
        # A change that has not been measured counts by its bound, less the excess of the plan's own.
        if plan.is_rough or not answer.is_rough:
            assert (applied.total_bytes, applied.fits) == (answer.total_bytes, answer.fits)
    return plan, answers


def first(*given: Any, **machine: Any) -> Advice:
    """The first answer, which is enough."""
    answer = advised(*given, **machine)[1][0]
    assert answer.fits
    return answer


@given(
    st.sampled_from(sorted(published.PARAMETERS)),
    st.integers(500_000_000, 60_000_000_000),
    st.sampled_from(["qlora", "lora"]),
    st.sampled_from(["cpu", "cuda"]),
    st.sampled_from([8, 64, 256]),
)
def test_what_is_advised_fits_when_it_is_done(name: str, limit: int, method: str, kind: str, rank: int) -> None:
    config = config_of(method={"name": method, "rank": rank, "dropout": 0.1}, train={"max_length": 1024})
    rows = Rows([(1024, 30), (256, 100)])
    plan, advice = advised(published.PARAMETERS[name][0], config, limit, rows, kind=kind)
    assert len(advice) <= 2
    if not plan.fits:
        assert all(answer.saves_bytes > 0 for answer in advice)
        assert len(advice) < 2 or all(answer.fits for answer in advice)


@pytest.mark.parametrize(
    "name",
    [*published.PARAMETERS, pytest.param("Qwen2.5-0.5B", marks=pytest.mark.slow)],  # the last by measurements
)
def test_a_run_that_is_a_little_too_large_is_made_to_fit(name: str) -> None:
    model = published.PARAMETERS[name][0]
    memory = {"gradient_checkpointing": "off", "offload_experts": "off"}
    config = config_of(train={"max_length": 1024, "batch_size": 1}, memory=memory)
    needed = make_plan(read_architecture(model, name), config, Machine("cuda")).needed_bytes
    tight, answers = advised(model, config, round(0.95 * needed))
    assert not tight.fits
    assert answers
    assert all(answer.fits for answer in answers)


def test_the_cheapest_change_that_is_enough_comes_first() -> None:
    config = config_of(memory={"gradient_checkpointing": "off"}, train={"batch_size": 1})
    found = first(published.LLAMA_3_8B, config, 12_000_000_000)
    assert found.changes == {"memory.gradient_checkpointing": "on"}
    assert "quarter longer" in found.text


def test_where_it_is_the_layers_inputs_they_are_advised_to_be_moved() -> None:
    rows, train = Rows([(16384, 1)]), {"batch_size": 1, "max_length": 16384}
    config = config_of(train=train, memory={"activation_offload": "off"})
    needed = make_plan(read_architecture(published.LLAMA_3_8B, "x"), config, Machine("cuda"), rows).needed_bytes
    given = (published.LLAMA_3_8B, config, needed - (1 << 30), rows)
    moved = {"memory.activation_offload": "on"}
    for host in (None, 64 << 30):
        assert first(*given, host_bytes=host).changes == moved
    assert not any("memory.activation_offload" in one.changes for one in advised(*given, host_bytes=1 << 30)[1])
    kept = config_of(train=train, memory={"activation_offload": "off", "gradient_checkpointing": "off"})
    found = first(published.LLAMA_3_8B, kept, needed - (1 << 30), rows)
    assert found.changes == {**moved, "memory.gradient_checkpointing": "on"}


@pytest.mark.slow
@pytest.mark.parametrize("pins", [True, False])
def test_where_it_is_the_experts_they_are_advised_to_be_moved(pins: bool) -> None:
    config = config_of(memory={"offload_experts": "off"})
    given = (published.QWEN_3_30B_A3B, config, 12 * 10**9, Rows([(2048, 8)]))
    assert first(*given, pins=pins, host_bytes=64 << 30).changes == {"memory.offload_experts": "auto" if pins else "on"}
    short, answers = advised(*given, pins=pins, host_bytes=8 << 30)
    assert not short.fits
    assert not any("memory.offload_experts" in answer.changes for answer in answers)


def test_room_to_spare_buys_speed() -> None:
    """And keeps the inputs of layers where they are."""
    kept = {"memory.gradient_checkpointing": "off"}
    here = {"memory.activation_offload": "auto"}
    long = config_of(train={"batch_size": 1, "max_length": 8192}, memory={"activation_offload": "on"})
    starter = config_of(memory={"gradient_checkpointing": "on"})
    for model, config, limit, rows, changes in (
        (published.SMOLLM2_135M, starter, 24_000_000_000, None, kept),
        (published.LLAMA_3_8B, long, 20_000_000_000, Rows([(8192, 1)]), here),
        (published.LLAMA_3_8B, long, 200_000_000_000, Rows([(8192, 1)]), kept | here),
    ):
        _, (only,) = advised(model, config, limit, rows)
        assert (only.changes, only.fits) == (changes, True)
        assert only.saves_bytes < 0


def test_where_nothing_is_enough_that_is_reported() -> None:
    _, (only,) = advised(published.LLAMA_2_13B, config_of(), 4_000_000_000)
    assert not only.fits
    assert "smaller base model" in only.text


@cases(
    ("limit", "memory"),
    [
        # The room is used by itself.
        (24_000_000_000, {}),
        (None, {"gradient_checkpointing": "off"}),
        (10**12, {"gradient_checkpointing": "off"}),
    ],
)
def test_there_is_nothing_to_say_without_need(limit: int | None, memory: dict[str, str]) -> None:
    plan, advice = advised(published.SMOLLM2_135M, config_of(memory=memory), limit)
    assert (plan.checkpointing, advice) == (False, ())


def test_a_change_is_measured_before_it_is_advised_unless_that_is_to_be_immediate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs: list[dict[str, Any]] = []

    def run(job: dict[str, Any]) -> dict[str, Any]:
        jobs.append(job["config"]["method"])
        # A quarter of the rough bound.
        kept = Growth(per_token=20_000 + 2_000 * job["config"]["method"]["rank"])
        layer = LayerGrowth(0, True, 1, kept, Growth(), (kept,), (kept,), (kept,))
        regime = Regime(None, Growth(), Growth(), Growth(), (), (layer,))
        return {"passes": to_json(Passes((0,) * 24, (regime,), ((16, 2048, 100),), (("q_proj", 24),), 0))}

    monkeypatch.setattr(planner, "_measured", MEASURED)
    monkeypatch.setattr(measuring, "_run", run)
    monkeypatch.setattr(measuring, "_remembered", {})
    architecture = replace(read_architecture(published.QWEN_2_5_05B, "m"), description="{}")
    memory = {"gradient_checkpointing": "on", "activation_offload": "off"}
    config = config_of(method={"rank": 256}, train={"max_length": 1024, "batch_size": 1}, memory=memory)
    rows = Rows([(1024, 30)])
    needed = make_plan(architecture, config, Machine("cuda"), rows).needed_bytes
    machine = Machine("cuda", needed - 300_000_000)
    plan = make_plan(architecture, config, machine, rows)
    assert (plan.fits, plan.is_rough, len(jobs)) == (False, False, 1)
    immediate = advise(architecture, config, machine, rows, plan, source="known")
    assert len(jobs) == 1
    assert any(one.is_rough for one in immediate)
    advice = advise(architecture, config, machine, rows, plan)
    assert {job["rank"] for job in jobs} > {256}
    assert any("method.rank" in one.changes and one.fits for one in advice)
    assert not any(one.is_rough for one in advice)
