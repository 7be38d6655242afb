"""Answers of a trained model that are kept between exports."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from core import paths
from core.runs.catalog.removal import remove_run
from core.runs.catalog.trained import find_trained
from core.runs.record.store import Run
from core.worker.export.verify import kept, reference
from core.worker.export.verify.compare import Proof
from tests.core.export.trained_run import make_trained_run, write_rows
from tests.progress import quiet


@pytest.fixture
def run(tmp_path: Path, tiny_model_dir: Path) -> Run:
    return make_trained_run(tiny_model_dir, write_rows(tmp_path / "rows.jsonl", 6))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A method for each time that a model was loaded."""
    loaded: list[str] = []
    load = reference._load

    def counted(trained: Any, base: Path, method: str, *more: Any) -> Any:
        loaded.append(method)
        return load(trained, base, method, *more)

    monkeypatch.setattr(reference, "_load", counted)
    return loaded


def measure(run: Run, directory: Path, rows: int = 3, base: str = "ab") -> Proof:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    return reference.measure_reference(find_trained(run), directory, rows, quiet, plain_base=True, base_sha256=base)


@contextmanager
def changed(path: Path, old: str, new: str) -> Iterator[None]:
    """A file with another text."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    yield
    path.write_text(text)


def test_only_the_same_question_has_the_kept_answers(run: Run, loads: list[str], tmp_path: Path) -> None:
    first = measure(run, tmp_path / "first")
    again = measure(run, tmp_path / "again")
    assert loads == ["lora"]
    assert (again.rows, again.greedy, again.arithmetic) == (first.rows, first.greedy, first.arithmetic)
    for name in ("trained.f32", "base.f16"):
        assert (first.directory / name).read_bytes() == (again.directory / name).read_bytes()
    with changed(run.adapter_path / "adapter_config.json", '"lora_alpha": ', '"lora_alpha": 1'):
        measure(run, tmp_path / "again")
    assert len(loads) == 2
    with changed(tmp_path / "rows.jsonl", "urgency", "haste"):
        measure(run, tmp_path / "again")
    assert len(loads) == 3
    measure(run, tmp_path / "again", rows=2)
    measure(run, tmp_path / "again", base="cd")
    assert len(loads) == 5


def test_few_are_kept_and_none_after_the_run_or_without_room(
    run: Run, loads: list[str], tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rows in (1, 2, 3):
        measure(run, tmp_path / "answers", rows)
    assert len(list(paths.answers_dir().iterdir())) == 2
    measure(run, tmp_path / "answers", 3)
    measure(run, tmp_path / "answers", 1)
    assert len(loads) == 4
    # A damaged set is measured again.
    for place in paths.answers_dir().iterdir():
        (place / "more").mkdir()
    measure(run, tmp_path / "answers", 1)
    assert len(loads) == 5
    assert not list((tmp_path / "answers").glob("more"))
    longer = paths.answers_dir() / f"{run.id}-2-{'a' * 32}"
    longer.mkdir()
    remove_run(run)
    assert list(paths.answers_dir().iterdir()) == [longer], "those of a run whose id begins as this one's stay"
    longer.rmdir()
    monkeypatch.setattr(kept, "free_bytes", lambda _path: 1)
    other = make_trained_run(tiny_model_dir, write_rows(tmp_path / "others.jsonl", 3))
    measure(other, tmp_path / "answers")
    assert not list(paths.answers_dir().iterdir())
