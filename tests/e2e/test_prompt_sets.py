"""Prompt sets over a real run: base, a checkpoint and the result, by the command."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.evaluation.record import read_record
from core.runs.record.store import Run
from tests.forking import Forks

from .workers import Workers


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[tuple[Workers, Run]]:
    """A short run that learned one answer by heart."""
    workers = Workers(tmp_path_factory.mktemp("prompt-sets"), tiny_model_dir)
    rows = [
        {"messages": [{"role": "user", "content": f"ticket {n}"}, {"role": "assistant", "content": "[1]"}]}
        for n in range(20)
    ]
    workers.train_data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    workers.eval_data.write_text("".join(json.dumps(row) + "\n" for row in rows[:6]), encoding="utf-8")
    try:
        run = workers.finished(
            "learned",
            method={"name": "lora", "rank": 16, "alpha": 32, "dropout": 0.0},
            train={"max_steps": 60, "learning_rate": 0.01, "batch_size": 8},
            eval={"every_steps": 40, "exact_match": False, "samples": 0},
            checkpoint={"every_steps": 20},
            data={"allow": ["eval_leak"]},
        )
        yield workers, run
    finally:
        workers.close()


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "tui", "eval", *words]


def call(forks: Forks, workers: Workers, *words: str) -> tuple[int, Any, str]:
    """Exit code, JSON output, and messages."""
    with workers.environment():
        done = forks.run(command(*words, "--json"))
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


def test_a_run_is_compared_with_its_base(forks: Forks, trained: tuple[Workers, Run], tmp_path: Path) -> None:
    workers, run = trained
    out = tmp_path / "report.md"
    code, told, said = call(forks, workers, run.id, "--against", "base", "--against", f"{run.id}@20", "--out", str(out))
    assert code == 0, said
    assert told["targets"] == [run.id, "base", f"{run.id}@20"]
    assert (told["items"], told["state"], told["deciding"]) == (6, "done", "exact_match")
    learned = told["means"][run.id]["exact_match"]
    assert learned >= 0.5, "it has learned its rows by heart"
    assert told["means"]["base"]["exact_match"] == 0
    against = told["comparisons"][0]
    assert (against["against"], against["won"], against["lost"]) == ("base", round(6 * learned), 0)
    found = against["differences"]["exact_match"]
    assert found["difference"] == learned
    assert found["low"] <= learned <= found["high"]
    assert "exact match" in out.read_text(encoding="utf-8")
    assert Path(told["path"]).parent == run.path / "evaluations"
    record = read_record(Path(told["path"]))
    assert record.done == 18
    code, shown, said = call(forks, workers, run.id, "--show")
    assert (code, shown) == (0, told), said
    assert "[1]" in {answer.text for answer in record.answers[run.id] if answer is not None}
