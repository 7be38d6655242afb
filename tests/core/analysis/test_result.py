"""Analysis of messy data: every row accounted for, every problem found and no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.analysis.job import analyze
from core.analysis.result import AnalysisRequest
from core.errors import UserError
from core.template.settings import MaskSettings
from tests.cases import cases
from tests.core.analysis.rows import row, rows_of


def write(path: Path, rows: list[dict[str, Any] | str]) -> Path:
    path.write_text("".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in rows))
    return path


CLEAN: list[dict[str, Any] | str] = [
    row("How do I reset the router in the hall?", "Hold the button for ten seconds."),
    row("Which paper does the printer take?", "Plain A4, from the lower tray."),
    row("When is the canteen open on Fridays?", "From eleven until two."),
]


def test_clean_rows_have_no_problems(tmp_path: Path) -> None:
    analysis = analyze(AnalysisRequest((str(write(tmp_path / "clean.jsonl", CLEAN)),)))
    assert (analysis.rows, analysis.used, analysis.dropped) == (3, 3, {})
    assert analysis.problems == () or list(analysis.problems) == []
    assert analysis.lengths is None


def test_every_row_is_used_or_dropped_for_a_reason(tmp_path: Path) -> None:
    rows: list[dict[str, Any] | str] = [
        *CLEAN,
        "not json",
        row("Nobody answered this.", "   "),
        {"messages": [{"role": "user", "content": "The last word is mine."}]},
        {"other": 1},
    ]
    analysis = analyze(AnalysisRequest((str(write(tmp_path / "messy.jsonl", rows)),)))
    assert analysis.rows == 7
    assert analysis.rows == analysis.used + sum(analysis.dropped.values())
    assert analysis.dropped["not_json"] == analysis.dropped["empty_answer"] == analysis.dropped["no_answer"] == 1
    assert rows_of(analysis, "not_json") == [3]


@cases(
    ("code", "bad"),
    [
        ("email", row("Write to jane.doe@posteo.de please.", "I have done so, she will call.")),
        ("control_characters", row("A bell \x07 in the text.", "It rings when it is printed.")),
        (
            "encoding_damage",
            row("The caf\u00c3\u00a9 is closed and the men\u00c3\u00bc gone.", "A pity for all of us."),
        ),
    ],
)
def test_a_problem_is_found_in_its_row_and_nowhere_else(tmp_path: Path, code: str, bad: dict[str, Any]) -> None:
    analysis = analyze(AnalysisRequest((str(write(tmp_path / "rows.jsonl", [*CLEAN, bad])),)))
    assert rows_of(analysis, code) == [3]
    problem = analysis.problem(code)
    assert problem is not None
    assert problem.count == 1


def test_copies_are_found_also_between_train_and_eval(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [*CLEAN, CLEAN[0]])
    held_out = write(tmp_path / "eval.jsonl", [CLEAN[1], row("What is the guest password?", "Ask at the desk.")])
    analysis = analyze(AnalysisRequest((str(train),), (str(held_out),)))
    assert rows_of(analysis, "duplicate") == [3]
    assert rows_of(analysis, "leaked") == [1]


def test_tokens_are_counted_as_training_counts_them(tmp_path: Path, tiny_model_dir: Path) -> None:
    from transformers import AutoTokenizer

    data = write(tmp_path / "clean.jsonl", CLEAN)
    analysis = analyze(AnalysisRequest((str(data),), masks=MaskSettings(str(tiny_model_dir))))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    lengths = sorted(
        len(
            tokenizer(tokenizer.apply_chat_template(item["messages"], tokenize=False), add_special_tokens=False)[
                "input_ids"
            ]
        )
        for item in CLEAN
        if isinstance(item, dict)
    )
    assert analysis.lengths is not None
    assert (analysis.lengths.min, analysis.lengths.max) == (lengths[0], lengths[-1])
    assert 0 < analysis.lengths.supervised_share < 1
    limited = analyze(AnalysisRequest((str(data),), masks=MaskSettings(str(tiny_model_dir), max_length=lengths[0])))
    assert limited.dropped["overlong"] == sum(length > lengths[0] for length in lengths)


def test_what_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        analyze(AnalysisRequest((str(tmp_path / "nowhere.jsonl"),)))
