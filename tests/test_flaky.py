from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cases import cases

CONFTEST = "from tests.flaky import pytest_addoption, pytest_configure\n"
#: Fails when it runs for the first time.
FLAKY = """
def test_flaky_{number}():
    seen = pathlib.Path("seen-{number}")
    if not seen.exists():
        seen.touch()
        raise ValueError("came too late")
"""
BROKEN = "def test_broken(): assert False\n"


@pytest.mark.long
@cases("flaky, broken, code", [(3, False, 0), (4, False, 1), (1, True, 1)])
def test_a_failed_test_runs_once_more_after_all_others(tmp_path: Path, flaky: int, broken: bool, code: int) -> None:
    text = "import pathlib\n" + "".join(FLAKY.format(number=number) for number in range(flaky)) + BROKEN * broken
    (tmp_path / "test_some.py").write_text(text)
    (tmp_path / "conftest.py").write_text(CONFTEST)

    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-n1", "--rerun-failed", "test_some.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )

    assert ended.returncode == code, ended.stdout
    listed = ended.stdout[ended.stdout.index("flaky:") :]
    assert [f"test_flaky_{number}: failed, then passed alone" in listed for number in range(flaky)] == [True] * flaky
    assert listed.count("came too late") >= flaky
    assert "test_broken: failed" not in listed
