"""Fixtures of the panes' tests."""

from __future__ import annotations

import pytest

from tests.tui.resting import read_often


@pytest.fixture(autouse=True)
def _news_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes to the files of a run appear at once."""
    read_often(monkeypatch)
