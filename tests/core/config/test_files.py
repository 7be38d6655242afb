"""Configurations as files: reading, saving and reading again changes nothing, and nobody's change is lost."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config.document import ConfigDocument
from core.config.files import KEPT, recent_configs, recent_path, remember_config
from core.errors import UserError
from core.paths import make_private_dir
from tests.cases import cases, tables
from tests.core.config.strategies import CHANGES
from tests.examples import examples
from tests.waiting import wait_for

TABLES = tables(__file__)

ROOT = Path(__file__).parents[3]

#: The same configuration as people write it.
STYLES = TABLES["styles"]


@cases("ends", ["\n", "\r\n"])
@cases("bom", ["", "\ufeff"])
@cases("style", STYLES)
def test_a_file_that_is_saved_as_it_was_read_is_the_same(tmp_path: Path, style: str, bom: str, ends: str) -> None:
    path = tmp_path / "my.toml"
    raw = (bom + STYLES[style].replace("\n", ends)).encode("utf-8")
    path.write_bytes(raw)
    document = ConfigDocument.load(path)
    before = document.validate()
    document.save()
    assert path.read_bytes() == raw
    assert ConfigDocument.load(path).validate() == before


@settings(max_examples=examples(60))
@given(st.sampled_from(sorted(STYLES)), st.sampled_from(["\n", "\r\n"]), CHANGES)
def test_an_edited_configuration_comes_back_equal_with_its_comments(
    tmp_path_factory: pytest.TempPathFactory, style: str, ends: str, changes: list[tuple[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("round") / "my.toml"
    text = STYLES[style]
    path.write_bytes(text.replace("\n", ends).encode("utf-8"))
    document = ConfigDocument.load(path)
    # The weights must go with the entries that this file happens to have.
    left_out = {"data.weights", *(["data.columns"] if style == "nested" else [])}
    wanted = {name: value for name, value in changes if name not in left_out}
    for name, value in wanted.items():
        document.set(name, value)
    before = document.validate()
    document.save()
    again = ConfigDocument.load(path)
    assert again.validate() == before
    assert {name: again.get(name) for name in wanted} == wanted
    assert again.dumps() == document.dumps()
    raw = path.read_bytes()
    assert (b"\r\n" in raw) == (ends == "\r\n")
    assert raw.count(b"\n") == (raw.count(b"\r\n") if ends == "\r\n" else raw.count(b"\n"))
    kept = [comment for comment in ("# top", "# d", "# between", "# e") if comment in text]
    assert all(comment in again.dumps() for comment in kept)
    # In the order in which they stood.
    assert sorted(kept, key=again.dumps().index) == sorted(kept, key=text.index)


def has_changed(document: ConfigDocument) -> bool:
    """Asked anew each time, which a type checker does not expect of a property."""
    return document.has_changed_on_disk


def test_a_file_that_something_else_has_changed_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(STYLES["sections"])
    document = ConfigDocument.load(path)
    assert not has_changed(document)
    document.set("train.epochs", 3)
    # The same bytes written again are no change.
    path.write_text(STYLES["sections"])
    assert not has_changed(document)
    path.write_text(STYLES["sections"] + "seed = 7\n")
    assert has_changed(document)
    with pytest.raises(UserError, match="was changed by another program"):
        document.save()
    assert path.read_text() == STYLES["sections"] + "seed = 7\n"
    # Elsewhere, knowingly, or where it is gone.
    document.save(tmp_path / "other.toml")
    assert document.path == tmp_path / "other.toml"
    document.save()
    document.save(path)
    assert "epochs = 3" in path.read_text()
    path.write_text("# mine\n")
    document.save(overwrite=True)
    assert "epochs = 3" in path.read_text()
    path.unlink()
    assert not has_changed(document)
    document.save()
    assert "epochs = 3" in path.read_text()


def test_permissions_and_links_stay(tmp_path: Path) -> None:
    real, link = tmp_path / "real.toml", tmp_path / "link.toml"
    real.write_text(STYLES["sections"])
    real.chmod(0o600)
    link.symlink_to(real)
    document = ConfigDocument.load(link)
    document.set("train.epochs", 3)
    document.save()
    assert link.is_symlink()
    assert "epochs = 3" in real.read_text()
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    with pytest.raises(UserError, match="no file yet"):
        ConfigDocument(STYLES["sections"]).save()
    ConfigDocument(STYLES["sections"]).save(tmp_path / "new.toml")
    assert stat.S_IMODE((tmp_path / "new.toml").stat().st_mode) == 0o644


def test_a_save_that_fails_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "my.toml"
    path.write_text(STYLES["sections"])
    for name in ("replace", "fsync"):
        document = ConfigDocument.load(path)
        document.set("train.epochs", 3)

        def fail(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(UserError, match="No space left on device"):
                document.save()
        assert path.read_text() == STYLES["sections"]
        assert os.listdir(tmp_path) == ["my.toml"]
        document.save()
        assert "epochs = 3" in path.read_text()
        path.write_text(STYLES["sections"])


#: Saves two configurations of different length in turn, for as long as it lives.
SAVER = """
import itertools, sys
from pathlib import Path
from core.config.document import ConfigDocument
path = Path(sys.argv[1])
for number in itertools.count():
    document = ConfigDocument.load(path)
    document.set("chat.system", "x" * (20_000 if number % 2 else 10))
    document.save()
    if number == 3:
        print("saving", flush=True)
"""


@cases("round_", range(4))
def test_a_save_that_is_killed_leaves_a_whole_file(tmp_path: Path, round_: int) -> None:
    path = tmp_path / "my.toml"
    path.write_text(STYLES["sections"])
    saver = subprocess.Popen([sys.executable, "-c", SAVER, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert saver.stdout is not None
    assert saver.stdout.readline() == b"saving\n"
    first = path.stat().st_ino
    # Looked at more or less often, so that the kill meets one part of a save or another.
    wait_for(lambda: path.stat().st_ino != first, 20, "another save", interval=0.0007 * (round_ + 1))
    saver.send_signal(signal.SIGKILL)
    saver.wait()
    saver.stdout.close()
    config = ConfigDocument.load(path).validate()
    assert len(config.chat.system) in (10, 20_000)
    assert config.train.epochs == 2.0


def test_the_last_one_is_first_and_each_is_there_once(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.toml", "b.toml", "ü \n.toml")]
    for path in paths:
        path.touch()
        remember_config(path)
    remember_config(paths[0])
    assert recent_configs() == [paths[0], paths[2], paths[1]]
    paths[2].unlink()
    assert recent_configs() == [paths[0], paths[1]]
    assert recent_path().stat().st_mode & 0o077 == 0
    for number in range(KEPT + 5):
        (tmp_path / f"{number}.toml").touch()
        remember_config(tmp_path / f"{number}.toml")
    assert len(recent_configs()) == KEPT
    assert recent_configs()[0].name == f"{KEPT + 4}.toml"


#: Names that no configuration can have.
NO_NAMES = [f"/{'x' * 5000}", "/\ud800.toml", "/dev/null", "/", 1, None, "x", "/\0"]


@cases("text", ["{", "3", "[" * 100_000, "\xff", "[]", json.dumps(NO_NAMES)])
def test_a_broken_list_is_an_empty_one(text: str, tmp_path: Path) -> None:
    make_private_dir(recent_path().parent)
    recent_path().write_text(text, encoding="latin-1")
    assert recent_configs() == []
    (tmp_path / "a.toml").touch()
    remember_config(tmp_path / "a.toml")
    assert recent_configs() == [tmp_path / "a.toml"]


def test_a_list_that_is_no_file_or_cannot_be_written_is_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recent_path().parent.mkdir(parents=True)
    # Reading a named pipe would wait for ever.
    os.mkfifo(recent_path())
    assert recent_configs() == []
    recent_path().unlink()
    recent_path().symlink_to("/dev/zero")
    assert recent_configs() == []
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path / "file" / "home"))
    remember_config(tmp_path / "file")
    assert recent_configs() == []
