"""Memory advice: advised changes really make the run fit, at the stated cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config.schema import Config
from core.memory import planner
from core.memory.advice import advise, changed
from core.memory.plan import Machine
from core.memory.planner import make_plan
from core.memory.rows import Rows
from core.models.architecture import measuring
from core.models.architecture.families import read_architecture
from core.models.architecture.measuring import Growth, LayerGrowth, Passes, Regime, passes_to_dict
from tests.cases import cases
from tests.core.memory.plans import config_of
from tests.core.models.architecture import published

MEASURED = planner._measured


@given(
    st.sampled_from(sorted(published.PARAMETERS)),
    st.integers(500_000_000, 60_000_000_000),
    st.sampled_from(["qlora", "lora"]),
    st.sampled_from(["cpu", "cuda"]),
    st.sampled_from([8, 64, 256]),
)
def test_what_is_advised_fits_when_it_is_done(name: str, limit: int, method: str, kind: str, rank: int) -> None:
    architecture = read_architecture(published.PARAMETERS[name][0], name)
    config = config_of(method={"name": method, "rank": rank, "dropout": 0.1}, train={"max_length": 1024})
    machine = Machine("cuda" if kind == "cuda" else "cpu", limit)
    rows = Rows([(1024, 30), (256, 100)])
    plan = make_plan(architecture, config, machine, rows)
    advice = advise(architecture, config, machine, rows, plan)
    assert len(advice) <= 2
    for answer in advice:
        # The changed configuration is valid in a file.
        again = Config.model_validate(changed(config, answer.changes).model_dump())
        applied = make_plan(architecture, again, machine, rows)
        assert applied.total_bytes == answer.total_bytes == plan.total_bytes - answer.saves_bytes
        assert applied.fits == answer.fits
        if not plan.fits:
            assert answer.saves_bytes > 0
    if not plan.fits and len(advice) == 2:
        assert all(answer.fits for answer in advice)


@pytest.mark.parametrize(
    "name",
    [
        *published.PARAMETERS,
        # By measurements.
        pytest.param("Qwen2.5-0.5B", marks=pytest.mark.slow),
        *(
            pytest.param(name, marks=[pytest.mark.long, pytest.mark.slow])
            for name in ("Gemma-3-1B", "Qwen1.5-MoE-A2.7B")
        ),
    ],
)
def test_a_run_that_is_a_little_too_large_is_made_to_fit(name: str) -> None:
    architecture = read_architecture(published.PARAMETERS[name][0], name)
    memory = {"gradient_checkpointing": "off", "offload_experts": "off"}
    config = config_of(train={"max_length": 1024, "batch_size": 1}, memory=memory)
    plan = make_plan(architecture, config, Machine("cuda"))
    machine = Machine("cuda", round(0.95 * plan.needed_bytes))
    tight = make_plan(architecture, config, machine)
    assert not tight.fits
    answers = advise(architecture, config, machine, None, tight)
    assert answers
    for answer in answers:
        applied = make_plan(architecture, changed(config, answer.changes), machine)
        assert applied.total_bytes == answer.total_bytes == tight.total_bytes - answer.saves_bytes
        assert answer.fits == applied.fits
        assert answer.fits


def test_the_cheapest_change_that_is_enough_comes_first() -> None:
    architecture = read_architecture(published.LLAMA_3_8B, "x")
    config = config_of(memory={"gradient_checkpointing": "off"}, train={"batch_size": 1})
    machine = Machine("cuda", 12_000_000_000)
    plan = make_plan(architecture, config, machine)
    assert not plan.fits
    first = advise(architecture, config, machine, None, plan)[0]
    assert first.changes == {"memory.gradient_checkpointing": "on"}
    assert "quarter longer" in first.text


def test_where_it_is_the_layers_inputs_they_are_advised_to_be_moved() -> None:
    architecture, rows = read_architecture(published.LLAMA_3_8B, "x"), Rows([(16384, 1)])
    config = config_of(train={"batch_size": 1, "max_length": 16384}, memory={"activation_offload": "off"})
    needed = make_plan(architecture, config, Machine("cuda"), rows).needed_bytes
    for host, advised in ((None, True), (64 << 30, True), (1 << 30, False)):
        machine = Machine("cuda", needed - (1 << 30), host_bytes=host)
        plan = make_plan(architecture, config, machine, rows)
        answers = advise(architecture, config, machine, rows, plan)
        assert any("memory.activation_offload" in answer.changes for answer in answers) is advised
        if advised:
            assert answers[0].changes == {"memory.activation_offload": "on"}
            assert answers[0].fits
    kept = config_of(
        train={"batch_size": 1, "max_length": 16384},
        memory={"activation_offload": "off", "gradient_checkpointing": "off"},
    )
    machine = Machine("cuda", needed - (1 << 30))
    plan = make_plan(architecture, kept, machine, rows)
    first = advise(architecture, kept, machine, rows, plan)[0]
    assert first.changes == {"memory.activation_offload": "on", "memory.gradient_checkpointing": "on"}


@pytest.mark.slow
@pytest.mark.parametrize("pins", [True, False])
def test_where_it_is_the_experts_they_are_advised_to_be_moved(pins: bool) -> None:
    architecture, rows = read_architecture(published.QWEN_3_30B_A3B, "x"), Rows([(2048, 8)])
    config = config_of(memory={"offload_experts": "off"})
    for host, advised in ((64 << 30, True), (8 << 30, False)):
        machine = Machine("cuda", 12 * 10**9, host_bytes=host, pins=pins)
        plan = make_plan(architecture, config, machine, rows)
        assert not plan.fits
        answers = advise(architecture, config, machine, rows, plan)
        assert any("memory.offload_experts" in answer.changes for answer in answers) is advised
        if advised:
            assert answers[0].changes == {"memory.offload_experts": "auto" if pins else "on"}
            assert answers[0].fits


def test_room_to_spare_keeps_the_layers_inputs_where_they_are() -> None:
    architecture, rows = read_architecture(published.LLAMA_3_8B, "x"), Rows([(8192, 1)])
    config = config_of(train={"batch_size": 1, "max_length": 8192}, memory={"activation_offload": "on"})
    for limit, changes in (
        (20_000_000_000, {"memory.activation_offload": "auto"}),
        (200_000_000_000, {"memory.gradient_checkpointing": "off", "memory.activation_offload": "auto"}),
    ):
        machine = Machine("cuda", limit)
        plan = make_plan(architecture, config, machine, rows)
        assert plan.offload
        (only,) = advise(architecture, config, machine, rows, plan)
        assert only.changes == changes
        assert only.fits


def test_where_nothing_is_enough_that_is_said() -> None:
    architecture = read_architecture(published.LLAMA_2_13B, "x")
    machine = Machine("cuda", 4_000_000_000)
    plan = make_plan(architecture, config_of(), machine)
    (only,) = advise(architecture, config_of(), machine, None, plan)
    assert not only.fits
    assert "smaller base model" in only.text


def test_room_to_spare_buys_speed() -> None:
    architecture = read_architecture(published.SMOLLM2_135M, "x")
    machine = Machine("cuda", 24_000_000_000)
    config = config_of(memory={"gradient_checkpointing": "on"})
    plan = make_plan(architecture, config, machine)
    (only,) = advise(architecture, config, machine, None, plan)
    assert only.changes == {"memory.gradient_checkpointing": "off"}
    assert only.fits
    assert only.saves_bytes < 0


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
    architecture = read_architecture(published.SMOLLM2_135M, "x")
    config, machine = config_of(memory=memory), Machine("cuda", limit)
    plan = make_plan(architecture, config, machine)
    assert not plan.checkpointing
    assert advise(architecture, config, machine, None, plan) == ()


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
        return {"passes": passes_to_dict(Passes((0,) * 24, (regime,), ((16, 2048, 100),), (("q_proj", 24),), 0))}

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
