"""Fixtures: machines behind a fake ``ssh``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.core.launch.nodes.fake_ssh import FakeSsh


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSsh:
    return FakeSsh(tmp_path / "fake-ssh", monkeypatch)
