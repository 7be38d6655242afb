from __future__ import annotations

import os
import socket
from pathlib import Path

import yaml

from core.data.files.source import open_source
from tests.cases import cases
from tests.core.data.sample_files import descriptors, refusal, write
from tests.unprivileged import unprivileged

CASES = yaml.safe_load(Path(__file__).with_name("sources.yaml").read_text(encoding="utf-8"))


@cases(("name", "content", "want"), CASES["read"])
def test_files_are_recognized(tmp_path: Path, name: str, content: str, want: dict[str, object]) -> None:
    source = open_source(write(tmp_path / name, content.encode("latin-1")))
    os.close(source.descriptor)
    found = source if source.layout is None else source.layout
    assert {key: getattr(found, key) for key in want} == want


@cases(("name", "content", "part"), CASES["refused"])
def test_refuses_what_is_not_read(tmp_path: Path, name: str, content: str, part: str) -> None:
    assert part in refusal(write(tmp_path / name, content.encode("latin-1"))).message
    assert descriptors(tmp_path) == []


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    assert "There is no file at" in refusal(tmp_path / "absent.jsonl").message
    write(tmp_path / "set" / "b.jsonl", "x")
    (tmp_path / "set" / "a.jsonl").symlink_to(tmp_path)
    assert "is a directory, not a data file" in refusal(tmp_path / "set").message
    assert "There is no file at" in refusal(write(tmp_path / "file", "x") / "below.jsonl").message
    loop = tmp_path / "loop.jsonl"
    loop.symlink_to(loop)
    assert "leads back to itself" in refusal(loop).message
    assert "cannot be read" in refusal(tmp_path / ("x" * 5000)).message
    assert "cannot be read" in refusal(Path("nul\0.jsonl")).message
    assert "\x1b" not in str(refusal(Path("/tmp/\x1b]52;c;eA==\x07.jsonl")))


def test_a_pipe_a_socket_and_a_device_are_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    assert "is a named pipe" in refusal(pipe).message
    assert "is a device" in refusal(Path("/dev/zero")).message
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        assert "is a socket" in refusal(tmp_path / "s").message


def test_no_permission(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "{}")
    path.chmod(0)
    with unprivileged():
        assert "may not be read by you" in refusal(path).message
