"""Corrections of rows: in a copy, one line changed, earlier corrections kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.data.corrected_copy import copy_of, moved_to, toggle_left_out, write_correction
from core.errors import UserError


def chat(question: str, answer: str) -> str:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"id": 7, "messages": turns}, ensure_ascii=False)


def test_one_line_changes_in_the_copy_and_the_file_stays(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [chat("Größe?", "klein"), "", chat("no", "no"), '{"instruction": "x", "output": "y"}\r', "{broken"]
    file.write_text("\n".join(lines), encoding="utf-8", newline="")
    before, copy = file.read_bytes(), copy_of(file)
    assert copy == tmp_path / "rows-corrected.jsonl"
    write_correction(file, copy, 3, "no", "yes\nwith “more”")
    write_correction(file, copy, 4, "y", "z")
    assert file.read_bytes() == before
    found = copy.read_bytes().split(b"\n")
    assert [found[at] for at in (0, 1, 4)] == [before.split(b"\n")[at] for at in (0, 1, 4)]
    corrected = json.loads(found[2])
    assert [turn["content"] for turn in corrected["messages"]] == ["no", "yes\nwith “more”"], "the answer, no question"
    assert corrected["id"] == 7
    assert found[3] == b'{"instruction": "x", "output": "z"}\r'
    assert copy_of(copy) == copy
    write_correction(copy, copy, 3, "yes\nwith “more”", "half \ud83d")
    assert json.loads(copy.read_bytes().split(b"\n")[2])["messages"][1]["content"] == "half \ud83d"


def test_corrections_that_cannot_be_made_change_nothing(tmp_path: Path) -> None:
    file, other, table = tmp_path / "rows.jsonl", tmp_path / "other.jsonl", tmp_path / "rows.csv"
    file.write_text(chat("a", "b") + "\n", encoding="utf-8")
    other.write_text("one\ntwo\nthree\n", encoding="utf-8")
    table.write_text("q,a\nx,y\n", encoding="utf-8")
    for copy, line, answer, said in (
        (other, 1, "b", "it has another number of lines"),
        (tmp_path / "new.jsonl", 1, "part of b", "not a text of its own"),
        (tmp_path / "new.jsonl", 2, "b", "not a text of its own"),
        (tmp_path / "new.jsonl", 9, "b", "another number of lines"),
        (tmp_path / "new.csv", 1, "b", "of another kind"),
        (tmp_path / "missing" / "new.jsonl", 1, "b", "cannot be written"),
    ):
        with pytest.raises(UserError, match=said):
            write_correction(file, copy, line, answer, "c")
    with pytest.raises(UserError, match="of another kind"):
        write_correction(table, tmp_path / "new.jsonl", 2, "y", "z")
    assert other.read_text(encoding="utf-8") == "one\ntwo\nthree\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.jsonl", "rows.csv", "rows.jsonl"]


def test_a_row_is_left_out_and_taken_back() -> None:
    file = "/data/mine/rows.jsonl"
    once = toggle_left_out(["a.jsonl:17"], file, 17, "rows.jsonl")
    assert once == ["a.jsonl:17", "rows.jsonl:17"]
    assert toggle_left_out(once, file, 17, "rows.jsonl") == ["a.jsonl:17"]
    assert toggle_left_out(["mine/rows.jsonl:15-17", "rows.jsonl:17"], file, 17, "rows.jsonl") == [
        "mine/rows.jsonl:15-16"
    ]
    assert toggle_left_out(["rows.jsonl:15-19"], file, 17, "rows.jsonl") == ["rows.jsonl:15-16", "rows.jsonl:18-19"]
    assert toggle_left_out(["rows.jsonl:17-18"], file, 17, "rows.jsonl") == ["rows.jsonl:18"]


def test_rows_left_out_are_named_in_the_copy() -> None:
    entries = ["rows.jsonl:3-4", "mine/rows.jsonl:7", "other/rows.jsonl:1", "more.jsonl:2"]
    assert moved_to(entries, Path("/data/mine/rows.jsonl"), Path("/data/mine/new.jsonl")) == [
        *("new.jsonl:3-4", "new.jsonl:7", "other/rows.jsonl:1", "more.jsonl:2")
    ]
