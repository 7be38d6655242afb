"""Files beneath a directory: no link, pipe, device or second name is opened, whatever part of a name it is."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from core.beneath import directory_beneath, open_beneath, write_beneath
from tests.cases import cases

APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A file outside of the directory."""
    path = tmp_path / "mine.json"
    path.write_text('{"keep": "this"}')
    return path


@pytest.fixture
def root(tmp_path: Path, mine: Path) -> Path:
    """A directory, with ``mine`` beside it."""
    path = tmp_path / "run"
    path.mkdir()
    return path


def test_a_new_file_is_private_and_is_appended_to(root: Path) -> None:
    (root / "inner").mkdir()
    for text in (b"one", b"two"):
        descriptor = open_beneath(root, "inner/a.log", APPEND)
        os.write(descriptor, text)
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)
    assert (root / "inner" / "a.log").read_bytes() == b"onetwo"
    assert (root / "inner" / "a.log").stat().st_mode & 0o777 == 0o600


def test_the_directory_itself_may_be_reached_through_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    os.close(open_beneath(tmp_path / "link", "a", APPEND))
    assert (root / "a").exists()


ODD: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "link": (lambda path, mine: path.symlink_to(mine), "it is a link"),
    "relative link": (lambda path, mine: path.symlink_to(f"../{mine.name}"), "it is a link"),
    "link to a file inside": (lambda path, _: path.symlink_to("sound"), "it is a link"),
    "dangling link": (lambda path, _: path.symlink_to("/nowhere/new"), "it is a link"),
    "hard link": (lambda path, mine: os.link(mine, path), "it is a hard link"),
    "pipe": (lambda path, _: os.mkfifo(path), "it is a named pipe"),
    "socket": (lambda path, _: _listen(path), "it is a socket"),
    "directory": (lambda path, _: path.mkdir(), "it is a directory"),
}


def _listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@cases("kind", ODD)
@cases("flags", [APPEND, os.O_RDWR, os.O_RDONLY, os.O_WRONLY])
def test_what_is_no_plain_file_is_refused_in_words(kind: str, flags: int) -> None:
    with tempfile.TemporaryDirectory(prefix="lt-") as short:
        root, mine = Path(short, "run"), Path(short, "mine")
        root.mkdir()
        (root / "sound").write_text("sound")
        mine.write_text("keep")
        make, reason = ODD[kind]
        make(root / "file", mine)
        descriptors = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match=reason) as caught:
            open_beneath(root, "file", flags)
        assert caught.value.filename == str(root / "file")
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert (mine.read_text(), (root / "sound").read_text()) == ("keep", "sound")
        assert not Path("/nowhere").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_a_device_is_refused_and_not_opened(root: Path) -> None:
    try:
        os.mknod(root / "null", 0o600 | 0o020000, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("not allowed in this container")
    with pytest.raises(OSError, match="it is a device"):
        open_beneath(root, "null", os.O_WRONLY)


@cases("depth", [1, 2, 3])
def test_a_link_in_any_part_of_a_name_is_refused(tmp_path: Path, depth: int) -> None:
    root, outside = tmp_path / "run", tmp_path / "outside"
    parts = ["a", "b", "c"]
    (outside / "/".join(parts[depth:])).mkdir(parents=True)
    where = root / "/".join(parts[: depth - 1])
    where.mkdir(parents=True, exist_ok=True)
    (where / parts[depth - 1]).symlink_to(outside)
    for refused in (
        lambda: os.close(open_beneath(root, "a/b/c/file", APPEND)),
        lambda: write_beneath(root, "a/b/c/file", "text"),
        lambda: directory_beneath(root, "a/b/c", make=True).__enter__(),
    ):
        with pytest.raises(OSError, match="it is a link"):
            refused()
    assert not [path for path in outside.rglob("*") if path.is_file()]


@cases("name", ["../mine.json", "/etc/passwd", "a/../../mine.json", "", "a//b", "./a"])
def test_a_name_that_leads_out_is_a_mistake(root: Path, name: str) -> None:
    with pytest.raises(ValueError, match="leads out"):
        open_beneath(root, name, os.O_RDONLY)


def test_a_directory_stays_the_same_when_its_name_becomes_a_link(root: Path, tmp_path: Path, mine: Path) -> None:
    (tmp_path / "outside").mkdir()
    with directory_beneath(root, "a", make=True) as opened:
        (root / "a").rename(root / "moved")
        (root / "a").symlink_to(tmp_path / "outside")
        (opened / "file").write_text("text")
    assert (root / "moved" / "file").read_text() == "text"
    assert not list((tmp_path / "outside").iterdir())
    assert (root / "moved").stat().st_mode & 0o777 == 0o700


def test_a_file_is_replaced_whole_and_a_link_of_its_name_with_it(root: Path, mine: Path) -> None:
    (root / "a").mkdir()
    (root / "a" / "file").symlink_to(mine)
    write_beneath(root, "a/file", "text")
    assert (root / "a" / "file").read_text() == "text"
    assert not (root / "a" / "file").is_symlink()
    assert mine.read_text() == '{"keep": "this"}'
    assert [path.name for path in (root / "a").iterdir()] == ["file"]


def test_what_is_missing_is_reported_with_its_path(root: Path) -> None:
    for name in ("none", "none/file"):
        with pytest.raises(FileNotFoundError) as caught:
            open_beneath(root, name, os.O_RDONLY)
        assert str(caught.value.filename) == str(root / "none")
