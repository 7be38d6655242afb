from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from tests.unprivileged import unprivileged


def test_permissions_hold_inside_for_the_thread_its_threads_and_its_programs(tmp_path: Path) -> None:
    closed, sealed = tmp_path / "closed", tmp_path / "sealed"
    closed.write_text("text")
    closed.chmod(0)
    sealed.mkdir(mode=0o500)
    refused = []

    def read() -> None:
        with pytest.raises(PermissionError):
            closed.read_text()
        refused.append(threading.get_ident())

    with unprivileged():
        read()
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
        assert len(set(refused)) == 2
        assert not os.access(sealed, os.W_OK)
        with pytest.raises(PermissionError):
            (sealed / "new").touch()
        ended = subprocess.run(["cat", closed], capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stdout) == (1, "")
        # What is its own is still so.
        (tmp_path / "new").touch()
        sealed.chmod(0o700)
        (sealed / "new").touch()


def test_all_is_as_before_afterwards(tmp_path: Path) -> None:
    status = Path("/proc/thread-self/status").read_text()
    before = [line for line in status.splitlines() if line.startswith("Cap")]
    with pytest.raises(ZeroDivisionError), unprivileged():
        _ = 1 / 0
    assert set(before) <= set(Path("/proc/thread-self/status").read_text().splitlines())
    closed = tmp_path / "closed"
    closed.write_text("text")
    closed.chmod(0)
    ended = subprocess.run(["cat", closed], capture_output=True, text=True, check=False)
    assert ended.stdout == ("text" if os.geteuid() == 0 else "")
