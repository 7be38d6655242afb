"""Prompt sets over a real run: base, a checkpoint and the result, by the command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.evaluation.record import list_records, read_record
from core.runs.record.store import Run
from tests.cases import cases
from tests.forking import Forks
from tests.waiting import wait_for

from .workers import PATIENCE, Workers, hooked

#: An evaluation that waits for its end when the first of its answers are kept.
HELD = """
import time
from core.evaluation.record import RecordFile

def write_and_wait(self):
    self.write()
    while True:
        time.sleep(1)

RecordFile.write_if_due = write_and_wait
"""


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
            train={"max_steps": 40, "learning_rate": 0.02, "batch_size": 8},
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


def test_a_run_is_compared_with_its_base_on_what_it_holds_out(
    forks: Forks, trained: tuple[Workers, Run], tmp_path: Path
) -> None:
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


@pytest.mark.long
def test_a_killed_one_goes_on(forks: Forks, trained: tuple[Workers, Run], tmp_path: Path) -> None:
    workers, run = trained
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"ticket {number} and more", "expected": "[1]"} for number in range(200)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = (run.id, "--prompts", str(prompts), "--max-new-tokens", "4")
    with workers.environment(**hooked(tmp_path / "hooks", HELD)):
        process = forks.popen(command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def some() -> int:
        found = [read_record(path) for path in list_records(run.path / "evaluations")]
        return max((record.done for record in found if record.prompts == str(prompts)), default=0)

    had = wait_for(some, PATIENCE, "some answers to be kept")
    process.kill()
    process.wait()
    assert had == some() < 200
    code, told, said = call(forks, workers, *words)
    assert code == 0, said
    assert f"Goes on with {had} of 200 answers" in said
    assert told["answered"][run.id] == 200


@cases(
    ("words", "said"),
    [
        (["RUN", "--against", "RUN"], "is named twice"),
        (["RUN@7"], "has no checkpoint of step 7"),
        (["RUN", "--prompts", "/no/such/file.jsonl"], "/no/such/file.jsonl"),
        (["RUN", "--check", "no-such-program-here"], "There is no program"),
        (["no-such-run"], "There is no run"),
        (["RUN", "--with", "lm-eval", "--tasks", "a b"], "is no name of a task"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    forks: Forks, trained: tuple[Workers, Run], words: list[str], said: str
) -> None:
    workers, run = trained
    code, told, error = call(forks, workers, *(word.replace("RUN", run.id) for word in words))
    assert code == 1
    assert told is None
    assert said in error
    assert len(error.strip().splitlines()) == 1, error
    assert "Traceback" not in error
