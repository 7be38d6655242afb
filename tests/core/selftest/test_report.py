from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from core.errors import UserError
from core.selftest import report as module
from core.selftest.report import Check, Report, report_text, table, without_names, write_report

DEVICE = {"kind": "cuda", "name": "NVIDIA GeForce RTX 4090", "capability": "8.9", "driver": "580.95.05"}
CHECKS = (
    Check("driver", "pass", "The same card by its UUID.", 3.21),
    Check("fast_paths", "not applicable", "No fast path is used on this device.", 0.0),
    Check("out_of_memory", "fail", "word " * 40, 12.0),
)


def made(*checks: Check) -> Report:
    return Report(dict(DEVICE), checks or CHECKS, datetime(2026, 1, 2, tzinfo=UTC))


def test_the_table_is_aligned_and_fits_the_width() -> None:
    for width in (60, 80, 200):
        lines = table(CHECKS, width)
        assert max(map(len, lines)) <= min(width, 120)
        assert lines[0].startswith("pass  driver")
        assert any(line.startswith("n/a   fast paths") for line in lines)
        assert any(line.startswith("FAIL  out of memory") for line in lines)
        columns = {lines[0].index("The same"), *(line.index("word") for line in lines if "word" in line)}
        assert len(columns) == 1
    assert table([], 80) == []


@pytest.fixture
def anna(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The home of a user with a name, on a machine with one."""
    home = tmp_path / "home" / "anna maria"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LOCALTUNE_HOME", str(home / "local tune"))
    monkeypatch.setenv("USER", "annamaria")
    monkeypatch.setenv("LOGNAME", "annamaria")
    monkeypatch.setattr(module, "hostname", lambda: "annas-tower.lan")
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdefghij")
    return home


def test_a_report_has_no_names_no_paths_and_no_secrets(anna: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-01234567-89ab-cdef-0123-456789abcdef")
    detail = (
        f"The model in {anna}/local tune/models/x cannot be loaded: 'file {anna}/secret project/a.bin' "
        "by annamaria on annas-tower.lan (annas-tower), /mnt/annas disk/b, ~/c, token hf_0123456789abcdefghij; "
        "120 tok/s, n/a, 3/4"
    )
    text = report_text(made(Check("training", "fail", detail, 1.0)))
    for word in ("anna", "maria", "tower", "local tune", "/mnt", "secret", "hf_0123", "cdef-0123"):
        assert word not in text, word
    assert "120 tok/s, n/a, 3/4" in " ".join(text.split())
    assert "NVIDIA GeForce RTX 4090, compute 8.9, driver 580.95.05" in text
    assert "Python 3." in text
    assert "CUDA_VISIBLE_DEVICES=GPU-<number>" in text


def test_words_that_look_a_little_like_paths_stay() -> None:
    for text in ("4 x 512 qlora: 1.2 GB (+3%)", "and/or", "https://pytorch.org/get", "forward/backward", "5 % / 3"):
        assert without_names(text) == text


def test_the_report_is_in_the_home_or_where_it_is_wanted(anna: Path, tmp_path: Path) -> None:
    assert write_report(made()) == anna / "local tune" / "selftest" / "report.txt"
    wanted = tmp_path / "report.txt"
    assert write_report(made(), wanted) == wanted
    assert wanted.read_text(encoding="utf-8") == report_text(made())
    with pytest.raises(UserError, match="cannot be written"):
        write_report(made(), tmp_path / "missing" / "report.txt")
