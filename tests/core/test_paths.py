from __future__ import annotations

import os
from pathlib import Path

import pytest

from core import paths
from core.errors import UserError
from tests.cases import cases
from tests.unprivileged import unprivileged


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCALTUNE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")


def test_directories_follow_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert paths.home() == Path("/home/me/.local/share/localtune")
    assert paths.config_dir() == Path("/home/me/.config/localtune")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/etc/me")
    assert paths.home() == Path("/data/localtune")
    assert paths.config_dir() == Path("/etc/me/localtune")
    monkeypatch.setenv("LOCALTUNE_HOME", "~/tuning")
    assert paths.home() == Path("/home/me/tuning")
    assert paths.runs_dir() == Path("/home/me/tuning/runs")
    assert paths.models_dir() == Path("/home/me/tuning/models")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCALTUNE_HOME", "here")
    assert paths.home() == tmp_path / "here"


def test_new_directories_are_private_and_old_ones_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    mask = os.umask(0)
    try:
        made = paths.make_private_dir(tmp_path / "a" / "b")
    finally:
        os.umask(mask)
    assert made == tmp_path / "a" / "b"
    assert {path.stat().st_mode & 0o777 for path in (made, made.parent)} == {0o700}
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert paths.make_private_dir(made) == made


def test_a_place_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(UserError) as caught:
            paths.make_private_dir(place)
        assert str(place) in caught.value.message
        assert "LOCALTUNE_HOME" in caught.value.hint


def test_a_directory_without_the_right_to_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with unprivileged(), pytest.raises(UserError, match="cannot be"):
        paths.make_private_dir(tmp_path / "new")
    with unprivileged(), pytest.raises(UserError, match="not a directory that can be written to"):
        paths.make_private_dir(tmp_path)


def test_a_path_in_the_home_is_shown_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.shown_path(tmp_path / "a" / "b") == "~/a/b"
    assert paths.shown_path(Path("/elsewhere/b")) == "/elsewhere/b"


@cases(
    ("written", "meant"),
    [("~/x", "/home/me/x"), ("~0", "~0"), ("~nobody-here/x", "~nobody-here/x"), ("~a\x00b", "~a\x00b"), ("x", "x")],
)
def test_a_path_as_users_write_it_never_raises(monkeypatch: pytest.MonkeyPatch, written: str, meant: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert paths.user_path(written) == Path(meant)


@cases("user_home", ["", "somewhere", "~"])
def test_a_home_of_the_user_that_is_no_place_is_a_sentence(user_home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", user_home)
    for place in (paths.home, paths.config_dir):
        with pytest.raises(UserError, match="HOME is"):
            place()
    monkeypatch.setenv("LOCALTUNE_HOME", "/elsewhere")
    assert paths.home() == Path("/elsewhere")


def test_a_deleted_working_directory_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert paths.working_directory() == here
    here.rmdir()
    assert paths.working_directory() == here
    monkeypatch.chdir(tmp_path)
    assert paths.working_directory() == tmp_path
