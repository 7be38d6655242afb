"""Hashes of the files that rows come from."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from core.config.schema import Config
from core.data.registries import data_files
from core.data.registries.resolve import DataHashes


def test_who_waits_for_the_hashes_can_be_stopped_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, read = tmp_path / "rows.jsonl", threading.Event()
    rows.write_text("{}\n")

    def hash_slowly(path: Path) -> str:
        read.wait()
        return f"the hash of {path.name}"

    def stop() -> None:
        raise InterruptedError("stopped")

    monkeypatch.setattr(data_files, "hash_file", hash_slowly)
    hashes = DataHashes(Config.model_validate({"data": {"train": str(rows)}}).data)
    with pytest.raises(InterruptedError):
        hashes.settle(stop)
    read.set()
    hashes.settle()
    assert hashes.found == {str(rows): "the hash of rows.jsonl"}
