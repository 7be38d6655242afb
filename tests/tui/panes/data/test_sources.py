"""Sources in the data pane: everything that can be opened, and the form's syntax of columns and weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from core.config.document import parse_value
from core.config.schema import find_option
from tests.core.data.sample_files import json_lines, pairs, write, write_parquet
from tui.datasets.view import DatasetView
from tui.widgets.forms.option_field import format_value


def view(path: Path, *rows: dict[str, Any]) -> DatasetView:
    return DatasetView(write(path, json_lines(rows)))


def test_packed_files_directories_and_entries(tmp_path: Path) -> None:
    packed = write_parquet(tmp_path / "a.parquet", pairs(9))
    write(tmp_path / "set" / "train-1.jsonl", json_lines(pairs(9)))
    write(tmp_path / "set" / "test-1.jsonl", json_lines(pairs(2)))
    entry = {"file_name": "a.parquet", "columns": {"prompt": "prompt", "response": "completion"}}
    write(tmp_path / "dataset_info.json", json.dumps({"mine": entry}))
    for path in (packed, tmp_path / "set#train", tmp_path / "dataset_info.json#mine"):
        opened = DatasetView(path)
        opened.file.index()
        assert (opened.count, opened.format_name) == (9, "prompt and completion")
        assert [cell.cells for cell in opened.cells(range(1, 2))] == [("q1", "a1")]
        opened.close()


def test_tokens_pairs_labels_and_tools_are_shown(tmp_path: Path) -> None:
    tokens = view(tmp_path / "a.jsonl", {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]})
    assert [cell.cells for cell in tokens.cells(range(1))] == [("3 tokens, 2 of them learned",)]
    assert tokens.columns == ("tokens",)
    pair = view(tmp_path / "b.jsonl", {"prompt": "q", "chosen": "good", "rejected": "bad"})
    assert [(turn.role, turn.text) for turn in pair.turns(0)] == [("user", "q"), ("better", "good"), ("worse", "bad")]
    assert pair.columns == ("user", "better", "worse")
    assert [cell.cells for cell in pair.cells(range(1))] == [("q", "good", "bad")]
    labeled = view(tmp_path / "c.jsonl", {"prompt": "q", "completion": "a", "label": False})
    assert [(turn.role, turn.text) for turn in labeled.turns(0)][-1] == ("label", "bad")
    assert labeled.columns == ("label", "user", "assistant")
    assert [cell.cells for cell in labeled.cells(range(1))] == [("bad", "q", "a")]
    call = {"function": {"name": "look", "arguments": {"city": "Ulm"}}}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
    ]
    spoken = view(tmp_path / "d.jsonl", {"messages": messages, "tools": [{"name": "look"}]})
    assert [turn.role for turn in spoken.turns(0)] == ["tools", "user", "reasoning", "calls", "tool", "assistant"]
    for opened in (tokens, pair, labeled, spoken):
        opened.close()


@given(
    st.dictionaries(st.sampled_from(["user", "assistant", "system"]), st.text(min_size=1, max_size=9), min_size=1),
    st.lists(st.floats(1e-3, 1e3), min_size=1),
)
@example({"user": 'a"b\\c', "assistant": "\x7f\x85\u2028\t"}, [1e-3, 1000.0])
def test_columns_and_weights_are_written_as_they_are_typed(columns: dict[str, str], weights: list[float]) -> None:
    for name, value in (("data.columns", columns), ("data.weights", weights)):
        option = find_option(name)
        assert option is not None
        assert parse_value(option, format_value(value)) == value
