"""Steps, shares and weights that are known because the rows can be counted."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.analysis.division import held_out_rows, repeats
from core.importers import data_files
from core.importers.data_files import Part, read_splits
from tests.cases import cases
from tests.core.data.sample_files import json_lines, write
from tests.core.importers.helpers import carry, comment, entry, loaded, setting
from tests.core.importers.test_axolotl import BASE as AXOLOTL
from tests.core.importers.test_llama_factory import BASE as LLAMA_FACTORY

ENTRY = "datasets: [{path: a.jsonl, type: alpaca}]\nmicro_batch_size: 4\n"


def questions(count: int) -> str:
    return json_lines([{"instruction": f"q{number}", "input": "", "output": "a"} for number in range(count)])


@pytest.fixture
def hundred(tmp_path: Path) -> Path:
    """A directory with a file of a hundred rows."""
    write(tmp_path / "a.jsonl", questions(100))
    return tmp_path


@cases(
    ("text", "name", "value"),
    [
        ("saves_per_epoch: 1", "checkpoint.every_steps", 25),
        ("saves_per_epoch: 2", "checkpoint.every_steps", 13),
        ("saves_per_epoch: 1000", "checkpoint.every_steps", 1),
        ("saves_per_epoch: 0", "checkpoint.every_steps", None),
        ("saves_per_epoch: -2", "checkpoint.every_steps", None),
        ("saves_per_epoch: 1.0e-320", "checkpoint.every_steps", None),
        ("saves_per_epoch: 1.0e-320\nmax_steps: 9", "checkpoint.every_steps", None),
        ("save_steps: 0.5\nnum_epochs: 1.0e+308", "checkpoint.every_steps", None),
        ("save_strategy: epoch", "checkpoint.every_steps", 25),
        ("save_strategy: epoch\nsave_steps: 7", "checkpoint.every_steps", 25),
        ("save_strategy: steps\nsave_steps: 7", "checkpoint.every_steps", 7),
        ("save_strategy: no", "checkpoint.every_steps", None),
        ("save_steps: 0.1\nnum_epochs: 2", "checkpoint.every_steps", 5),
        # A share of the steps that there are, whatever an epoch has.
        ("saves_per_epoch: 2\nnum_epochs: 3\nmax_steps: 60", "checkpoint.every_steps", 10),
        ("evals_per_epoch: 4\nval_set_size: 0.2", "eval.every_steps", 5),
        ("evals_per_epoch: 4\nval_set_size: 20", "eval.every_steps", 5),
        ("eval_strategy: epoch\nval_set_size: 0.2", "eval.every_steps", 20),
        ("evals_per_epoch: 4", "eval.every_steps", None),
        ("evals_per_epoch: 0\nval_set_size: 0.2", "eval.every_steps", None),
        ("val_set_size: 20", "data.eval_share", 0.2),
        ("val_set_size: 80", "data.eval_share", 0.5),
    ],
)
def test_axolotl(hundred: Path, text: str, name: str, value: Any) -> None:
    imported = carry(hundred, f"{AXOLOTL}{ENTRY}{text}\n")
    assert setting(imported, name) == value
    loaded(hundred, imported)


def test_the_comment_says_from_what(hundred: Path) -> None:
    imported = carry(hundred, f"{AXOLOTL}{ENTRY}saves_per_epoch: 2\nval_set_size: 10\n")
    assert comment(imported, "checkpoint.every_steps") == "2 times in an epoch of 90 rows / batch size 4 = 23 steps."
    assert comment(imported, "data.eval_share").startswith("10 of 100 rows;")
    assert entry(imported, "saves_per_epoch")[0] == entry(imported, "val_set_size")[0] == "changed"


@cases("path", ["gone.jsonl", "org/far", "broken.jsonl", "."])
def test_rows_that_cannot_be_counted_leave_the_keys_listed(tmp_path: Path, path: str) -> None:
    write(tmp_path / "broken.jsonl", "")
    text = f"{AXOLOTL}datasets: [{{path: {path}, type: alpaca}}]\nsaves_per_epoch: 2\nval_set_size: 10\n"
    imported = carry(tmp_path, text)
    for key in ("saves_per_epoch", "val_set_size"):
        assert entry(imported, key)[0] == "unsupported"
    assert setting(imported, "checkpoint.every_steps") is None
    assert setting(imported, "data.eval_share") is None


def test_large_files_are_not_counted(hundred: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_files, "COUNTED_BYTES", 100)
    assert entry(carry(hundred, f"{AXOLOTL}{ENTRY}saves_per_epoch: 2\n"), "saves_per_epoch")[0] == "unsupported"


def test_packed_files_are_counted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = gzip.compress(questions(40).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    text = ENTRY.replace("a.jsonl", "a.jsonl.gz")
    imported = carry(tmp_path, f"{AXOLOTL}{text}saves_per_epoch: 1\n")
    assert setting(imported, "checkpoint.every_steps") == 10
    # What has to be unpacked first takes longer than its size says.
    monkeypatch.setattr(data_files, "COUNTED_BYTES", 2 * len(packed))
    assert entry(carry(tmp_path, f"{AXOLOTL}{text}saves_per_epoch: 1\n"), "saves_per_epoch")[0] == "unsupported"


@cases(("rows", "wanted"), [(7, 3), (97, 1), (97, 13), (1000, 333)])
def test_a_number_of_rows_is_that_number(tmp_path: Path, rows: int, wanted: int) -> None:
    write(tmp_path / "a.jsonl", questions(rows))
    share = setting(carry(tmp_path, f"{AXOLOTL}{ENTRY}val_set_size: {wanted}\n"), "data.eval_share")
    assert len(held_out_rows([str(number).encode() for number in range(rows)], share, 42)) == wanted


# LLaMA-Factory.


def registry(directory: Path, **counts: int) -> None:
    known: dict[str, Any] = {}
    for name, count in counts.items():
        write(directory / "data" / f"{name}.jsonl", questions(count))
        known[name] = {"file_name": f"{name}.jsonl"}
    known["capped"] = {"file_name": "one.jsonl", "num_samples": 10}
    write(directory / "data" / "dataset_info.json", json.dumps(known))


@cases(
    ("text", "name", "value"),
    [
        ("dataset: one\nsave_strategy: epoch", "checkpoint.every_steps", 12),
        ("dataset: capped\nsave_strategy: epoch", "checkpoint.every_steps", 2),
        ("dataset: one,two\nsave_strategy: epoch\nmax_samples: 40", "checkpoint.every_steps", 8),
        ("dataset: one\nval_size: 25\neval_strategy: epoch", "eval.every_steps", 9),
        ("dataset: one\nval_size: 25", "data.eval_share", 0.263),
        ("dataset: one\nval_size: 0.1\neval_on_start: true", "eval.baseline", True),
        ("dataset: one\neval_on_start: true", "eval.baseline", None),
        ("dataset: one\nmax_samples: 40", "data.weights", [0.421]),
        ("dataset: one\nmax_samples: 95", "data.weights", None),
        ("dataset: one,two\nmax_samples: 40", "data.weights", [0.421, 1.0]),
        ("dataset: far\nmax_samples: 40", "data.weights", None),
        ("dataset: one,two\nmix_strategy: concat", "data.weights", None),
        ("dataset: one,two\nmix_strategy: interleave_under", "data.weights", [0.211, 1.0]),
        ("dataset: one,two\nmix_strategy: interleave_over", "data.weights", [1.0, 4.75]),
        ("dataset: one,two\nmix_strategy: interleave_under\ninterleave_probs: 0.5,0.5", "data.weights", [0.211, 1.0]),
        ("dataset: one,two\nmix_strategy: interleave_under\ninterleave_probs: '0.9'", "data.weights", None),
        ("dataset: one,two\ninterleave_probs: 0.5,0.5", "data.weights", None),
        ("dataset: one,two\nmix_strategy: interleave_over\ninterleave_probs: 1e-320,1", "data.weights", None),
        ("dataset: one\nuse_cpu: true", "hardware.device", "cpu"),
        ("dataset: one\nuse_cpu: false", "hardware.device", None),
        ("dataset: one\nmax_steps: 30\nnum_train_epochs: 2", "train.epochs", None),
        ("dataset: one\nsplit_special_tokens: true", "data.special_tokens", None),
        ("dataset: one", "data.special_tokens", "keep"),
    ],
)
def test_llama_factory(tmp_path: Path, text: str, name: str, value: Any) -> None:
    registry(tmp_path, one=95, two=20)
    imported = carry(tmp_path, f"{LLAMA_FACTORY}{text}\n")
    assert setting(imported, name) == value
    assert {line.partition(":")[0] for line in text.splitlines()} <= {
        said.key for said in [*imported.carried, *imported.changed, *imported.unsupported]
    }
    loaded(tmp_path, imported)


def test_so_many_rows_are_used_in_an_epoch(tmp_path: Path) -> None:
    registry(tmp_path, one=997, two=20)
    weights = setting(carry(tmp_path, f"{LLAMA_FACTORY}dataset: one,two\nmax_samples: 313\n"), "data.weights")
    used = [
        sum(repeats([b"%d" % number for number in range(rows)], weight, 1))
        for rows, weight in zip((997, 20), weights, strict=True)
    ]
    assert used == [313, 20]


# What the rules say of the result.


def test_the_rules_speak_in_the_report(hundred: Path) -> None:
    imported = carry(hundred, f"{AXOLOTL}{ENTRY}lora_dropout: 0.6\nsave_steps: 500\n")
    assert any("method.dropout is 0.6" in remark for remark in imported.remarks)
    assert any("checkpoint.every_steps is 500, and the run has 25" in remark for remark in imported.remarks)
    assert imported.to_dict()["remarks"] == imported.remarks
    assert not carry(hundred, f"{AXOLOTL}{ENTRY}").remarks


def test_a_number_of_steps_counts_alone(hundred: Path) -> None:
    imported = carry(hundred, f"{AXOLOTL}{ENTRY}num_epochs: 3\nmax_steps: 10\n")
    assert (setting(imported, "train.epochs"), setting(imported, "train.max_steps")) == (None, 10)
    assert entry(imported, "num_epochs")[0] == "carried"
    assert not imported.remarks


@cases(
    ("text", "parts"),
    [
        ("", [Part("")]),
        ("train", [Part("train")]),
        ("train+test", [Part("train"), Part("test")]),
        ("train[:10%]", [Part("train", 0, 10, True)]),
        ("train[5%:10%] + test[3:]", [Part("train", 5, 10, True), Part("test", 3)]),
        ("train[-100:]", [Part("train", -100)]),
        ("train[:]", [Part("train")]),
    ],
)
def test_what_is_read(text: str, parts: list[Part]) -> None:
    assert read_splits(text) == parts


@cases("text", ["train[", "train[5]", "train[:5%:2]", "train[a:b]", "train]", "train[5%:10]"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="train"):
        read_splits(text)


@cases(
    ("text", "rows", "share"),
    [
        ("t[:10%]", None, 0.1),
        ("t[90%:]", None, 0.1),
        ("t[-10%:]", None, 0.1),
        ("t[:30]", 120, 0.25),
        ("t[:300]", 120, 1.0),
        ("t[-30:]", 120, 0.25),
        ("t[:30]", None, None),
    ],
)
def test_a_part_of_a_split_is_a_share_of_its_rows(text: str, rows: int | None, share: float | None) -> None:
    (part,) = read_splits(text)
    assert part.share(rows) == share
    assert not part.is_whole


@given(st.text("trains[]%:+-0123456789 ", max_size=14))
def test_any_text_is_parts_or_none(text: str) -> None:
    try:
        parts = read_splits(text)
    except ValueError:
        return
    assert len(parts) == text.count("+") + 1
    assert all(part.share(10) is None or 0 <= (part.share(10) or 0) <= 1 for part in parts)
