"""Data sources of runs: compressed, mapped, mixed and split; a resumed run continues with the same rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.runs.record.events import DataEvent, EvalEvent, StepEvent
from tests.core.data.sample_files import write_parquet

from .workers import Workers, exit_code, kill, log, only, write_rows


@pytest.mark.timeout(600)
def test_packed_mapped_mixed_and_split_data_survive_a_kill(workers: Workers, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in write_rows(tmp_path / "rows.jsonl", 30, seed=3).read_text().splitlines()]
    asked = [{"q": row["messages"][0]["content"], "a": row["messages"][1]["content"]} for row in rows]
    write_parquet(tmp_path / "asked.parquet", [*asked, {"q": "unanswered", "a": ""}])
    entry = {"file_name": "rows.jsonl", "formatting": "openai", "columns": {"messages": "messages"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    data = {
        "train": [str(tmp_path / "asked.parquet"), str(tmp_path / "dataset_info.json#mine")],
        "columns": {"user": "q", "assistant": "a"},
        "weights": [2, 0.5],
        "eval": None,
        "eval_share": 0.1,
    }
    run = workers.held("sources", 8, data=data, train={"max_steps": 12})
    kill(run)
    workers.resume(run)
    assert exit_code(run) == 0, log(run)
    told = only(DataEvent, run)
    assert len(told) == 2
    assert told[0].dropped == told[1].dropped
    assert told[0].rows == 61 == told[0].used + sum(told[0].dropped.values())
    # Both files hold the same conversations, and copies stay together: three of each are held out.
    assert told[0].dropped == {"empty_answer": 1, "held_out": 6, "not_sampled": 13}
    assert only(EvalEvent, run)[-1].rows == 6
    assert only(StepEvent, run)[-1].step == 12
