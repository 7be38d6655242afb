from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from core.data.files.reader import list_shards, open_rows, read_rows
from core.data.files.source import FileChangedError
from core.errors import UserError
from core.hub.selection import MOST_SHARDS
from tests.cases import cases
from tests.core.data.sample_files import json_lines, pairs, values, write, write_arrow, write_parquet
from tests.unprivileged import unprivileged


def refusal(path: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        open_rows(path).close()
    assert caught.value.hint
    return caught.value


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


def test_packed_shards(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for number in range(3):
        write_parquet(tmp_path / "set" / f"{number}.parquet", pairs(9, number * 9))
    assert values(read_rows(tmp_path / "set")) == pairs(27)
    write(tmp_path / "gz" / "a.jsonl.gz", gzip.compress(json_lines(pairs(2)).encode()))
    write(tmp_path / "gz" / "b.jsonl.gz", gzip.compress(json_lines(pairs(2, 2)).encode()))
    assert values(read_rows(tmp_path / "gz")) == pairs(4)


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
    write(saved / "state.json", "[]")
    assert "is no state of a saved dataset" in refusal(saved).message


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


def test_closing_ends_the_index(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / f"{number}.jsonl", json_lines([{"n": number}]) * 300_000)
    file = open_rows(tmp_path)
    file.index(lambda *_: file.close())
    assert not file.complete
    file.close()


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


@cases("state", ['{"_data_files":' + "[" * 100_000, '{"_data_files": 3}', "x" * (17 << 20), "\0"])
def test_any_state_of_a_saved_dataset_is_a_sentence(tmp_path: Path, state: str) -> None:
    write(tmp_path / "set" / "dataset_info.json", "{}")
    write(tmp_path / "set" / "state.json", state)
    assert "is no state of a saved dataset" in refusal(tmp_path / "set").message
