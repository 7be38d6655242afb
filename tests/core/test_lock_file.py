"""Lock files: one holder at a time, also on a file system without locks."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest

from core.errors import UserError
from core.lock_file import open_lock_file, try_lock_file
from tests.cases import cases

#: Holds the lock of a file until its standard input ends.
HOLDER = """
import fcntl, sys
with open(sys.argv[1], "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_it_is_free_again_when_its_holder_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "runner.lock"
    command = [sys.executable, "-S", "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert try_lock_file(path, needs_locks=True) is None
        assert try_lock_file(path, needs_locks=False) is None
        holder.kill()
    descriptor = try_lock_file(path, needs_locks=True)
    assert descriptor is not None
    os.close(descriptor)


def test_the_file_is_private_and_no_link_is_followed(tmp_path: Path) -> None:
    os.close(open_lock_file(tmp_path / "mine"))
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="link cannot be written"):
        open_lock_file(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


@cases(("code", "counts"), [(errno.ENOLCK, True), (errno.EOPNOTSUPP, True), (errno.EIO, False)])
def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, *, counts: bool
) -> None:
    monkeypatch.setattr("core.lock_file.fcntl.flock", Mock(side_effect=OSError(code, os.strerror(code))))
    for needs_locks in (True, False):
        with nullcontext() if counts and not needs_locks else pytest.raises(UserError, match="cannot be locked"):
            descriptor = try_lock_file(tmp_path / "lock", needs_locks=needs_locks)
            assert descriptor is not None
            os.close(descriptor)
