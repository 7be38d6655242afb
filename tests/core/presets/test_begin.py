from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.analysis.division import held_out_count
from core.config.document import ConfigDocument
from core.config.schema import Config
from core.presets import begin
from core.presets.begin import FEWEST_ROWS, MOST_HELD_OUT, held_out_of, hold_out
from core.presets.begin import begin as begin_with
from core.presets.choose import Choice
from core.presets.library import presets
from tests.cases import cases

CHOICE = Choice(presets()["cpu-small"], None, "", 40.0)


def config(directory: Path, rows: list[dict[str, Any]], data: str = "") -> Config:
    """A configuration with these rows."""
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ConfigDocument(f'[data]\ntrain = "rows.jsonl"\n{data}', directory / "c.toml").validate()


def texts(count: int) -> list[dict[str, Any]]:
    return [{"text": f"row {number}"} for number in range(count)]


@given(st.integers(FEWEST_ROWS, 10**9))
def test_never_more_rows_than_are_worth_measuring(rows: int) -> None:
    found = hold_out(rows)
    assert found is not None
    assert 0 < found.share <= 0.1
    assert len(f"{found.share:.12f}".strip("0.").rstrip("0")) <= 3, "it is read by people"
    assert found.rows == held_out_count(rows, found.share) <= MOST_HELD_OUT
    assert found.rows >= min(0.1 * rows - 1, 0.97 * MOST_HELD_OUT)
    assert hold_out(FEWEST_ROWS - 1) is None


def test_what_the_configuration_says_itself_stays(tmp_path: Path) -> None:
    rows = texts(100)
    found = held_out_of(config(tmp_path, rows), CHOICE)
    assert found is not None
    assert found.rows == 10
    assert held_out_of(config(tmp_path, rows, 'eval = "rows.jsonl"'), CHOICE) is None
    assert held_out_of(config(tmp_path, rows, "eval_share = 0.0"), CHOICE) is None


@cases(
    ("rows", "row_tokens", "more", "interval", "probe", "baseline"),
    [
        (100, 40.0, "", None, False, True),
        (100, 40.0, "[eval]\nprobe = true\n", None, True, True),
        (100, 40.0, "[train]\nepochs = 30\n", 10.0, True, True),
        (1000, 200.0, "", None, True, True),
        (1000, 200.0, "[train]\nepochs = 3\n", 1.0, True, True),
        (1000, 200.0, "[eval]\nprobe = false\nsamples = 0\n", 0.5, True, True),
        (1000, 200.0, "[eval]\nprobe = false\nsamples = 0\nbaseline = false\n", 0.5, True, False),
        (9000, 200.0, "", 0.25, True, True),
        (9000, 200.0, "[eval]\nexact_match = true\n", 0.5, True, False),
        (9000, None, "", 0.25, True, True),
    ],
)
def test_evaluations_take_a_tenth_of_the_time_at_most(
    tmp_path: Path, rows: int, row_tokens: float | None, more: str, interval: float | None, probe: bool, baseline: bool
) -> None:
    found = held_out_of(config(tmp_path, texts(rows), more), replace(CHOICE, row_tokens=row_tokens))
    assert found is not None
    assert found.every_epochs == interval
    assert ("eval.every_epochs" in found.values) == (interval is not None)
    assert found.values.get("eval.probe", True) is probe
    assert found.values.get("eval.baseline", False) is baseline
    assert found.notes.keys() == found.values.keys()


def test_rows_that_are_all_the_same_or_cannot_be_read_are_not_divided(tmp_path: Path) -> None:
    assert held_out_of(config(tmp_path, [{"text": "again"}] * 100), CHOICE) is None
    found = config(tmp_path, texts(100))
    (tmp_path / "rows.jsonl").unlink()
    assert held_out_of(found, CHOICE) is None


def test_the_beginning_of_a_new_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[Config] = []

    def lengths(rows: Config) -> list[int]:
        looked_at.append(rows)
        return [40]

    monkeypatch.setattr(begin, "sample_lengths", lengths)
    found = config(tmp_path, texts(60))
    beginning = begin_with(found, None)
    assert beginning.choice.preset.name == "cpu-small"
    assert "no row sampled is longer than 512 tokens" in beginning.choice.why
    assert beginning.held_out is not None
    assert beginning.held_out.values == {"data.eval_share": 0.1, "eval.baseline": True, "eval.probe": False}
    assert looked_at == [found]


def test_pairs_are_trained_as_pairs_unless_the_configuration_names_an_objective(tmp_path: Path) -> None:
    pairs = [{"prompt": f"q {number}", "chosen": "a", "rejected": "b"} for number in range(4)]
    values = begin_with(config(tmp_path, pairs), None).choice.preset.values
    assert (values["train.objective"], values["train.learning_rate"]) == ("dpo", 5e-5)
    named = begin_with(config(tmp_path, pairs, '[train]\nobjective = "orpo"\n'), None).choice.preset.values
    assert named["train.objective"] == "orpo"
