"""The configuration that is edited, with values of any size."""

from __future__ import annotations

from pathlib import Path

from core.config.document import ConfigDocument
from tests.cases import cases
from tui.panes.config.model import ConfigModel


@cases("option", ["train.batch_size", "train.epochs", "train.max_steps", "data.eval_share"])
@cases("value", ["1" + "0" * 400, "-1", "inf", "nan", "true", '"many"'])
def test_no_value_is_too_large_for_the_summary(tmp_path: Path, option: str, value: str) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n')
    document = ConfigDocument('data.train = "rows.jsonl"\n' + f"{option} = {value}\n", tmp_path / "mine.toml")
    model = ConfigModel(document)
    assert model.findings().problems
    assert "rows.jsonl" in model.summary({rows: 100})
    assert model.held_out(100) == 0
