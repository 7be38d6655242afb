"""Losses of the rows of a real run: wrong answers have the highest, beside the model's own."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.evaluation.row_losses import RowLosses, measured_step, read_losses, row_losses_job
from core.jobs.job import JobCancelledError, JobProgress
from core.runs.record.store import Run
from tests.forking import Forks

from .workers import Workers

#: Lines with a wrong answer; the question of the last one is also that of line 2.
WRONG = (5, 12, 19)
RIGHT, FALSE = "[1]", "[2]"


def row(question: str, answer: str) -> str:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns}) + "\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[tuple[Workers, Run]]:
    """A short run on 22 rows with one answer, but for three; a blank line is among them, so that rows and lines differ,
    and the last row is left out."""
    workers = Workers(tmp_path_factory.mktemp("row-losses"), tiny_model_dir)
    lines = [row(f"ticket {line}", FALSE if line in WRONG else RIGHT) for line in range(1, 25)]
    lines[18] = row("Ticket  2", FALSE)
    lines[9] = "\n"
    workers.train_data.write_text("".join(lines), encoding="utf-8")
    workers.eval_data.write_text("".join(row(f"ticket {n}", RIGHT) for n in (31, 32, 33)), encoding="utf-8")
    try:
        run = workers.finished(
            "learned",
            method={"name": "lora", "rank": 16, "alpha": 32, "dropout": 0.0},
            train={"max_steps": 60, "learning_rate": 0.01, "batch_size": 8, "precision": "fp32"},
            eval={"every_steps": 30, "exact_match": False, "samples": 0},
            checkpoint={"every_steps": 20},
            data={"allow": ["eval_leak"], "exclude": "train.jsonl:24"},
        )
        yield workers, run
    finally:
        workers.close()


def measure(workers: Workers, run: Run, told: list[JobProgress] | None = None) -> RowLosses:
    with workers.environment():
        return row_losses_job(run, worst=6).run(told.append if told is not None else None)


def reference_losses(run: Run) -> dict[int, tuple[float, int]]:
    """Loss and number of the answer's tokens of each row, by line, from PEFT and transformers alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = run.config()
    tokenizer: Any = AutoTokenizer.from_pretrained(run.adapter_path)
    base = AutoModelForCausalLM.from_pretrained(config.model.base, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(run.adapter_path)).eval()
    found = {}
    for number, line in enumerate(Path(str(config.data.train)).read_text(encoding="utf-8").splitlines(), 1):
        if not line or number == 24:
            continue
        turns = json.loads(line)["messages"]
        prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=False)
        answer = tokenizer.encode(f"{turns[1]['content']}<|im_end|>", add_special_tokens=False)
        ids = torch.tensor([[*tokenizer.encode(prompt, add_special_tokens=False), *answer]])
        with torch.no_grad():
            logits = model(ids).logits[0, -len(answer) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(answer))
        found[number] = float(loss), len(answer)
    return found


def test_wrong_rows_have_the_highest_losses_beside_the_models_own_answers(trained: tuple[Workers, Run]) -> None:
    workers, run = trained
    told: list[JobProgress] = []
    found = measure(workers, run, told)
    assert found == read_losses(run)
    assert found.count == 22
    assert {worst.line for worst in found.worst[:3]} == set(WRONG)
    assert [worst.loss for worst in found.worst] == sorted((worst.loss for worst in found.worst), reverse=True)
    assert [worst.own for worst in found.worst] == [RIGHT] * 6
    assert {worst.answer for worst in found.worst[:3]} == {FALSE}
    (twice,) = [worst for worst in found.worst if worst.line == 19]
    assert [(twin.line, twin.answer) for twin in twice.twins] == [(2, RIGHT)], "equal but for case and blanks"
    expected = reference_losses(run)
    measured = {line: (loss, tokens) for line, loss, tokens in found.rows["train.jsonl"]}
    assert measured.keys() == expected.keys()
    for line, (loss, tokens) in expected.items():
        assert measured[line][0] == pytest.approx(loss, abs=1e-4)
        assert measured[line][1] == tokens
    shares = [progress.share for progress in told if progress.share is not None]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert {"measuring the rows", "answering the worst rows"} <= {progress.activity for progress in told}


def test_a_record_is_current_until_files_or_weights_change(trained: tuple[Workers, Run]) -> None:
    workers, original = trained
    run = workers.copy(original, "stale")
    data = workers.train_data
    before = data.read_bytes()
    found = measure(workers, run)
    assert found.is_current(run)
    assert len(found.of_data(data)) == 22
    try:
        data.write_bytes(before.replace(b"[2]", b"[3]"))
        assert not found.is_current(run)
        assert found.of_data(data) == {}
        with pytest.raises(UserError, match="The rows are not those that the run was trained on"):
            measure(workers, run)
        assert read_losses(run) == found, "the former record stays"
    finally:
        data.write_bytes(before)
    assert found.is_current(run), "the same content at another time"
    (run.path / "labels.json").write_text('{"version": 1, "result": 40}', encoding="utf-8")
    assert not found.is_current(run), "another checkpoint was taken as the result"
    again = measure(workers, run)
    assert again.step == 40
    assert again.is_current(run)
    path = run.path / "trace" / "row_losses.json"
    path.write_bytes(path.read_bytes()[:-40])
    assert read_losses(run) is None, "torn"
    assert measure(workers, run) == again


def test_a_closed_job_keeps_nothing(trained: tuple[Workers, Run]) -> None:
    workers, original = trained
    run = workers.copy(original, "closed")
    shutil.rmtree(run.path / "trace", ignore_errors=True)
    with workers.environment():
        job = row_losses_job(run)
        with pytest.raises(JobCancelledError):
            job.run(lambda _: job.close())
    assert not (run.path / "trace").exists()


def test_rows_learned_by_heart_are_measured_before_that(trained: tuple[Workers, Run]) -> None:
    workers, original = trained
    run = workers.copy(original, "overfit")
    assert measured_step(run) is None
    lines = []
    for line in run.events_path.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["type"] == "eval":
            event["loss"] = {30: 0.5}.get(event["step"], 0.8)
        lines.append(json.dumps(event))
        if event["type"] == "eval" and event["step"] == 30:
            lines += [json.dumps({**event, "step": step, "loss": loss}) for step, loss in ((20, 0.7), (40, 0.51))]
    run.events_path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    with workers.environment():
        assert measured_step(run) == 40, "the only kept one within 5 % of the least held-out loss"


def test_the_command_lists_the_worst_rows(forks: Forks, trained: tuple[Workers, Run]) -> None:
    workers, run = trained

    def call(*words: str) -> str:
        with workers.environment():
            done = forks.run([sys.executable, "-m", "tui", "data", "--run", run.id, *words])
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    told = json.loads(call("--json", "--worst", "3"))
    assert {worst["line"] for worst in told["worst"]} == set(WRONG)
    assert (told["rows"], told["run"], told["step"]) == (22, run.id, 60)
    assert {worst["own"] for worst in told["worst"]} == {RIGHT}
    shown = call(str(workers.train_data))
    assert "train.jsonl:19" in shown
    assert "own answer  [1]" in shown
    assert "same question in train.jsonl:2: [1]" in shown
