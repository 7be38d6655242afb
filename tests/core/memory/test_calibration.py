"""Calibrations: private files, of which only whole and plausible ones are used."""

from __future__ import annotations

import json
import stat
from dataclasses import asdict, replace

from core import paths
from core.memory.calibration import Calibration, read_calibration, write_calibration
from tests.cases import cases
from tests.core.runs.helpers import there

CARD = Calibration("NVIDIA GeForce RTX 4090", 431 << 20, 0.031, "2.13.0", "2026-01-31", 1.5e14, 8.5e11, 2.4e10)


def test_a_calibration_is_read_as_it_was_written_and_is_private() -> None:
    assert read_calibration(CARD.device) is None
    path = write_calibration(CARD)
    assert path == paths.calibration_dir() / "nvidia-geforce-rtx-4090.json"
    assert read_calibration(CARD.device) == CARD
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert read_calibration("NVIDIA GeForce RTX 3090") is None
    assert CARD.source == "measured on this device on 2026-01-31, with torch 2.13.0"


@cases("name", ["", "../../etc", "a/b", "…", "x" * 500])
def test_any_name_has_a_file_in_the_directory(name: str) -> None:
    path = write_calibration(Calibration(name, 1 << 20, 0.0, "2.13.0", "2026-01-31"))
    assert path.parent == paths.calibration_dir()
    assert there(read_calibration(name)).device == name


@cases(
    "changes",
    [
        *({"runtime_bytes": value} for value in (0, -1, 1 << 50, 1.5, True)),
        *({"fragmentation": value} for value in (-0.1, 0.9, float("nan"), "0.1")),
        *({"torch": None}, {"measured": 5}, {"device": "another"}, {"device": []}),
        *("", "{", "[]", "null", "[" * 100_000, '{"device": "\xff"}', " " * (1 << 20)),
    ],
)
def test_a_torn_or_foreign_file_or_one_with_an_implausible_value_is_ignored(changes: dict[str, object] | str) -> None:
    text = changes if isinstance(changes, str) else json.dumps(asdict(CARD) | changes)
    write_calibration(CARD).write_text(text, encoding="latin-1")
    assert read_calibration(CARD.device) is None


def test_an_implausible_rate_counts_as_not_measured() -> None:
    write_calibration(CARD).write_text(
        json.dumps(asdict(CARD) | {"matrix_rate": -1, "memory_rate": 0, "host_rate": "fast", "more": 1})
    )
    assert read_calibration(CARD.device) == replace(CARD, matrix_rate=None, memory_rate=None, host_rate=None)
