"""Lines of ``why``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from core.attribution.job import PROOF, IndexResult
from core.attribution.result import AttributedRow, Attribution
from core.commands.why import index_line, result_lines
from tests.core.attribution.test_job import make_run

from .conftest import Call

ROWS = tuple(
    AttributedRow("rows.jsonl", 10 + number, 1 - number / 10, f"question {number}", f"answer {number}", ((0, 6),))
    for number in range(7)
)
AGAINST = (AttributedRow("rows.jsonl", 3, -0.5, "other", "no"),)
FOUND = Attribution("billing", "hardware", "I do not know", ROWS, AGAINST, 7, (15, 30), 300, 400)


def test_five_rows_for_and_those_against_have_bars_relative_to_the_first() -> None:
    lines = list(result_lines(FOUND))
    assert lines[:3] == ["answer  billing", "base    I do not know", "wanted  hardware"]
    shown = [line.split() for line in lines if line.lstrip().startswith(("#", "-"))]
    assert [(len(bar), place) for bar, place, *_ in shown] == [
        *((12, "rows.jsonl:10"), (11, "rows.jsonl:11"), (10, "rows.jsonl:12"), (8, "rows.jsonl:13")),
        *((7, "rows.jsonl:14"), (6, "rows.jsonl:3")),
    ]
    assert shown[-1][0] == "------"
    assert "=> *answer* 0" in lines[lines.index("Rows for it:") + 2]
    text = "\n".join(lines)
    assert "Up to the gap in the scores there are 7 rows; --like lists all of them." in text
    assert "300 of 400 rows were compared, chosen by their hidden states" in text
    assert lines[-2:] == [PROOF, 'data.exclude = ["rows.jsonl:10-16"]']
    assert "%" not in text
    assert "cause" not in text


def test_all_rows_up_to_the_gap_are_listed_when_asked_for() -> None:
    lines = list(result_lines(replace(FOUND, considered=400), like=True))
    assert sum(line.lstrip().startswith(("#", "-")) for line in lines) == 8
    assert not any("--like" in line or "hidden states" in line for line in lines)


def test_the_same_answer_of_the_base_comes_first() -> None:
    lines = list(result_lines(replace(FOUND, base="billing\n", wanted="")))
    assert lines[:3] == [
        "The base model gives the same answer: training need not be behind it.",
        "answer  billing",
        "",
    ]


def test_an_answer_without_rows_says_so() -> None:
    assert list(result_lines(replace(FOUND, rows=(), against=(), like=0)))[-1] == "No row pulls toward this answer."


def test_an_index_is_a_sentence() -> None:
    made = IndexResult((15, 30), 400, 6_500_000, 90.0, 800)
    assert index_line(made).startswith("400 rows at steps 15 and 30: 6.5 MB in 1m")
    assert index_line(replace(made, made=0)).endswith("; it was there already.")
    assert index_line(replace(made, note="No middle.")).endswith(". No middle.")


def test_a_checkpoint_that_is_gone_is_refused(call: Call, private_home: Path) -> None:
    run = make_run(5)
    ended = call("why", f"{run.id}@3", "--prompt", "why?")
    assert ended.code == 1
    assert "The checkpoint of step 3 is not kept" in ended.err


def test_a_question_or_the_index_is_asked_for(call: Call) -> None:
    ended = call("why", "latest")
    assert ended.code == 2
    assert "--prompt names the question, or --index makes the index." in ended.err
