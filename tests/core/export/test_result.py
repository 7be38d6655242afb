from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from core import paths
from core.export.result import RECORD, Agreement, ExportedFile, ExportResult, Figures, list_exports, read_result
from tests.cases import cases, tables

SAME = Agreement(
    rows=20, prompts_equal=True, mean_kl=0.0, top1=1.0, max_delta=0.0, greedy_equal=20, reader="llama.cpp b1"
)


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
        agreement=SAME,
        notes=("One.",),
        seconds=2.5,
        created=100.0,
    )
    return replace(result, **values)


def write_result(result: ExportResult) -> None:
    result.path.mkdir(parents=True)
    (result.path / RECORD).write_text(json.dumps(result.to_dict()))


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    result = make_result(tmp_path / "export", step=120)
    write_result(result)
    assert read_result(tmp_path / "export") == result
    (tmp_path / "export").rename(tmp_path / "moved")
    assert read_result(tmp_path / "moved") == replace(result, path=tmp_path / "moved")
    fields = result.to_dict()
    assert (fields["bytes"], fields["verified"]) == (15, True)
    assert {"rows", "mean_kl", "top1", "greedy_equal"} <= set(fields["agreement"])


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


@cases(("changes", "quants", "failures"), tables(__file__)["each_missed_bar_is_reported_with_its_figure"])
def test_each_missed_bar_is_reported_with_its_figure(
    tmp_path: Path, changes: dict[str, Any], quants: str, failures: list[str]
) -> None:
    for quant in quants.split():
        agreement = replace(SAME, **changes)
        found = agreement.failures(quant)  # type: ignore[arg-type]
        assert len(found) == len(failures)
        assert all(said.startswith(wanted) for said, wanted in zip(found, failures, strict=True))
        assert make_result(tmp_path, agreement=agreement, quant=quant).verified is (not failures)
    assert not make_result(tmp_path, agreement=None).verified


def test_on_a_base_in_4_bits_the_bars_are_for_what_was_merged() -> None:
    apart = Figures(mean_kl=0.05, top1=0.9, max_delta=1.5, error=0.01)
    equal = Figures(mean_kl=0.0, top1=1.0, max_delta=0.001, error=0.0)
    trained = replace(SAME, mean_kl=0.05, top1=0.9, max_delta=1.5, error=0.01, quantized_base=True)
    assert replace(trained, plain=equal).failures("F32") == []
    assert replace(trained, plain=replace(apart, max_delta=2.0)).failures("F32") != []
    dequantized = replace(SAME, error=0.0, quantized_base=True, plain=apart)
    assert dequantized.failures("F32") == [], "merged into the very weights of the training"
    assert trained.failures("F32") == [], "the base in 16 bits did not fit: nothing can be said"
    assert "no bars" in replace(SAME, arithmetic="bf16").notes[0]
    assert "without bars" in trained.notes[0]


def test_what_rounding_costs_is_held_against_what_was_learned() -> None:
    assert SAME.notes == []
    rounded = replace(SAME, mean_kl=0.5, learned_kl=0.02, error=0.2)
    assert "changes more than training did (0.02 nats)" in rounded.notes[0]
    assert replace(rounded, learned_kl=3.0).notes == []
    assert "rows that were trained on" in replace(SAME, data="training").notes[0]


def test_an_agreement_is_kept_as_json_by_any_version(tmp_path: Path) -> None:
    full = replace(SAME, plain=Figures(0.1, 0.9, 1.0, 0.01), base_kl=1.0, data="eval")
    data = json.loads(json.dumps(make_result(tmp_path, agreement=full).to_dict()))
    of_later = data["agreement"] | {"of a later version": 1}
    assert ExportResult.from_dict(data | {"agreement": of_later}).agreement == full
    names = ("rows", "prompts_equal", "mean_kl", "top1", "max_delta", "greedy_equal", "reader")
    old = ExportResult.from_dict(data | {"agreement": {name: data["agreement"][name] for name in names}}).agreement
    assert old is not None
    assert old.plain is None
