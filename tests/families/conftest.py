"""Fixtures of the families: a model of each, and trainings of it, each made once."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from core.chat.engine import ChatEngine
from core.config.schema import Config
from core.runs.record.store import Run
from tests.families import forked, tiny
from tests.families.page import read_cells
from tests.measured_here import measured_here

__all__ = ["measured_here"]

#: Answer of all rows, and the steps in which a tiny model learns it by heart.
ANSWER, STEPS = "urgency high", 20
_ASKED = ("ticket", "area", "login", "refund")
#: The most different families; all others take a long test.
FEW = ("llama", "qwen3_5", "gpt_oss")
#: Environment variable with the file that ``make models`` has the results written into.
RECORD = "LOCALTUNE_RECORD_FAMILIES"


@dataclass(frozen=True)
class Trained:
    """A family, with its training data.

    Args:
        name: Of the family.
        directory: Everything is in it.
    """

    name: str
    directory: Path

    @functools.cached_property
    def base(self) -> Path:
        """The model."""
        base = self.directory / "base"
        forked.call(tiny.write_family, self.name, base, log=self.directory / "write.log")
        return base

    @property
    def experts(self) -> dict[str, str]:
        """Options of the section ``method`` that put adapters on its experts."""
        return {"target_experts": "on"} if tiny.FAMILIES[self.name].experts else {}

    @property
    def home(self) -> Path:
        """The home of its runs."""
        return self.directory / "home"

    @functools.cached_property
    def config(self) -> Config:
        """A training of four short rows with one answer."""
        rows = self.directory / "rows.jsonl"
        with rows.open("w", encoding="utf-8") as file:
            for asked in _ASKED:
                turns = [{"role": "user", "content": f"the {asked}"}, {"role": "assistant", "content": ANSWER}]
                file.write(json.dumps({"messages": turns}) + "\n")
        return Config.model_validate(
            {
                "model": {"base": str(self.base)},
                "data": {"train": str(rows)},
                "method": {"name": "qlora", "rank": 8, "alpha": 16, "dropout": 0.05, **self.experts},
                "train": {
                    "max_steps": STEPS,
                    "batch_size": len(_ASKED),
                    "max_length": 64,
                    "learning_rate": 5e-3,
                    "scheduler": "linear",
                    "precision": "fp32",
                },
                "checkpoint": {"every_steps": 8},
                "hardware": {"device": "cpu"},
            }
        )

    @functools.cached_property
    def whole(self) -> Run:
        """A run that nothing disturbs."""
        run, code = forked.begin(self.config, self.home, "whole")
        assert code == 0, (run.state().reason, (run.path / "worker.log").read_text(errors="replace")[-4000:])
        return run

    def call(self, function: Any, *args: Any) -> Any:
        """The result of a function of :mod:`tests.families.looks` for the base."""
        number = len(list(self.directory.glob("look-*.log")))
        return forked.call(function, self.base, *args, log=self.directory / f"look-{number}.log")


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=() if name in FEW else pytest.mark.long) for name in tiny.FAMILIES],
)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A family; all tests of one follow each other, so that its model is made once."""
    return Trained(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatEngine]:
    """The engine of the chat, which loads one family after the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALTUNE_HOME", str(tmp_path_factory.mktemp("engine")))
        patch.setenv("OMP_NUM_THREADS", "1")
        made = ChatEngine()
        made.start()
    yield made
    made.close()


class Tried:
    """Compares a test's findings with the page, or records them for the next one.

    Args:
        family: The family.
        record: The file that it is added to; None where the page is to agree.
    """

    def __init__(self, family: str, record: Path | None) -> None:
        self._family = family
        self._record = record

    def __call__(self, column: str, found: str) -> None:
        """Record a finding.

        Args:
            column: Of the page's table.
            found: The text of its cell.
        """
        if self._record is not None:
            with self._record.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"family": self._family, "column": column, "cell": found}) + "\n")
            return
        told = read_cells().get(self._family, {}).get(column)
        assert told == found, f"docs/models.md says {told!r} of {self._family} under {column!r}; make models"


@pytest.fixture
def tried(trained: Trained) -> Tried:
    """Receiver of a test's findings."""
    return Tried(trained.name, Path(os.environ[RECORD]) if RECORD in os.environ else None)
