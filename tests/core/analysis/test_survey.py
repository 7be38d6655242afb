"""Dataset survey: duplicates, leaks and overlong rows, in every kind of file."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from core.analysis.division import find_near, find_same, find_shared
from core.analysis.problems import Problem
from core.analysis.result import Analysis, AnalysisRequest
from core.analysis.row_facts import SAMPLE, main_script
from core.analysis.survey import survey
from core.data.conversation import Example, make_tokens
from core.errors import UserError
from core.jobs.job import JobProgress
from core.template.settings import MaskSettings
from tests.cases import cases
from tests.core.analysis.test_division import changed, prints, prose
from tests.core.data.sample_files import json_lines, write, write_parquet
from tests.examples import examples

CASES = yaml.safe_load(Path(__file__).with_name("rows.yaml").read_text(encoding="utf-8"))


def row(question: str, answer: str = "An answer of its own.") -> dict[str, Any]:
    """A row of a conversation: a question and its answer."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def rows_of(analysis: Analysis, code: str) -> list[int]:
    """The rows with a problem, by its code; none where it is not found."""
    problem = analysis.problem(code)
    return [] if problem is None else list(problem.indices)


def problem_of(analysis: Analysis, code: str) -> Problem:
    problem = analysis.problem(code)
    assert problem is not None
    return problem


def look(*train: Path, **options: Any) -> Analysis:
    found = survey(AnalysisRequest(tuple(map(str, train)), **options))
    assert found.rows == found.used + sum(found.dropped.values())
    return found


# Copies.


def test_copies_are_those_that_say_the_same_whatever_case_and_spaces(tmp_path: Path) -> None:
    rows = [
        row(prose(1)),
        row("  " + prose(1).upper().replace(" ", "\n\n")),
        row(prose(1), "Another answer."),
        row(prose(2)),
        row(prose(1)),
    ]
    found = look(write(tmp_path / "a.jsonl", json_lines(rows)))
    assert rows_of(found, "duplicate") == [1, 4]
    problem = problem_of(found, "duplicate")
    assert problem.detail == "It is the same as row 1."
    assert rows_of(found, "near_duplicate") == [2]


def test_almost_the_same_is_a_few_words_and_not_half(tmp_path: Path) -> None:
    texts = [prose(seed) for seed in range(40)]
    few = [changed(text, seed, 1) for seed, text in enumerate(texts)]
    half = [changed(text, seed, 30) for seed, text in enumerate(texts)]
    found = look(write(tmp_path / "a.jsonl", json_lines(row(text) for text in [*texts, *half, *few])))
    near = set(rows_of(found, "near_duplicate"))
    assert not near & set(range(80))
    # An estimate: nearly all of those with one word in sixty changed.
    assert len(near) >= 36


def test_a_shared_system_message_makes_no_rows_alike(tmp_path: Path) -> None:
    system = {"role": "system", "content": prose(99, 300)}
    rows = [{"messages": [system, *row(prose(seed, 30))["messages"]]} for seed in range(20)]
    found = look(write(tmp_path / "a.jsonl", json_lines(rows)))
    assert rows_of(found, "near_duplicate") == rows_of(found, "duplicate") == []


def test_short_rows_and_scripts_without_spaces(tmp_path: Path) -> None:
    chinese = "".join(chr(0x4E00 + number) for number in random.Random(5).sample(range(3000), 120))
    rows = [row("yes", "no"), row("yes", "nope"), row(chinese), row(chinese[:-1] + "\u4e00"), row(chinese[::-1])]
    found = look(write(tmp_path / "a.jsonl", json_lines(rows)))
    assert rows_of(found, "duplicate") == []
    assert rows_of(found, "near_duplicate") == [3]


def test_copies_are_found_across_files(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", json_lines([row(prose(1)), row(prose(2))]))
    second = write(tmp_path / "b.csv", f"prompt,completion\n{prose(2)},An answer of its own.\n{prose(3)},x\n")
    found = look(first, second)
    problem = problem_of(found, "duplicate")
    assert list(problem.indices) == [2]
    assert (problem.places[0].file, problem.places[0].line) == ("b.csv", 2)
    assert problem.detail == "It is the same as row 2."
    assert [(source.format, source.rows) for source in found.sources] == [("messages", 2), ("prompt_completion", 2)]


# Rows left out.


def test_rows_left_out_are_counted_as_the_run_counts_them(tmp_path: Path) -> None:
    rows = [row(f"question {number}") for number in range(1700)]
    path = write(tmp_path / "a.jsonl", json_lines(rows) + "{broken\n")
    other = write(tmp_path / "b.jsonl", json_lines([row("one"), row("two")]))
    found = look(path, other, exclude=("a.jsonl:2", "a.jsonl:1701", "a.jsonl:1690-1691", "b.jsonl:2"))
    assert (found.used, found.ordered, found.dropped) == (1698, 1702, {"excluded": 4, "not_json": 1})
    assert rows_of(found, "excluded") == [1, 1689, 1690, 1702]
    with pytest.raises(UserError, match=r"names b\.jsonl:3, and data\.train has no such row"):
        look(path, other, exclude=("b.jsonl:3",))
    assert look(path, exclude=("b.jsonl:3", "a.jsonl:1"), is_part=True).dropped["excluded"] == 1


def test_rows_left_out_that_are_held_out_or_not_sampled_stay_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json_lines([row(prose(seed)) for seed in range(40)]))
    settings: dict[str, Any] = {"eval_share": 0.2, "weights": (0.5,)}
    before = look(path, **settings)
    found = look(path, exclude=("a.jsonl:1-40",), **settings)
    assert found.held_out == before.held_out
    assert found.dropped == {**before.dropped, "excluded": before.used}
    assert rows_of(found, "excluded_held_out") == list(before.held_out)


# Leaks.


def test_leaks_exact_and_near(tmp_path: Path) -> None:
    held_out = [row(prose(seed)) for seed in range(5)]
    train = [
        row(prose(10)),
        row(prose(1).upper()),
        row(changed(prose(2), 4)),
        row(prose(11)),
        row(changed(prose(3), 0, 30)),
    ]
    files = [write(tmp_path / name, json_lines(rows)) for name, rows in (("t.jsonl", train), ("e.jsonl", held_out))]
    found = look(files[0], eval=(str(files[1]),))
    assert (found.rows, found.used, found.eval_rows) == (5, 5, 5)
    assert rows_of(found, "leaked") == [1]
    assert rows_of(found, "near_leaked") == [2]
    leaked = problem_of(found, "leaked")
    assert leaked.detail == "It is the same as row 2 of data.eval."
    without = look(files[0], eval=(str(files[1]),), exclude=("t.jsonl:2",))
    assert (rows_of(without, "leaked"), rows_of(without, "near_leaked")) == ([], [2])


def test_leaks_from_rows_that_cannot_be_used_are_not_counted(tmp_path: Path) -> None:
    held_out = write(tmp_path / "e.jsonl", json_lines([row(prose(1), " "), row(prose(2))]) + "{broken\n")
    train = write(tmp_path / "t.jsonl", json_lines([row(prose(1), " "), row(prose(3))]))
    found = look(train, eval=(str(held_out),))
    assert found.eval_rows == 3
    assert found.dropped == {"empty_answer": 1}
    assert found.problem("leaked") is None


def test_leaks_among_many_rows_and_processes(tmp_path: Path) -> None:
    train = write(tmp_path / "t.jsonl", json_lines(row(f"question {n} {prose(n, 5)}") for n in range(2500)))
    held_out = write(tmp_path / "e.jsonl", json_lines(row(f"question {n} {prose(n, 5)}") for n in range(2400, 3000)))
    told: list[JobProgress] = []
    found = survey(AnalysisRequest((str(train),), (str(held_out),)), lambda *at: told.append(JobProgress(*at)))
    assert rows_of(found, "leaked") == list(range(2400, 2500))
    assert found.eval_rows == 600
    reading = [progress.done or 0 for progress in told if progress.activity == "reading"]
    assert reading == sorted(reading)
    assert reading[-1] == 3100 == told[-1].total
    assert told[-1].activity == "comparing"


# Files of every kind.

TEXTS = [row(prose(seed), "" if seed % 10 == 3 else f"answer {seed}") for seed in range(30)]


def test_shards_are_one_dataset_with_places_in_their_files(tmp_path: Path) -> None:
    directory = tmp_path / "shards"
    for number in range(3):
        write(directory / f"part-{number}.jsonl", "\n" + json_lines(TEXTS[10 * number : 10 * number + 10]))
    write(directory / "part-3.jsonl", "\n \n")
    found = look(directory)
    assert (found.rows, found.used) == (30, 27)
    problem = problem_of(found, "empty_answer")
    assert [(place.file, place.line) for place in problem.places] == [
        ("part-0.jsonl", 5), ("part-1.jsonl", 5), ("part-2.jsonl", 5),
    ]  # fmt: skip


# Lengths.


def test_rows_beyond_the_limit_by_option(tmp_path: Path, tiny_model_dir: Path) -> None:
    rows = [row("short"), row("a", "z" * 300), row("z" * 300, "a"), row("b", "z" * 20)]
    path = write(tmp_path / "a.jsonl", json_lines(rows))
    masks = MaskSettings(str(tiny_model_dir), max_length=120)
    dropped = look(path, masks=masks)
    assert (dropped.used, dropped.dropped) == (2, {"overlong": 2})
    assert rows_of(dropped, "overlong") == [1, 2]
    refused = look(path, masks=masks, overlong="refuse")
    assert refused.dropped == dropped.dropped
    cut = look(path, masks=masks, overlong="truncate")
    assert (cut.used, cut.dropped) == (3, {"nothing_supervised": 1})
    assert rows_of(cut, "truncated") == [1]
    # A cut answer is never ended.
    assert (cut.stop_learned, dropped.stop_learned) == (2, 2)
    unlimited = look(path, masks=MaskSettings(str(tiny_model_dir)))
    assert (unlimited.used, unlimited.stop_learned) == (4, 4)
    # Lengths are those before anything is cut or dropped.
    assert unlimited.lengths is not None
    assert dropped.lengths == refused.lengths == cut.lengths == unlimited.lengths
    longest = unlimited.lengths.max
    assert look(path, masks=MaskSettings(str(tiny_model_dir), max_length=longest)).used == 4
    assert look(path, masks=MaskSettings(str(tiny_model_dir), max_length=longest - 1)).used < 4


def test_an_answer_cut_before_its_last_token_only(tmp_path: Path, tiny_model_dir: Path) -> None:
    path = write(tmp_path / "a.jsonl", json_lines([{"input_ids": [5] * 9 + [2], "labels": [-100] * 9 + [2]}]))
    whole, cut = (MaskSettings(str(tiny_model_dir), max_length=length) for length in (10, 9))
    assert look(path, masks=whole, overlong="truncate").stop_learned == 1
    assert look(path, masks=cut, overlong="truncate").dropped == {"nothing_supervised": 1}


# Comparing.


def test_rows_of_tokens_are_compared_too() -> None:
    ids = random.Random(1).choices(range(1000), k=200)
    rows = [make_tokens(ids), make_tokens([*ids[:-1], 7]), make_tokens(ids[::-1]), make_tokens(ids)]
    found = prints(rows)
    same = find_same(found)
    assert same == {3: 0}
    assert find_near(found, same) == {1: 0}


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 5), max_size=30), st.lists(st.integers(0, 8), max_size=30))
def test_same_and_shared_are_what_comparing_all_with_all_finds(train: list[int], held_out: list[int]) -> None:
    texts = [f"Row  number {number}" for number in range(9)]
    rows = prints([Example(text=texts[number].upper() if number % 2 else texts[number]) for number in train])
    others = prints([Example(text=texts[number].lower()) for number in held_out])
    first = {place: train.index(number) for place, number in enumerate(train) if train.index(number) != place}
    assert find_same(rows) == first
    leaked, near = find_shared(rows, others)
    assert set(leaked) == {place for place, number in enumerate(train) if number in held_out}
    assert all(held_out[leaked[place]] == train[place] for place in leaked)
    assert near == {}


# Answers.


@cases(("data", "code", "part"), CASES["answers"])
def test_answers_that_may_be_no_answers(tmp_path: Path, data: dict[str, Any], code: str, part: str) -> None:
    problem = problem_of(look(write(tmp_path / "a.jsonl", json_lines([data, data]))), code)
    assert (problem.count, [place.index for place in problem.places]) == (2, [0, 1])
    assert part in problem.detail
    assert problem.hint


@cases("data", CASES["fine"])
def test_columns_that_are_read_and_quotes_of_a_few_words_are_no_problem(tmp_path: Path, data: dict[str, Any]) -> None:
    assert not look(write(tmp_path / "a.jsonl", json_lines([data]))).problems


def test_what_the_template_leaves_out_of_a_prompt_is_a_problem(tmp_path: Path, tiny_model_dir: Path) -> None:
    template = (
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    system = {"role": "system", "content": "Be brief."}
    rows = [row("a b"), {"messages": [system, *row("c d")["messages"]]}]
    found = look(write(tmp_path / "a.jsonl", json_lines(rows)), masks=MaskSettings(str(tiny_model_dir), template))
    problem = problem_of(found, "prompt_drops")
    assert (problem.count, list(problem.indices), found.used) == (1, [1], 2)
    assert problem.detail == "The chat template leaves out the system message."
    assert "template.file" in problem.hint


# Pictures, and columns that are not read.


@cases("processes", [False, True])
def test_rows_with_pictures_are_dropped_and_unread_columns_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: bool
) -> None:
    """Also where only late rows have the columns, and where several processes read."""
    if processes:
        monkeypatch.setattr("core.analysis.survey._WORTH_PROCESSES", 1)
        monkeypatch.setattr("core.analysis.survey._MOST_PROCESSES", 2)
    rows = [{**row(f"Number {number}?"), "images": [], "topic": ""} for number in range(600)]
    for number in (3, 597):
        rows[number]["images"] = ["a.png"]
    rows[4]["messages"][0]["content"] = "<image>What is this?"
    rows[598] |= {"topic": "cats", "id": 598}
    rows[599] |= {"id": 0}
    found = look(write(tmp_path / "a.jsonl", json_lines(rows)))
    assert found.dropped == {"has_media": 3}
    problem = problem_of(found, "has_media")
    assert list(problem.indices) == [3, 4, 597]
    assert problem.detail == "The column images holds pictures, and only text is read."
    assert "Only text is read" in problem.hint
    unread = problem_of(found, "columns_not_read")
    assert (unread.kind.level, unread.count, unread.detail) == ("note", 2, "id, topic")
    assert not unread.indices, "rows are not marked for it one by one"


def test_columns_that_are_not_read_are_named_for_each_file(tmp_path: Path) -> None:
    texts = write(tmp_path / "a.csv", "text,category\nIt rains.,weather\nIt snows.,\n")
    pairs = write(tmp_path / "b.jsonl", json_lines([{"question": "a b", "answer": "c d"}]))
    tables = write_parquet(tmp_path / "c.parquet", [{"instruction": "a b", "output": "c d", "meta": {"id": 3}}])
    found = look(texts, pairs, tables)
    details = [problem.detail for problem in found.problems if problem.code == "columns_not_read"]
    assert details == [f"{texts}: category", f"{tables}: meta"]


@cases(("text", "noted"), [("<image>\nWho is this?", True), ("Write <video><source></video>.", False)])
def test_placeholders_without_a_column_are_noted(tmp_path: Path, text: str, noted: bool) -> None:
    found = look(write(tmp_path / "a.jsonl", json_lines([row(text)])))
    assert found.used == 1
    assert (found.problem("placeholder") is not None) == noted


def test_placeholders_that_nobody_filled_in_are_noted_in_several_rows(tmp_path: Path) -> None:
    rows = [row("Who are you?", "{{name}}, by {{ author }}."), row("Hi", "Hello."), row("And you?", "{{name}}.")]
    found = look(write(tmp_path / "a.jsonl", json_lines(rows)))
    assert rows_of(found, "unfilled") == [0, 2]
    assert problem_of(found, "unfilled").detail == "It holds {{name}}, {{ author }}."
    assert look(write(tmp_path / "b.jsonl", json_lines(rows[:2]))).problem("unfilled") is None


@cases(("data", "code"), CASES["bad"])
def test_a_problem_is_found_in_its_row_and_nowhere_else(tmp_path: Path, data: dict[str, Any], code: str) -> None:
    analysis = look(write(tmp_path / "rows.jsonl", json_lines([*CASES["clean"], data])))
    assert rows_of(analysis, code) == [3]
    assert problem_of(analysis, code).count == 1


@cases(
    ("text", "script"),
    # Only the beginning counts.
    [*CASES["scripts"], ("1" * 5000 + "then words", "Latin"), ("я" * 4 * SAMPLE + "a" * 100_000, "Cyrillic")],
)
def test_the_script_of_most_letters(text: str, script: str) -> None:
    assert main_script(text) == script
