"""Socket paths that other users cannot tamper with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.runs.record import store as sockets
from tests.cases import cases


@cases(("mode", "private"), [(0o700, True), (0o500, True), (0o750, False), (0o701, False), (0o777, False)])
def test_a_directory_is_private_when_it_is_nobody_elses(tmp_path: Path, mode: int, private: bool) -> None:
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(mode)
    assert sockets.is_private(place) is private
    (tmp_path / "link").symlink_to(place)
    assert not sockets.is_private(tmp_path / "link")
    assert not sockets.is_private(tmp_path / "none")
    if os.getuid() == 0:
        os.chown(place, 65534, 65534)
        assert not sockets.is_private(place)


def test_a_run_directory_that_others_may_write_to_holds_no_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    inside = tmp_path / "run" / "s"
    assert sockets.private_socket_path(inside) == inside
    inside.parent.chmod(0o777)
    made = sockets.private_socket_path(inside)
    assert made.parent != inside.parent
    assert sockets.is_private(made.parent)
    assert made.parent in sockets.made_directories()
    made.parent.rmdir()


def test_where_no_directory_can_be_made_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_socket_places", lambda: [tmp_path / ("x" * 90)])
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    with pytest.raises(PermissionError, match="not this user's alone"):
        sockets.private_socket_path(tmp_path / "run" / "s")
