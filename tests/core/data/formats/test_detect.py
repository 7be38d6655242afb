from __future__ import annotations

import copy
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config.choices import FORMATS, Format, Objective
from core.data.conversation import RowError
from core.data.files.rows import Row
from core.data.formats.detect import choose, detect, refuse_untrainable, to_example
from core.data.formats.guess import mapping_line
from core.data.formats.mapping import ColumnMap, UnknownColumnsError
from core.errors import UserError
from tests.cases import cases
from tests.core.data.conversations import viewed
from tests.examples import examples

ROWS: dict[Format, list[dict[str, Any]]] = yaml.safe_load(
    Path(__file__).with_name("rows.yaml").read_text(encoding="utf-8")
)
COLUMNS = yaml.safe_load(Path(__file__).with_name("columns.yaml").read_text(encoding="utf-8"))


def rows(*data: dict[str, Any] | None) -> list[Row]:
    return [
        Row(index, index + 1, item, "" if item is not None else "The row is not JSON.", "" if item else "not_json")
        for index, item in enumerate(data)
    ]


@cases(("wanted", "case"), [(name, case) for name, found in ROWS.items() for case in found])
def test_rows_of_each_format(wanted: Format, case: dict[str, Any]) -> None:
    row, columns = case["row"], ColumnMap(case["columns"]) if "columns" in case else None
    before = copy.deepcopy(row)
    if "dropped" in case:
        with pytest.raises(RowError) as caught:
            to_example(row if columns is None else columns.apply(row), wanted)
        assert caught.value.code == case["dropped"]
        assert case.get("words", "") in caught.value.message
        assert caught.value.message.endswith(".")
    else:
        found = choose(rows(row), "auto", "f", columns)
        assert found.format == wanted
        assert viewed(found.example(rows(row)[0]), case["want"]) == case["want"]
    assert repr(row) == repr(before)


@cases(("row", "objective", "instead", "words"), COLUMNS["objectives"])
def test_an_objective_that_the_rows_do_not_fit_names_theirs(
    row: dict[str, Any], objective: Objective, instead: Objective, words: str
) -> None:
    detection = detect(rows(row))
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        refuse_untrainable(detection, "f.jsonl", objective)
    assert f"train.objective = {instead}" in caught.value.hint
    refuse_untrainable(detection, "f.jsonl", instead)


def test_what_most_rows_fit_wins() -> None:
    assert detect(rows({"text": "x"}, {"prompt": "q", "completion": "a"}, {"text": "y"})).format == "text"


def test_looks_at_the_first_rows_only() -> None:
    assert detect(Row(index, index + 1, {"text": "x"}) for index in itertools.count()).format == "text"


@cases(("data", "meant", "column", "mapping"), COLUMNS["near"])
def test_a_near_miss_is_named(data: dict[str, Any], meant: str, column: str, mapping: str) -> None:
    with pytest.raises(UserError) as caught:
        detect(rows(data), "my.jsonl")
    assert "my.jsonl" in caught.value.message
    assert column in caught.value.message
    assert caught.value.hint.startswith(
        f"Did you mean {meant}? Rename the column {column}, or set data.columns = {{{mapping}}}"
    )


@cases(("data", "wanted", "mapping"), COLUMNS["other names"])
def test_columns_are_recognized_under_other_names(
    data: dict[str, Any], wanted: Format, mapping: dict[str, str]
) -> None:
    found = detect(rows(data, {}, data))
    assert (found.format, found.parts) == (wanted, mapping)
    assert choose(rows(data), wanted).format == wanted
    assert choose(rows(data), "auto", "f", ColumnMap(mapping)).example(rows(data)[0]) == found.example(rows(data)[0])  # type: ignore[arg-type]


@cases(("data", "mapping"), COLUMNS["guesses"])
def test_a_hint_is_guessed_from_contents(data: list[dict[str, Any]], mapping: dict[str, str]) -> None:
    with pytest.raises(UnknownColumnsError) as caught:
        detect(rows(*data))
    assert caught.value.columns == mapping
    assert mapping_line(mapping) in caught.value.hint  # type: ignore[arg-type]
    # The line reads every row.
    found = choose(rows(*data), "auto", "f", ColumnMap(mapping))  # type: ignore[arg-type]
    assert all(found.example(row) for row in rows(*data))


@cases(("data", "words"), COLUMNS["no guess"])
def test_without_an_honest_guess_the_missing_column_is_named(data: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(UnknownColumnsError) as caught:
        detect(rows(*data))
    assert words in caught.value.hint
    assert not caught.value.columns


def test_a_mapping_is_written_as_a_whole_line() -> None:
    assert mapping_line({"user": "Frage 1", "text": "t"}).endswith('(--columns "user=Frage 1,text=t")')
    assert mapping_line({"text": 'a "b"\\, c'}) == r'data.columns = {text = "a \"b\"\\, c"}'


def test_unknown_columns_get_the_list_of_formats() -> None:
    with pytest.raises(UserError) as caught:
        detect(rows({"\x1b[2Jzzz": 1, "qqq": 2}))
    assert "\x1b" not in str(caught.value)
    assert all(name in caught.value.hint for name in FORMATS)


def test_no_readable_row_names_the_first_error() -> None:
    with pytest.raises(UserError, match="line 1: The row is not JSON"):
        detect(rows(None, None))
    with pytest.raises(UserError, match="no rows"):
        detect([])


def test_a_wanted_format_is_taken_or_refused() -> None:
    data = {"instruction": "q", "output": "a", "text": "t"}
    assert choose(rows(data)).format == "alpaca"
    assert choose(rows(data), "text").format == "text"
    with pytest.raises(UserError, match="sharegpt needs conversations"):
        choose(rows(data), "sharegpt", "f.jsonl")
    with pytest.raises(UserError, match="no format nope"):
        choose(rows(data), "nope")


_KEYS = st.sampled_from(
    [
        *("messages", "conversations", "role", "content", "from", "value", "type", "tool_calls", "system", "history"),
        *("chosen_messages", "rejected_messages", "loss_weight"),
        *("instruction", "input", "output", "prompt", "completion", "question", "answer", "text"),
    ]
)
_WORDS = st.sampled_from(["user", "assistant", "system", "human", "gpt", "text", "tool_call", "reasoning", ""])
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _WORDS | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS | st.text(max_size=6), inner, max_size=4),
    max_leaves=25,
)


@settings(max_examples=examples(300), deadline=None)
@given(st.dictionaries(_KEYS | st.text(max_size=9), _JSON, max_size=5), st.sampled_from(list(FORMATS)))
def test_any_object_is_an_example_or_an_error(data: dict[str, Any], format_: Format) -> None:
    example, code, hint = None, "", ""
    try:
        example = to_example(data, format_)
    except RowError as error:
        code = error.code
    assert (example is None) == bool(code)
    if example is not None:
        calls = example.messages and example.messages[-1].tool_calls
        assert example.text.strip() or example.answer.strip() or example.ids or calls
    try:
        detect(rows(data))
    except UserError as error:
        hint = error.hint
    assert hint or choose(rows(data)).format in FORMATS
