"""Verdicts on the processes of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from core.worker.supervise.verdict import Ended, Lost, Refused, Sign, judge
from tests.cases import cases

ROWS = yaml.safe_load(Path(__file__).with_name("verdicts.yaml").read_text())


@cases("row", ROWS)
def test_signs_of_life_make_the_verdict(row: dict[str, Any]) -> None:
    signs = [Sign(rank, **fields) for rank, fields in enumerate(row["signs"])]
    made = [kind(**row[name]) for name, kind in (("ended", Ended), ("refused", Refused), ("lost", Lost)) if name in row]
    assert judge(signs, 60.0, settled=row.get("settled", False)) == next(iter(made), None)
