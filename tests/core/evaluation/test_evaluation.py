"""Evaluations: asked, scored, kept, cut short and gone on with."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from core.chat.request import Source
from core.errors import UserError
from core.evaluation.check import Check
from core.evaluation.evaluation import Evaluation
from core.evaluation.prompt_set import PromptItem, PromptSet
from core.evaluation.record import list_records, read_record
from core.evaluation.report import summary_lines, to_jsonl, to_markdown, write_report
from core.evaluation.table import EvaluationTable
from core.jobs.job import JobCancelledError, JobProgress
from core.text import sanitize
from tests.cases import cases
from tests.core.evaluation.scripted import ScriptedSession, targets


def prompts(count: int = 12, expected: str | None = '{"n": %d}') -> PromptSet:
    items = (
        PromptItem(
            str(number),
            ({"role": "user", "content": f"q{number}"},),
            expected % number if expected is not None else None,
        )
        for number in range(count)
    )
    return PromptSet("set.jsonl", tuple(items))


def answer(question: str, source: Source) -> str:
    """Tuned: right but for every fourth, base: right for every sixth."""
    number = int(question[1:])
    if source == "tuned":
        return f'{{"n":{number}}}' if number % 4 else "no idea"
    return f'{{"n": {number}}}' if number % 6 == 0 else '{"n": -1}'


def test_models_are_compared_on_the_same_questions() -> None:
    session = ScriptedSession(answer)
    told: list[JobProgress] = []
    evaluation = Evaluation(prompts(), targets(session))
    record = evaluation.run(told.append)
    assert session.loads == 1, "base and adapter are answered by one loaded model"
    assert session.is_closed.is_set()
    assert (record.state, record.done, record.total) == ("done", 24, 24)
    assert (told[0].activity, told[-1].done) == ("run: loading the model", 24)
    table = EvaluationTable.of(record)
    assert table.metrics == ("exact_match", "valid_json", "f1")
    assert table.deciding == "exact_match"
    assert table.means["run"]["exact_match"] == pytest.approx(9 / 12)
    assert table.means["run"]["valid_json"] == pytest.approx(9 / 12)
    assert table.means["base"]["exact_match"] == pytest.approx(2 / 12)
    (comparison,) = table.comparisons
    assert comparison.won == (1, 2, 3, 5, 7, 9, 10, 11)
    assert comparison.lost == (0,)
    assert comparison.differences["exact_match"] == pytest.approx(7 / 12)
    interval = comparison.intervals["exact_match"]
    assert interval is not None
    assert interval.low > 0
    assert evaluation.file is not None
    assert read_record(evaluation.file.path) == record, "what is kept is all of it"
    assert evaluation.file.path.stat().st_mode & 0o777 == 0o600


def test_one_that_was_cut_short_goes_on_with_what_it_had() -> None:
    first = ScriptedSession(answer)
    begun = Evaluation(prompts(), targets(first))

    def stop(progress: JobProgress) -> None:
        if progress.done == 5:
            begun.cancel()

    with pytest.raises(JobCancelledError):
        begun.run(stop)
    assert begun.record.done == 5
    second = ScriptedSession(answer)
    again = Evaluation(prompts(), targets(second))
    record = again.run()
    assert again.is_continued
    assert len(second.asked) == 24 - 5
    assert record.done == 24
    assert len(list_records(again.folder)) == 1
    third = ScriptedSession(answer)
    Evaluation(prompts(), targets(third)).run()
    assert len(third.asked) == 24, "one that is done is not gone on with"


@cases("change", ["prompts", "model", "length", "check"])
def test_answers_of_something_else_are_not_taken_over(change: str) -> None:
    begun = Evaluation(prompts(), targets(ScriptedSession(answer)))
    with pytest.raises(JobCancelledError):
        begun.run(lambda progress: begun.cancel() if progress.done == 5 else None)
    session = ScriptedSession(answer)
    other = Evaluation(
        prompts(11) if change == "prompts" else prompts(),
        targets(session, identity="2" if change == "model" else "1"),
        max_new_tokens=99 if change == "length" else 256,
        check=Check.parse("true") if change == "check" else None,
    )
    other.run()
    assert not other.is_continued
    assert len(session.asked) == other.record.total


KILLED = """
import os, sys
from tests.core.evaluation.scripted import ScriptedSession, targets
from tests.core.evaluation.test_evaluation import answer, prompts
from core.evaluation.record import RecordFile
from core.evaluation.evaluation import Evaluation
RecordFile.write_if_due = RecordFile.write
def slow(question, source):
    if question == "q9":
        print("here", flush=True)
        sys.stdin.read()
    return answer(question, source)
Evaluation(prompts(), targets(ScriptedSession(slow))).run()
"""


def test_a_kill_loses_nothing_that_was_written() -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"here\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    session = ScriptedSession(answer)
    again = Evaluation(prompts(), targets(session))
    (kept,) = list_records(again.folder)
    before = read_record(kept)
    assert (before.state, before.done) == ("running", 9)
    record = again.run()
    assert len(session.asked) == 24 - 9
    assert record.done == 24
    assert [path.name for path in again.folder.iterdir()] == [kept.name], "nothing half-written is left"


def test_a_full_disk_is_reported_and_what_was_written_stays() -> None:
    begun = Evaluation(prompts(), targets(ScriptedSession(answer)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(progress: JobProgress) -> None:
        if progress.done == 5 and begun.file is not None:
            begun.file.write()
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))

    try:
        with pytest.raises(UserError, match=r"cannot be written|is full"):
            begun.run(fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert begun.file is not None
    assert read_record(begun.file.path).done == 5


def test_a_check_decides_and_one_that_fails_ends_it_with_what_was_answered(tmp_path: Path) -> None:
    script = tmp_path / "check.py"
    script.write_text(
        "import json, sys\nfacts = json.load(sys.stdin)\n"
        "if facts['id'] == '3': sys.exit(9)\nprint(1 if 'n' in facts['answer'] else 0)\n"
    )
    check = Check((sys.executable, str(script)))
    failing = Evaluation(prompts(), targets(ScriptedSession(answer)), check=check)
    with pytest.raises(UserError, match="ended with code 9"):
        failing.run()
    assert failing.record.done == 3
    script.write_text("print(1)")
    record = Evaluation(prompts(), targets(ScriptedSession(answer)), check=check).run()
    assert EvaluationTable.of(record).deciding == "check"


def test_free_text_is_decided_by_its_words() -> None:
    session = ScriptedSession(lambda _question, source: "a cat sits" if source == "tuned" else "a dog")
    table = EvaluationTable.of(Evaluation(prompts(6, "a cat sits in %d"), targets(session)).run())
    assert table.deciding == "f1"
    assert len(table.comparisons[0].won) == 6
    nothing = EvaluationTable.of(Evaluation(prompts(3, None), targets(ScriptedSession(answer))).run())
    assert (nothing.metrics, nothing.deciding) == ((), None)
    assert nothing.comparisons[0].differences == {}


HOSTILE = "```\n# Heading <script> | \x1b[2J \u202e [x](http://y)\n````"


def test_it_is_written_as_markdown_and_json_lines(tmp_path: Path) -> None:
    session = ScriptedSession(lambda question, source: answer(question, source) if source == "tuned" else HOSTILE)
    record = Evaluation(prompts(), targets(session)).run()
    table = EvaluationTable.of(record)
    markdown = to_markdown(record, table)
    assert "| exact match | 0.750 | 0.000 |" in markdown
    assert "## Won against base" in markdown
    assert "`````text\n```\n# Heading" in markdown, "no answer ends its own fence"
    rows = [json.loads(line) for line in to_jsonl(record, table).splitlines()]
    assert [row["outcomes"]["base"] for row in rows][:5] == ["same", "won", "won", "won", "same"]
    assert rows[1]["answers"]["run"]["scores"]["exact_match"] == 1
    assert rows[1]["answers"]["base"]["text"] == sanitize(HOSTILE)
    lines = summary_lines(record, table)
    assert lines[0].split() == ["run", "base"]
    assert "9 won, 0 lost, 3 the same" in lines[-1]
    names = ("20261126-101010-tickets@120", "base")
    named = replace(record, targets=names, answers=dict(zip(names, record.answers.values(), strict=True)))
    narrow = summary_lines(named, EvaluationTable.of(named), 40)
    assert narrow[0].split() == ["…tickets@120", "base"]
    assert all(len(line) <= 40 for line in narrow[:3])
    path = write_report(record, table, str(tmp_path / "out.md"))
    assert path.read_text(encoding="utf-8") == markdown
    with pytest.raises(UserError, match="is there already"):
        write_report(record, table, str(path))
    assert write_report(record, table, str(tmp_path / "out.jsonl")).read_text() == to_jsonl(record, table)


@cases("text", ["", "{}", "[]", '{"version": 9}', '{"version": 1, "state": "odd"}', "null", "[" * 9999])
def test_what_is_no_record_is_refused_and_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path / "home"))
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match="is not a record"):
        read_record(path)
    evaluation = Evaluation(prompts(2), targets(ScriptedSession(answer)))
    evaluation.folder.mkdir(parents=True)
    (evaluation.folder / "a.json").write_text(text)
    assert evaluation.run().state == "done"


def test_two_that_begin_in_the_same_second_have_two_files() -> None:
    records = [Evaluation(prompts(2), targets(ScriptedSession(answer), identity=str(number))) for number in range(3)]
    for evaluation in records:
        evaluation.record.id = "20260101-000000-set"
        evaluation.run()
    paths = {evaluation.file.path.name for evaluation in records if evaluation.file is not None}
    assert len(paths) == 3


def test_it_can_be_cancelled_while_a_model_answers() -> None:
    waits = threading.Event()

    def hang(_question: str, _source: Source) -> str:
        waits.set()
        assert session.is_closed.wait(30)
        return "late"

    session = ScriptedSession(hang)
    evaluation = Evaluation(prompts(3), targets(session))
    with ThreadPoolExecutor() as pool:
        running = pool.submit(evaluation.run)
        assert waits.wait(30)
        evaluation.cancel()
        with pytest.raises(JobCancelledError):
            running.result(30)
    assert evaluation.record.done == 0


def test_a_link_in_the_place_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    evaluation = Evaluation(prompts(2), targets(ScriptedSession(answer)))
    evaluation.folder.parent.mkdir(parents=True)
    evaluation.folder.symlink_to(tmp_path)
    with pytest.raises(UserError, match="is a link"):
        evaluation.run()
    assert list(tmp_path.iterdir()) == []
