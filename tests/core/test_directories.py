"""Directories that are whole or not there, and room for them."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from core.directories import disk_error, new_directory, require_space, whole_directory
from core.errors import UserError
from tests.cases import cases


def write(target: Path, name: str, text: str, error: Exception | None = None) -> None:
    with whole_directory(target) as directory:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
        if error is not None:
            raise error


def test_a_failed_write_leaves_nothing_and_the_former_content(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    write(target, "inner/a", "one")
    with pytest.raises(OSError, match="No space left"):
        write(target, "b", "half", OSError(28, "No space left on device"))
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert (target / "inner" / "a").read_text() == "one"
    modes = {path.stat().st_mode & 0o777 for path in (target, target / "inner" / "a")}
    assert modes == {0o700, 0o600}, "it is private"


@pytest.mark.parametrize("left", [".adapter.999.tmp", ".adapter.x.partial"])
def test_what_killed_processes_left_is_removed_and_the_former_content_replaced(tmp_path: Path, left: str) -> None:
    write(tmp_path / "adapter", "a", "one")
    (tmp_path / left).mkdir()
    (tmp_path / ".adapter.lock").touch()
    write(tmp_path / "adapter", "b", "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".adapter.lock", "adapter"]
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["b"]


@pytest.mark.parametrize("left", [".adapter.999.tmp", ".adapter.999.old.tmp", "adapter"])
def test_a_link_in_the_way_is_removed_and_what_it_leads_to_stays(tmp_path: Path, left: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("keep")
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / left).symlink_to(outside)
    write(directory / "adapter", "a", "one")
    assert [path.name for path in directory.iterdir()] == ["adapter"]
    assert not (directory / "adapter").is_symlink()
    assert (outside / "mine").read_text() == "keep"
    (directory / ".adapter.1.tmp").symlink_to("/nowhere")
    (directory / ".adapter.2.tmp").write_text("a file")
    write(directory / "adapter", "a", "two")
    assert [path.name for path in directory.iterdir()] == ["adapter"]


def test_a_disk_without_room_is_reported_with_what_needs_it(tmp_path: Path) -> None:
    require_space(tmp_path, 1, "a checkpoint")
    with pytest.raises(UserError, match=r"has .* free, and a checkpoint needs") as caught:
        require_space(tmp_path, 10**15, "a checkpoint", "Lower checkpoint.keep.")
    assert caught.value.hint == "Lower checkpoint.keep."


@cases(
    ("name", "error", "said"),
    [
        ("", OSError(errno.ENOSPC, "No space left on device"), "The disk that holds {place} is full."),
        ("", OSError(errno.EROFS, "Read-only file system"), "{place} cannot be written: Read-only file system."),
        ("none", OSError(errno.ENOENT, ""), "There is no directory {place}. Make it, or name another place."),
        (
            "",
            OSError(errno.ENOENT, "", "a.tmp"),
            "a.tmp is not there. If something has removed it meanwhile, do it",
        ),
        ("", OSError(errno.ENOENT, ""), "{place} cannot be written: a file that it needs is not there."),
    ],
)
def test_a_failed_write_is_reported_with_its_reason(tmp_path: Path, name: str, error: OSError, said: str) -> None:
    place = tmp_path / name
    assert said.format(place=place) in str(disk_error(place, error))


def make_new(target: Path, error: Exception | None = None) -> None:
    with new_directory(target) as directory:
        (directory / "a").write_text("one")
        if error is not None:
            raise error


def test_a_new_directory_never_takes_the_place_of_another(tmp_path: Path) -> None:
    make_new(tmp_path / "export")
    assert (tmp_path / "export" / "a").stat().st_mode & 0o777 == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    for name in ("export", "link", "file"):
        with pytest.raises(UserError, match=f"{name} is there already, and nothing is overwritten"):
            make_new(tmp_path / name)
    with pytest.raises(OSError, match="No space left"):
        make_new(tmp_path / "other", OSError(28, "No space left on device"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "file", "link"]


def test_what_comes_meanwhile_stays(tmp_path: Path) -> None:
    def make_late() -> None:
        with new_directory(tmp_path / "export") as directory:
            (directory / "a").write_text("ours")
            (tmp_path / "export").mkdir()

    with pytest.raises(UserError, match="is there already"):
        make_late()
    assert list((tmp_path / "export").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_what_a_killed_process_was_making_is_removed_and_what_a_live_one_makes_is_not(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from core.directories import new_directory\n"
        "with new_directory(pathlib.Path(sys.argv[1])) as d:\n"
        "    (d / 'half').write_text('half'); print('making', flush=True); sys.stdin.read()\n"
    )
    target = tmp_path / "export"
    command = [sys.executable, "-c", code, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"making\n"
        with pytest.raises(UserError, match="Another process is making"):
            make_new(target)
        process.kill()
    assert [path.name for path in tmp_path.iterdir()] == [f".export.{process.pid}.tmp"]
    make_new(target)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
