"""The account of a run below the list of runs."""

from __future__ import annotations

from tui.widgets.run_detail import _in_lines


def test_a_name_and_its_value_stay_together() -> None:
    facts = ["eval loss 0.722 → 0.480", "exact 0.83", "model SmolLM2-135M-Instruct", "data tickets.jsonl"]
    assert [line.plain for line in _in_lines(facts, 46)] == [
        "eval loss 0.722 → 0.480   exact 0.83",
        "model SmolLM2-135M-Instruct",
        "data tickets.jsonl",
    ]
    assert all(line.cell_length <= 12 for line in _in_lines(facts, 12))
