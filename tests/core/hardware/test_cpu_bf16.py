"""Which arithmetic a CPU does faster: a measurement that is kept, and the flags before there is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.hardware import cpu
from tests.cases import cases


@pytest.fixture(autouse=True)
def _here(private_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cpu_name", lambda: "A CPU")
    for name in cpu._LIMITING:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("flag", [True, False])
def test_flags_tell_while_nothing_was_measured(flag: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_bf16", lambda: flag)
    assert cpu.prefers_bf16() is flag
    assert not cpu.is_bf16_measured()


@cases(
    ("flag", "ratio", "faster"),
    [
        (True, 2.1, True),
        (True, 0.9, True),
        (True, 0.2, False),
        (False, 0.2, False),
        (False, 1.2, False),
        (False, 2.0, True),
    ],
)
def test_a_clear_measurement_decides_and_is_kept(
    flag: bool, ratio: float, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "has_bf16", lambda: flag)
    assert cpu.keep_bf16_measurement(ratio) is faster
    assert cpu.is_bf16_measured()
    assert cpu.prefers_bf16() is faster


def test_it_is_kept_for_one_cpu_with_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_bf16", lambda: True)
    cpu.keep_bf16_measurement(2.0)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert not cpu.is_bf16_measured()
    cpu.keep_bf16_measurement(0.2)
    assert not cpu.prefers_bf16()
    monkeypatch.delenv("ATEN_CPU_CAPABILITY")
    assert cpu.prefers_bf16()


@cases("content", ["", "[1]", '{"A CPU": "yes"}', "{" * 10_000])
def test_a_torn_or_foreign_file_counts_as_none(content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_bf16", lambda: True)
    cpu.keep_bf16_measurement(0.1)
    cpu._path().write_text(content, encoding="utf-8")
    assert cpu.prefers_bf16()
    cpu.keep_bf16_measurement(0.1)
    assert not cpu.prefers_bf16()


def test_a_home_that_cannot_be_written_is_no_obstacle(private_home: Path) -> None:
    private_home.mkdir(parents=True, exist_ok=True)
    (private_home / "calibration").write_text("in the way")
    assert cpu.keep_bf16_measurement(2.0)
