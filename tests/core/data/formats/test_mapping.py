from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config.choices import FORMATS, ROLES, ColumnRole
from core.data.conversation import Example, RowError
from core.data.files.rows import Row
from core.data.formats.detect import choose, detect, row_example
from core.data.formats.mapping import ColumnMap
from core.data.formats.shapes import find_parts
from core.errors import UserError
from tests.cases import cases
from tests.core.data.conversations import spoken
from tests.examples import examples


def read(columns: dict[ColumnRole, str], data: dict[str, Any]) -> Example:
    chosen = choose([Row(0, 1, data)], "auto", "f", ColumnMap(columns))
    return chosen.example(Row(0, 1, data))


def test_a_question_and_an_answer() -> None:
    data = {"q": "what", "a": "that", "s": "be brief", "c": "here", "h": [["q0", "a0"]], "completion": "not this"}
    columns: dict[ColumnRole, str] = {"user": "q", "assistant": "a", "system": "s", "context": "c", "history": "h"}
    assert spoken(read(columns, data)) == [
        ("system", "be brief"),
        ("user", "q0"),
        ("assistant", "a0"),
        ("user", "what\nhere"),
        ("assistant", "that"),
    ]
    assert spoken(read({"user": "q", "assistant": "a"}, data)) == [("user", "what"), ("assistant", "that")]


def test_what_is_optional_may_be_missing_and_the_rest_may_not() -> None:
    columns: dict[ColumnRole, str] = {"user": "q", "assistant": "a", "system": "s", "context": "c"}
    assert spoken(read(columns, {"q": "x", "a": "y"})) == [("user", "x"), ("assistant", "y")]
    with pytest.raises(RowError, match="no column 'a'") as caught:
        row_example(Row(0, 1, {"q": "x"}), "prompt_completion", ColumnMap(columns))
    assert caught.value.code == "wrong_keys"


def test_messages_with_names_of_their_own() -> None:
    dialog = [
        {"who": "Customer", "said": "hi"},
        {"who": "Agent", "said": "hello", "learn": False},
        {"who": "Visitor", "said": "bye"},
        {"who": "Agent", "said": "see you", "learn": True},
    ]
    columns: dict[ColumnRole, str] = {
        "messages": "dialog",
        "role": "who",
        "content": "said",
        "train": "learn",
        "user_role": "Customer, Visitor",
        "assistant_role": "Agent",
    }
    example = read(columns, {"dialog": dialog, "messages": "not these"})
    assert [(turn.role, turn.content, turn.train) for turn in example.messages] == [
        ("user", "hi", None),
        ("assistant", "hello", False),
        ("user", "bye", None),
        ("assistant", "see you", True),
    ]
    assert dialog[0] == {"who": "Customer", "said": "hi"}


def test_text_tokens_pairs_and_labels() -> None:
    assert read({"text": "body"}, {"body": "words"}).text == "words"
    assert list(read({"input_ids": "ids", "labels": "l"}, {"ids": [1, 2], "l": [-100, 2]}).labels or []) == [-100, 2]
    pair = read({"user": "q", "chosen": "good", "rejected": "bad"}, {"q": "x", "good": "y", "bad": "z"})
    assert (pair.answer, pair.rejected[0].content) == ("y", "z")
    labeled = read({"user": "q", "assistant": "a", "label": "ok"}, {"q": "x", "a": "y", "ok": False})
    assert labeled.label is False


@cases(
    ("columns", "part"),
    [
        ({}, "no column to learn from"),
        ({"user": "q"}, "no column to learn from"),
        ({"assistant": "a"}, "an answer and nothing that is asked"),
        ({"chosen": "a", "user": "q"}, "only one of chosen and rejected"),
        ({"role": "r", "user": "q", "assistant": "a"}, "no column of messages"),
        ({"usr": "q", "assistant": "a"}, "no part usr"),
    ],
)
def test_columns_that_make_no_row(columns: dict[Any, str], part: str) -> None:
    with pytest.raises(UserError) as caught:
        ColumnMap(columns)
    assert part in caught.value.message
    assert caught.value.hint


def test_a_column_that_no_row_has_is_refused_and_the_near_one_named() -> None:
    rows = [Row(0, 1, {"question": "x", "answr": "y"})]
    with pytest.raises(UserError) as caught:
        choose(rows, "auto", "my.csv", ColumnMap({"user": "question", "assistant": "answer"}))
    assert "my.csv has no column 'answer'" in caught.value.message
    assert caught.value.hint == "Did you mean answr?"


def test_the_format_may_not_contradict_the_columns() -> None:
    rows = [Row(0, 1, {"q": "x", "a": "y"})]
    columns = ColumnMap({"user": "q", "assistant": "a"})
    assert choose(rows, "alpaca", "f", columns).format == "prompt_completion"
    assert "user is q" in choose(rows, "auto", "f", columns).reason
    with pytest.raises(UserError, match=r"data\.format says text"):
        choose(rows, "text", "f", columns)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "role"]), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=examples(200), deadline=None)
@given(
    st.dictionaries(st.sampled_from(ROLES), st.sampled_from(["a", "b", "c"]), max_size=5),
    st.dictionaries(st.sampled_from(["a", "b", "c"]), _VALUES, max_size=3),
)
def test_any_columns_of_any_row_are_an_example_or_an_error(
    columns: dict[ColumnRole, str], data: dict[str, Any]
) -> None:
    refusal = ""
    try:
        mapped = ColumnMap(columns)
        row_example(Row(0, 1, data), mapped.format, mapped)
    except (UserError, RowError) as error:
        refusal = error.message
    assert not refusal or refusal.endswith(".")


@cases(
    "data",
    [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": []},
        {"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"instruction": "q", "input": "c", "output": "a", "system": "s", "history": [["q0", "a0"]]},
        {"question": "q", "answer": "a", "id": 3},
        {"text": "t", "labels": "x"},
        {"input_ids": [1, 2], "labels": [-100, 2]},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "completion": "a", "label": True},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "label": False},
    ],
)
def test_the_parts_that_a_format_reads_are_the_columns_for_the_same_example(data: dict[str, Any]) -> None:
    row = Row(0, 1, data)
    found = detect([row])
    columns = ColumnMap(find_parts(data, found.format))  # type: ignore[arg-type]
    assert row_example(row, columns.format, columns) == found.example(row)


def test_parts_of_a_row_that_has_none() -> None:
    for name in FORMATS:
        assert find_parts({"a": 1, "b": None}, name) == {}
