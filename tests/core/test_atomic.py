from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from core.atomic import fsync_dir, fsync_file, write_atomic
from tests.cases import cases


def test_a_file_is_written_whole_private_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()
    assert path.stat().st_mode & 0o777 == 0o600
    write_atomic(path, b"\xff", mode=0o644, durable=False)
    assert path.read_bytes() == b"\xff"
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["file"]


def test_a_reader_never_sees_half_of_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = {bytes([65 + number]) * 200_000 for number in range(2)}
    write_atomic(path, min(contents), durable=False)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for content in contents:
                write_atomic(path, content, durable=False)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        seen = {path.read_bytes() for _ in range(300)}
    finally:
        stop.set()
        thread.join()
    assert seen <= contents


@cases("function", ["replace", "fsync", "fchmod"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_is_written_is_made_durable_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def watch(name: str) -> None:
        real = getattr(os, name)

        def watched(*args: Any) -> None:
            calls.append(name)
            real(*args)

        monkeypatch.setattr(os, name, watched)

    watch("fsync")
    watch("replace")
    write_atomic(tmp_path / "file", "x")
    assert calls == ["fsync", "replace", "fsync"]
    fsync_file(tmp_path / "file")
    fsync_dir(tmp_path)
    assert calls[3:] == ["fsync", "fsync"]


@pytest.mark.parametrize("link", [False, True])
def test_a_pipe_or_a_directory_is_never_replaced(link: bool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    for name in ("pipe", "directory"):
        path = tmp_path / name
        if link:
            path = tmp_path / f"to-{name}"
            path.symlink_to(name)
        with pytest.raises(OSError, match="it is a"):
            write_atomic(path, "x")
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "directory").is_dir()
    assert len(os.listdir(tmp_path)) == (4 if link else 2)
