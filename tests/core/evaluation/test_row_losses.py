"""Records of row losses: the files that they are of, and foreign ones."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from core.analysis.problems import FileLine
from core.errors import UserError
from core.evaluation.row_losses import (
    DataFile,
    RowLosses,
    RowReview,
    WorstRow,
    read_losses,
    read_review,
    write_review,
)
from core.runs.record.store import Run
from core.small_files import hash_file
from tests.cases import cases


def record(*paths: Path) -> RowLosses:
    """Losses of the first two lines of some files."""
    files = tuple(DataFile(str(path), hash_file(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths)
    rows = {path.name: [(1, 0.5, 3), (2, 1.5, 3)] for path in paths}
    worst = (WorstRow(paths[0].name, 2, 1.5, 3, "question", "answer", "its own"),)
    return RowLosses("run", 7, "00", files, rows, worst)


def test_losses_are_those_of_a_file_or_of_the_files_below_a_directory(tmp_path: Path) -> None:
    data, blobs = tmp_path / "data", tmp_path / "blobs"
    (data / "more").mkdir(parents=True)
    blobs.mkdir()
    plain, linked, changed = data / "a.jsonl", data / "more" / "b.jsonl", data / "c.jsonl"
    for path in (plain, blobs / "0af1", changed):
        path.write_text("one\ntwo\n", encoding="utf-8")
    # As a dataset of the Hub is kept.
    linked.symlink_to(blobs / "0af1")
    found = record(plain, linked, changed)
    os.utime(plain, (1, 1))
    changed.write_text("one\n2.0\n", encoding="utf-8")
    assert {place: loss.loss for place, loss in found.of_data(data).items()} == {
        FileLine("a.jsonl", 1): 0.5,
        FileLine("a.jsonl", 2): 1.5,
        FileLine("b.jsonl", 1): 0.5,
        FileLine("b.jsonl", 2): 1.5,
    }
    assert {place.file for place in found.of_data(linked)} == {"b.jsonl"}
    assert found.of_data(changed) == found.of_data(tmp_path / "dat") == {}


def test_files_of_one_name_have_no_losses_of_their_own(tmp_path: Path) -> None:
    paths = [tmp_path / name / "rows.jsonl" for name in ("first", "second")]
    for path in paths:
        path.parent.mkdir()
        path.write_text("one\ntwo\n", encoding="utf-8")
    found = record(*paths)
    assert found.of_data(paths[0]) == found.of_data(tmp_path) == {}


@cases(
    "change",
    [
        {"version": 2},
        {"files": 1},
        {"rows": {"a.jsonl": [[1, "high", 3]]}},
        {"worst": [{"file": "a.jsonl", "line": 1}]},
    ],
)
def test_foreign_records_are_none(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("one\ntwo\n", encoding="utf-8")
    run, kept = Run(tmp_path / "run"), asdict(record(path))
    (run.path / "trace").mkdir(parents=True, exist_ok=True)
    (run.path / "trace" / "row_losses.json").write_text(json.dumps(kept), encoding="utf-8")
    assert read_losses(run) == record(path)
    (run.path / "trace" / "row_losses.json").write_text(json.dumps({**kept, **change}), encoding="utf-8")
    assert read_losses(run) is None


def test_a_review_is_not_written_through_a_link(tmp_path: Path) -> None:
    run, review = Run(tmp_path / "run"), RowReview(frozenset({FileLine("a.jsonl", 3)}), {"/a-corrected": "/a"})
    run.path.mkdir()
    write_review(run, review)
    assert read_review(run) == review
    elsewhere = (run.path / "trace").rename(tmp_path / "elsewhere")
    (run.path / "trace").symlink_to(elsewhere)
    before = (elsewhere / "row_review.json").read_bytes()
    with pytest.raises(UserError, match="it is a link"):
        write_review(run, RowReview())
    assert (elsewhere / "row_review.json").read_bytes() == before
