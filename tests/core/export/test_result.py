from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from core import paths
from core.export.agreement import Agreement
from core.export.result import RECORD, ExportedFile, ExportResult, list_exports, read_result
from tests.cases import cases

GOOD = Agreement(20, True, 1e-5, 0.999, 0.02, 20, "llama.cpp b1")


def make_result(path: Path, **values: Any) -> ExportResult:
    result = ExportResult(
        path=path,
        kind="gguf",
        quant="F16",
        run="20261126-120000-tickets",
        step=None,
        base="smollm2-135m-instruct",
        base_sha256="sha256:ab",
        merged_from="quantized",
        files=(ExportedFile("a.gguf", 10, "ab"), ExportedFile("README.md", 5, "cd")),
        agreement=GOOD,
        notes=("One.",),
        seconds=2.5,
        created=100.0,
    )
    return dataclasses.replace(result, **values)


def write_result(result: ExportResult) -> None:
    result.path.mkdir(parents=True)
    (result.path / RECORD).write_text(json.dumps(result.to_dict()))


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    result = make_result(tmp_path / "export", step=120)
    write_result(result)
    assert read_result(tmp_path / "export") == result
    (tmp_path / "export").rename(tmp_path / "moved")
    assert read_result(tmp_path / "moved") == dataclasses.replace(result, path=tmp_path / "moved")
    fields = result.to_dict()
    assert (fields["bytes"], fields["verified"]) == (15, True)
    assert {"rows", "mean_kl", "top1", "greedy_equal"} <= set(fields["agreement"])


def test_it_is_verified_where_it_was_compared_and_reaches_the_bars(tmp_path: Path) -> None:
    assert make_result(tmp_path).verified
    assert not make_result(tmp_path, agreement=None).verified
    assert not make_result(tmp_path, agreement=dataclasses.replace(GOOD, mean_kl=0.5)).verified


@cases("text", ["", "[]", "{}", '{"version": 2}', "[" * 10_000, '{"version": 1, "kind": "onnx"}'])
def test_a_record_that_makes_no_sense_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD).write_text(text)
    assert read_result(tmp_path) is None


def test_the_exports_of_the_home_are_listed_newest_first() -> None:
    assert list_exports() == []
    for number, run in enumerate(["one", "two", "one"]):
        write_result(make_result(paths.exports_dir() / f"{run}-{number}", run=run, created=float(number)))
    write_result(make_result(paths.exports_dir() / ".half.7.tmp"))
    assert [export.path.name for export in list_exports()] == ["one-2", "two-1", "one-0"]
    assert [export.path.name for export in list_exports("one")] == ["one-2", "one-0"]
