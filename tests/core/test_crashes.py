"""Reports of mistakes: private, without secrets and without values of variables, and only so many of them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from core import crashes, paths
from core.crashes import KEPT, describe, reports, write_report

TOKEN = "hf_" + "q7Rk2LmX9" * 4


def fail(message: str) -> Exception:
    rows = ["somebody's row"] * 3
    try:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise RuntimeError(message) from error
    except RuntimeError as error:
        assert rows
        return error


def test_a_report_says_where_and_is_private() -> None:
    path = write_report(fail("it is negative"), {"terminal": "xterm, 80×24"})
    text = path.read_text()
    assert "RuntimeError: it is negative" in text
    assert "KeyError: 'inner'" in text
    assert "in fail" in text
    assert "terminal: xterm, 80×24" in text
    assert "somebody's row'] * 3" not in text.replace('["somebody\'s row"] * 3', "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.parent == paths.crashes_dir()


def test_secrets_and_controls_are_in_neither_report_nor_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "plain-but-secret")
    error = fail(f"{TOKEN} and plain-but-secret\x1b]0;title\x07")
    text = write_report(error, {"token": TOKEN}).read_text()
    for words in (text, describe(error)):
        assert TOKEN not in words
        assert "plain-but-secret" not in words
        assert not set("\x1b\x07") & set(words)
    assert "\n" not in describe(fail("two\nlines"))


def test_a_secret_at_the_end_of_what_is_kept_is_not_cut_in_halves() -> None:
    text = write_report(fail("x" * (crashes._LONGEST - 700) + f" {TOKEN}" * 100)).read_text()
    assert "hf_q7" not in text
    assert len(text) <= crashes._LONGEST + 1


def test_an_exception_without_words_is_reported_by_its_type() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert describe(MuteError()) == "MuteError"
    assert "MuteError" in write_report(MuteError()).read_text()


def test_only_so_many_are_kept(private_home: Path) -> None:
    for number in range(KEPT + 5):
        paths.make_private_dir(paths.crashes_dir())
        (paths.crashes_dir() / f"20240101-0000{number:02}-1.txt").write_text("old")
    newest = write_report(fail("new"))
    assert len(reports()) == KEPT
    assert reports()[0] == newest
