"""Progress of a whole export: one share, whatever its stages do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.export.plan import (
    CONVERTING_ADAPTER,
    HASHING,
    IMPORTANCE,
    LOADING_FILE,
    MEASURING_FILE,
    MERGING,
    QUANTIZING,
    WRITING,
    Stage,
    WholeProgress,
    plan_export,
    stages_of,
)
from core.export.request import ExportRequest
from core.runs.record.store import Run
from tests.cases import cases
from tests.core.export.trained_run import make_trained_run, write_rows
from tests.examples import examples

STAGES = [Stage("merge", 20.0), Stage("look", 0.0), Stage("measure", 10.0), Stage("merge", 20.0), Stage("hash", 50.0)]


def shares_of(*told: tuple[str, int | None, int | None]) -> list[float]:
    """Shares of the whole export after each report of a stage."""
    shares: list[float] = []

    def tell(_activity: str, done: int | None, total: int | None) -> None:
        assert done is not None
        assert total is not None
        shares.append(done / total)

    whole = WholeProgress(STAGES, tell)
    for each in told:
        whole(*each)
    return shares


def test_each_stage_has_its_part_by_its_work() -> None:
    shares = shares_of(
        ("merge", 0, 4), ("merge", 2, 4), ("merge", 4, 4), ("look", None, None), ("measure", 3, 10), ("merge", 1, 2),
        ("hash", 0, None), ("hash", 1, 1),
    )  # fmt: skip
    assert shares == [0.0, 0.1, 0.2, 0.2, 0.23, 0.4, 0.5, 1.0]
    merged = [Stage("merge", 30.0), Stage("measure", 60.0), Stage("hash", 10.0)]
    told: list[tuple[int | None, int | None]] = []
    whole = WholeProgress(merged, lambda _, done, total: told.append((done, total)), 2_000_000_000)
    whole("merge", 1, 2)
    whole("hash", 1, 2)
    assert told == [(30, 200), (70, 80)], "seconds; what is left out is taken from all of them"


def test_a_stage_that_is_left_out_or_comes_again_counts_as_nothing() -> None:
    assert shares_of(("merge", 1, 1), ("hash", 0, 2), ("hash", 1, 2)) == [0.2, 20 / 70, 45 / 70]
    shares = shares_of(("merge", 1, 1), ("measure", 1, 1), ("merge", 1, 1), ("merge", 0, 1), ("start", None, None))
    assert shares == [0.2, 0.3, 0.5, 0.5, 0.5]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["merge", "look", "measure", "hash", "starting"]),
            st.none() | st.integers(-1, 20),
            st.none() | st.integers(0, 10),
        )
    )
)
@settings(max_examples=examples(60))
def test_it_only_ever_grows(told: list[tuple[str, int | None, int | None]]) -> None:
    shares = shares_of(*told)
    assert shares == sorted(shares)
    assert all(0.0 <= share <= 1.0 for share in shares)


@pytest.fixture
def run(tmp_path: Path, tiny_model_dir: Path) -> Run:
    return make_trained_run(tiny_model_dir, write_rows(tmp_path / "rows.jsonl", 3))


@cases(
    ("kind", "more", "some"),
    [
        ("card", {}, [HASHING]),
        ("merged", {}, [MERGING, HASHING, MEASURING_FILE]),
        ("gguf", {"quant": "Q8_0"}, [MERGING, WRITING, HASHING, LOADING_FILE]),
        ("gguf", {"quant": "Q4_K_M"}, [MERGING, WRITING, IMPORTANCE, QUANTIZING, HASHING, MEASURING_FILE]),
        ("gguf", {"adapter_only": True}, [CONVERTING_ADAPTER, HASHING, WRITING, MEASURING_FILE]),
        ("adapter", {}, [HASHING, MEASURING_FILE]),
    ],
)
def test_the_stages_follow_from_the_plan(run: Run, kind: Any, more: dict[str, Any], some: list[str]) -> None:
    plan = plan_export(ExportRequest(run.path, kind, **more))
    told = [stage.activity for stage in stages_of(plan)]
    assert [activity for activity in told if activity in some] == some
