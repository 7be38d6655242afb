from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.files import text_rows
from core.data.files.reader import list_shards, open_rows
from core.data.files.rows import Row
from core.data.files.source import FileChangedError
from core.data.files.text_rows import RAW_LIMIT
from core.errors import UserError
from core.hub.selection import MOST_SHARDS
from tests.cases import cases
from tests.core.data.sample_files import (
    descriptors,
    json_lines,
    pairs,
    read_rows,
    refusal,
    values,
    write,
    write_arrow,
)
from tests.examples import examples
from tests.unprivileged import unprivileged


def test_json_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"n": 0}\r\n\r\n  \n{"n": 1}\n{"n": 2}')
    with open_rows(path) as file:
        assert (file.kind, file.count_known, file.complete, file.size) == ("jsonl", 3, True, path.stat().st_size)
        found = file.rows(0, 10)
    assert values(found) == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert [(row.index, row.line) for row in found] == [(0, 1), (1, 4), (2, 5)]
    assert list(read_rows(path)) == found


def test_an_array_of_messages_is_a_conversation(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = write(tmp_path / "a.jsonl", json_lines([turns, [1], [], turns]))
    assert values(read_rows(path)) == [{"messages": turns}, None, None, {"messages": turns}]
    nested = write(tmp_path / "a.json", json.dumps([turns, turns]))
    assert values(read_rows(nested)) == [{"messages": turns}] * 2


@cases(
    ("content", "numbered", "want"),
    [
        ("q1,5\nq2,6\n", "12", [{"1": "q1", "2": "5"}, {"1": "q2", "2": "6"}]),
        ("4,4\nq2,6\n", "12", [{"1": "4", "2": "4"}, {"1": "q2", "2": "6"}]),
        # A column of this name: there is a header.
        ("1,2,3\nq2,6,7\n", "12", [{"1": "q2", "2": "6", "3": "7"}]),
        ("q,a\nq2,6\n", "", [{"q": "q2", "a": "6"}]),
        # Columns without a name, as spreadsheets leave them.
        ("q, ,\nq2,6,7\n", "", [{"q": "q2", "column 2": "6", "column 3": "7"}]),
    ],
)
def test_columns_of_a_csv_can_be_numbered(tmp_path: Path, content: str, numbered: str, want: list[Any]) -> None:
    path = write(tmp_path / "a.csv", content)
    with open_rows(path, numbered=set(numbered)) as file:
        assert values(file.rows(0, 9)) == want
        assert ("first line is a record" in file.note) == (len(want) == content.count("\n"))
    write(tmp_path / "set" / "a.csv", content)
    with open_rows(tmp_path / "set", numbered=set(numbered)) as shards:
        assert values(shards.rows(0, 9)) == want


def test_a_page_is_a_slice(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "".join(f'{{"n": {n}}}\n' for n in range(50)))
    with open_rows(path) as file:
        assert values(file.rows(20, 3)) == [{"n": 20}, {"n": 21}, {"n": 22}]
        assert values(file.rows(48, 9)) == [{"n": 48}, {"n": 49}]
        assert file.rows(50, 1) == file.rows(3, 0) == file.rows(-5, 2) == []
        assert file.row(7).data == {"n": 7}
        with pytest.raises(IndexError):
            file.row(50)


def test_json_array(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[\n {"n": 0, "s": "],{\\""},\n {"n": {"m": [1]}},\n 7\n]\n')
    found = list(read_rows(path))
    assert values(found) == [{"n": 0, "s": '],{"'}, {"n": {"m": [1]}}, None]
    assert [row.line for row in found] == [2, 3, 4]
    assert found[2].code == "not_an_object"
    found = list(read_rows(write(tmp_path / "without-end.json", '[{"n": 0},\n')))
    assert found[0].data == {"n": 0}
    assert found[1].code == "not_json"
    assert "closing ]" in found[1].error


def test_rows_in_an_array_inside_an_object(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '{"version": "1",\n"data": [\n{"n": 0},\n{"n": [1]}\n], "more": {"x": [1, 2]}}\n')
    found = list(read_rows(path))
    assert values(found) == [{"n": 0}, {"n": [1]}]
    assert [row.line for row in found] == [3, 4]
    two = write(tmp_path / "b.json", '{"train": [{"n": 0}],\n"test": [{"n": 1}]}\n')
    found = list(read_rows(two))
    assert values(found) == [{"n": 0}, None]
    assert (found[1].line, found[1].error) == (
        2,
        "Another array of rows begins here; only the first of a file is read.",
    )
    cut = list(read_rows(write(tmp_path / "c.json", '{"data": [{"n": 0}, {"n":')))
    assert [row.code for row in cut] == ["", "not_json"]


def test_text_has_a_row_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbf one\r\n\r\n{two}\n\xff\n")
    found = list(read_rows(path))
    assert values(found) == [{"text": "one"}, {"text": "{two}"}, None]
    assert [(row.line, row.code) for row in found] == [(1, ""), (3, ""), (4, "not_utf8")]


def test_csv_and_tsv(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'prompt, completion\r\n"a ""b"",\nc",d\r\n\r\nlone\r\n,x\r\n')
    with open_rows(path) as file:
        assert file.columns == ["prompt", "completion"]
        assert file.count_known == 3
        found = file.rows(0, 9)
    assert values(found) == [{"prompt": 'a "b",\nc', "completion": "d"}, None, {"prompt": "", "completion": "x"}]
    assert [row.line for row in found] == [2, 5, 6]
    assert found[1].error == "The row has 1 cells, the header has 2."
    assert found[1].code == "bad_csv"
    tsv = write(tmp_path / "a.tsv", "prompt\tcompletion\na, b\tc\n")
    assert values(read_rows(tsv)) == [{"prompt": "a, b", "completion": "c"}]
    cell = "x" * 300_000  # beyond the limit of the module csv
    assert values(read_rows(write(tmp_path / "b.csv", f"text\n{cell}\n"))) == [{"text": cell}]


def test_unreadable_rows_come_with_a_reason_and_their_beginning(tmp_path: Path) -> None:
    lines = {
        b'{"n": 0}': "",
        b"not json": "not_json",
        b'{"s": "\xff"}': "not_utf8",
        b'{"s": "\x00"}': "not_json",
        b"\x00\x00\x00": "not_json",
        b"[1]": "not_an_object",
        b"3": "not_an_object",
        b"[" * 100_000: "not_json",
        b'{"n": ' + b"9" * 5000 + b"}": "not_json",
        b'{"n": 9}': "",
    }
    found = list(read_rows(write(tmp_path / "a.jsonl", b"\n".join(lines))))
    assert [row.code for row in found] == list(lines.values())
    assert all(bool(row.error) == bool(row.code) == (row.data is None) for row in found)
    assert found[1].raw == "not json"
    assert found[2].raw == '{"s": "\ufffd"}'
    assert len(found[7].raw) == RAW_LIMIT


def test_a_row_beyond_the_limit_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = json.dumps({"text": "x" * 5_000_000})
    path = write(tmp_path / "a.jsonl", f'{{"n": 0}}\n{long}\n{{"n": 2}}\n')
    assert [row.code for row in read_rows(path)] == ["", "", ""]
    monkeypatch.setattr(text_rows, "ROW_LIMIT", 1_000_000)
    with open_rows(path) as file:
        found = file.rows(0, 3)
        assert found[1].error == "The row is 5.0 MB long; rows up to 1.0 MB are read."
        assert (found[1].data, found[1].code) == (None, "too_long")
        assert found[1].raw == long[:RAW_LIMIT]
        assert [row.line for row in found] == [1, 2, 3]
        assert file.row(1, limit=6_000_000).data == json.loads(long)


def test_a_huge_row_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"n": 0}\n{"text": "' + b"x" * 1_000_000)
        file.truncate(100_000_000)
    with open_rows(path) as opened:
        assert opened.count_known == 1
        opened.index()
        assert opened.count_known == 2
        assert opened.rows(1, 1)[0].error == "The row is 100 MB long; rows up to 8.4 MB are read."


@cases(
    ("name", "content", "part"),
    [
        ("a.jsonl", "\n \r\n\n", "holds no rows"),
        ("a.json", "[]", "holds no rows"),
        ("a.csv", "prompt,completion\n", "holds a header and no rows"),
        ("a.csv", "\n\n", "holds no rows"),
        ("a.csv", "text,text\na,b\n", "two columns called 'text'"),
        ("a.csv", b"t\xffxt\na\n", "no readable header"),
        ("a.csv", b'"' + b"x" * 9_000_000, "a header of more than"),
    ],
)
def test_a_file_without_rows_is_refused(tmp_path: Path, name: str, content: str | bytes, part: str) -> None:
    assert part in refusal(write(tmp_path / name, content)).message
    assert descriptors(tmp_path) == []


def large(directory: Path, count: int = 60_000) -> Path:
    """A file of which opening indexes the beginning only."""
    line = '{"n": %d, "text": "' + "x" * 200 + '"}\n'
    return write(directory / "large.jsonl", "".join(line % n for n in range(count)))


def test_pages_are_read_while_another_thread_indexes(tmp_path: Path) -> None:
    path = large(tmp_path)
    with open_rows(path) as file:
        started, resume = threading.Event(), threading.Event()

        def hold(done: int, total: int) -> None:
            started.set()
            assert resume.wait(30)

        thread = threading.Thread(target=file.index, args=(hold,))
        thread.start()
        assert started.wait(30)
        known = file.count_known
        assert not file.complete
        assert (file.rows(known - 1, 1)[0].data or {})["n"] == known - 1
        resume.set()
        seen = 0
        while thread.is_alive():
            known = file.count_known
            assert known >= seen
            assert (file.rows(known - 1, 1)[0].data or {})["n"] == known - 1
            seen = known
        thread.join()
        assert file.count_known == 60_000


@cases("shards", [1, 4])
def test_closing_ends_the_index(tmp_path: Path, shards: int) -> None:
    for number in range(shards):
        large(tmp_path / str(number))
    file = open_rows(tmp_path)
    file.index(lambda *_: file.close())
    assert not file.complete
    file.close()
    with pytest.raises(UserError, match="has been closed"):
        file.rows(0, 1)


def test_a_truncated_file_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    path = large(tmp_path)
    with open_rows(path) as file:
        os.truncate(path, 1000)
        for action in (file.index, lambda: file.rows(0, 5), lambda: file.row(0)):
            with pytest.raises(FileChangedError, match="has become shorter since it was opened"):
                action()


def test_a_file_that_is_changed_replaced_or_removed_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"n": 0}\n')
    with open_rows(path) as file:
        with path.open("a") as other:
            other.write('{"n": 1}\n')
        with pytest.raises(FileChangedError, match="has changed"):
            file.rows(0, 1)
    with open_rows(path) as file:
        os.replace(write(tmp_path / "b.jsonl", '{"n": 5}\n'), path)
        with pytest.raises(FileChangedError, match="has been replaced"):
            file.rows(0, 1)
    with open_rows(path) as file:
        assert values(file.rows(0, 1)) == [{"n": 5}]
        path.unlink()
        with pytest.raises(FileChangedError, match="is gone"):
            file.rows(0, 1)


@settings(max_examples=examples(200), deadline=None)
@given(
    st.binary(max_size=200) | st.text('{}[]",:\\ab1\n\r\x00\ufeff', max_size=80).map(str.encode),
    st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a"]),
)
def test_any_bytes_are_rows_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    path = write(tmp_path_factory.mktemp("any") / name, content)
    found: list[Row] = []
    refused: UserError | None = None
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(text_rows, "ROW_LIMIT", 100)
            found += read_rows(path)
    except UserError as error:
        refused = error
    assert bool(found) == (refused is None)
    assert refused is None or (refused.message and refused.hint)
    for index, row in enumerate(found):
        assert row.index == index
        assert row.line >= 0
        assert (row.data is None) == bool(row.error) == bool(row.code)


def test_more_rows_than_memory_has_room_for_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_rows, "MOST_ROWS", 600_000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n" * 2_000_000)
    with open_rows(path) as file:
        for _ in range(2):
            with pytest.raises(UserError, match="has more than 600,000 rows"):
                file.index()
        assert not file.complete
        assert file.count_known < 600_000 + (1 << 20)
        assert len(file.rows(0, 5)) == 5


def test_a_page_of_neighboring_and_far_rows_is_that_of_each_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_rows, "_BLOCK", 4000)
    rows = [{"n": n, "s": "é" * 10} for n in range(60)]
    rows[20]["s"], rows[40]["s"] = "x" * 5000, "x" * 20_000
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    lines.insert(30, "\n" * 100_000)
    path = write(tmp_path / "a.jsonl", "\n".join(lines) + "\n")
    monkeypatch.setattr(text_rows, "ROW_LIMIT", 10_000)
    with open_rows(path) as file:
        file.index()
        page = file.rows(0, 99)
        assert page == [file.row(index) for index in range(60)]
        assert [row.index for row in page if row.data is None] == [40]
        assert [row.line for row in page][29:31] == [30, 100_032]
        assert file.rows(19, 3) == page[19:22]


def test_shards_are_one_dataset_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write(tmp_path / "set" / f"part-{number}.jsonl", json_lines(pairs(3, number * 100)))
    write(tmp_path / "set" / "README.md", "about")
    write(tmp_path / "set" / ".hidden.jsonl", "x")
    write(tmp_path / "set" / "part-3.jsonl", "\n\n")
    wanted = [*pairs(3, 100), *pairs(3, 200), *pairs(3, 1000)]
    with open_rows(tmp_path / "set") as file:
        assert not file.complete
        assert values(file.rows(0, 99)) == wanted[:3]
        calls: list[tuple[int, int]] = []
        file.index(lambda done, total: calls.append((done, total)))
        assert (file.complete, file.count_known, file.kind) == (True, 9, "jsonl")
        assert values(file.rows(2, 5)) == wanted[2:7]
        row = file.row(7)
        assert (row.index, row.line, row.file, row.data) == (7, 2, "part-10.jsonl", wanted[7])
        with pytest.raises(IndexError):
            file.row(9)
        assert calls == sorted(calls)
        assert file.size == sum(path.stat().st_size for path in (tmp_path / "set").glob("part*"))
    assert values(read_rows(tmp_path / "set")) == wanted


def test_a_dataset_saved_by_datasets(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    write_arrow(saved / "data-00000-of-00002.arrow", pairs(3), stream=True)
    write_arrow(saved / "data-00001-of-00002.arrow", pairs(3, 3), stream=True)
    files = [{"filename": f"data-0000{number}-of-00002.arrow"} for number in (0, 1)]
    write(saved / "state.json", json.dumps({"_data_files": files, "_split": "train"}))
    write(saved / "dataset_info.json", "{}")
    assert values(read_rows(saved)) == pairs(6)
    write(saved / "state.json", json.dumps({"_data_files": [{"filename": "../../etc/passwd"}]}))
    assert "names files outside its directory" in refusal(saved).message


def test_splits_are_never_mixed(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("test", 5)):
        write(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.jsonl", json_lines(pairs(2, first)))
    error = refusal(tmp_path / "hub")
    assert "holds the splits test, train" in error.message
    assert error.hint.endswith("hub#train.")
    assert values(read_rows(tmp_path / "hub#train")) == pairs(2)
    assert values(read_rows(tmp_path / "hub#test")) == pairs(2, 5)
    assert "no file of the split 'dev'" in refusal(tmp_path / "hub#dev").message

    saved = tmp_path / "dict"
    write(saved / "dataset_dict.json", '{"splits": ["train", "test"]}')
    for split in ("train", "test"):
        write_arrow(saved / split / "data.arrow", pairs(2, len(split)), stream=True)
        write(saved / split / "state.json", json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    assert "holds the splits test, train" in refusal(saved).message
    assert values(read_rows(tmp_path / "dict#test")) == pairs(2, 4)
    assert values(read_rows(saved / "train")) == pairs(2, 5)


def test_directories_that_are_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "is a directory without data files" in refusal(tmp_path / "empty").message
    write(tmp_path / "mixed" / "a.jsonl", "{}")
    write(tmp_path / "mixed" / "b.csv", "a\n1\n")
    assert "several kinds (.csv, .jsonl)" in refusal(tmp_path / "mixed").message
    write(tmp_path / "blank" / "a.jsonl", "\n")
    assert "holds no rows" in refusal(tmp_path / "blank").message
    for number in range(MOST_SHARDS + 1):
        write(tmp_path / "many" / f"{number}.jsonl", "{}\n")
    assert f"more than {MOST_SHARDS} data files" in refusal(tmp_path / "many").message


def test_links_that_lead_round_in_circles_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "set" / "a.jsonl", json_lines(pairs(1)))
    (tmp_path / "set" / "round").symlink_to(tmp_path / "set", target_is_directory=True)
    target = write(tmp_path / "blobs" / "b", json_lines(pairs(1, 1)))
    (tmp_path / "set" / "b.jsonl").symlink_to(target)
    assert [path.name for path in list_shards(tmp_path / "set")] == ["a.jsonl", "b.jsonl"]
    assert values(read_rows(tmp_path / "set")) == pairs(2)
    (tmp_path / "set" / "self.jsonl").symlink_to(tmp_path / "set" / "self.jsonl")
    assert "leads back to itself" in refusal(tmp_path / "set").message


def test_a_shard_that_changes_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", json_lines(pairs(2)))
    second = write(tmp_path / "b.jsonl", json_lines(pairs(2, 2)))
    with open_rows(tmp_path) as file:
        file.index()
        second.write_text("{}\n")
        assert values(file.rows(0, 2)) == pairs(2)
        with pytest.raises(FileChangedError, match=r"b\.jsonl"):
            file.rows(0, 4)


@cases("mode", [0o000, 0o400, 0o100])
def test_what_may_not_be_read_is_a_sentence(tmp_path: Path, mode: int) -> None:
    directory = tmp_path / "data"
    write(directory / "a.jsonl", json_lines(pairs(1)))
    directory.chmod(mode)
    try:
        for path in (directory, directory / "b" / "c.jsonl", tmp_path / "data#train"):
            with unprivileged(), pytest.raises(UserError, match=r"may not be read by you|There is no file"):
                open_rows(path)
    finally:
        directory.chmod(0o700)


@cases("state", ["[]", '{"_data_files":' + "[" * 100_000, '{"_data_files": 3}', "x" * (17 << 20), "\0"])
def test_any_state_of_a_saved_dataset_is_a_sentence(tmp_path: Path, state: str) -> None:
    write(tmp_path / "set" / "dataset_info.json", "{}")
    write(tmp_path / "set" / "state.json", state)
    assert "is not a state of a saved dataset" in refusal(tmp_path / "set").message
