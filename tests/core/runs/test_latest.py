"""Newest similar run of a configuration."""

from __future__ import annotations

from pathlib import Path

from core.runs.catalog.earlier import newest_like
from core.runs.record.store import Run


def make(home: Path, identity: str, model: str, epochs: float = 1.0) -> Run:
    path = home / "runs" / identity
    path.mkdir(parents=True)
    (path / "run.toml").write_text(f'[model]\nbase = "{model}"\n[train]\nepochs = {epochs}\n')
    return Run(path)


def test_the_name_goes_before_the_model_and_the_newest_before_others(home: Path) -> None:
    make(home, "20260101-000000-tickets", "m", 1.0)
    named = make(home, "20260102-000000-tickets-2", "m", 2.0)
    make(home, "20260103-000000-other", "m", 3.0)
    alike = make(home, "20260104-000000-tickets-too", "m", 4.0)
    found = newest_like("Tickets", "m")
    assert found is not None
    assert found.run == named
    assert found.values["train.epochs"] == 2.0
    by_model = newest_like("nothing", "m")
    assert by_model is not None
    assert by_model.run == alike
    assert newest_like("nothing", "n") is None


def test_what_cannot_be_read_is_passed_over(home: Path) -> None:
    assert newest_like("tickets", "m") is None
    good = make(home, "20260101-000000-tickets", "m")
    broken = make(home, "20260102-000000-tickets", "m")
    broken.config_path.write_text("= 3")
    found = newest_like("tickets", "m")
    assert found is not None
    assert found.run == good
