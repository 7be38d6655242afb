from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config.choices import FORMATS, ROLES, ColumnRole
from core.data.conversation import Example, RowError
from core.data.files.rows import Row
from core.data.formats.detect import (
    MOST_NAMES,
    Detection,
    UnreadColumns,
    choose,
    count_names,
    describe_columns,
    detect,
    find_parts,
    row_example,
)
from core.data.formats.mapping import ColumnMap, UnknownColumnsError
from core.errors import UserError
from tests.cases import cases
from tests.core.data.registries.test_axolotl import axolotl
from tests.core.data.registries.test_resolve import entry
from tests.examples import examples

CASES = yaml.safe_load(Path(__file__).with_name("columns.yaml").read_text(encoding="utf-8"))

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def test_a_missing_column_is_named() -> None:
    columns = ColumnMap({"user": "q", "assistant": "a"})
    with pytest.raises(RowError, match="no column 'a'"):
        row_example(Row(0, 1, {"q": "x"}), "prompt_completion", columns)


@cases(("columns", "part"), CASES["no row"])
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


@cases(("data", "columns"), CASES["headless"])
def test_a_first_line_that_looks_like_a_record_is_asked_about(data: dict[str, Any], columns: str) -> None:
    for wanted in ("auto", "alpaca"):
        with pytest.raises(UnknownColumnsError) as caught:
            choose([Row(0, 2, data)] * 2, wanted, "my.csv")
        assert ("first line of my.csv looks like a record" in caught.value.message) == bool(columns)
        assert not columns or f"(--columns {columns})" in caught.value.hint


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


@cases("data", CASES["parts"])
def test_the_parts_that_a_format_reads_are_the_columns_for_the_same_example(data: dict[str, Any]) -> None:
    row = Row(0, 1, data)
    found = detect([row])
    columns = ColumnMap(find_parts(data, found.format))  # type: ignore[arg-type]
    assert row_example(row, columns.format, columns) == found.example(row)
    assert not any(find_parts({"a": 1, "b": None}, name) for name in FORMATS)


SYSTEM = {"role": "system", "content": "s"}
TOOL = {"name": "look", "parameters": {}}


def example_of(detection: Detection, data: dict[str, Any]) -> Example | str:
    """The example of a row, or the code of the reason why there is none."""
    try:
        return detection.example(Row(0, 1, data))
    except RowError as error:
        return error.code


def unread(detection: Detection, data: dict[str, Any]) -> list[str]:
    return UnreadColumns(detection).of(data)


@cases(("data", "names"), CASES["unread"])
def test_columns_that_are_not_read_are_named(data: dict[str, Any], names: list[str]) -> None:
    """And they alone could be left out without another result."""
    detection = detect([Row(0, 1, data)])
    assert sorted(unread(detection, data)) == names
    whole = example_of(detection, data)
    assert isinstance(whole, Example)
    for column in data:
        without = {name: value for name, value in data.items() if name != column}
        assert (example_of(detection, without) == whole) == (column in names), column


@cases(("columns", "data", "names"), CASES["beside named"])
def test_columns_beside_those_that_are_named(columns: dict[Any, str], data: dict[str, Any], names: list[str]) -> None:
    detection = choose([Row(0, 1, data)], "auto", "x", ColumnMap(columns))
    assert sorted(unread(detection, data)) == names


def test_columns_beside_those_of_registries(tmp_path: Path) -> None:
    rows = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "human": 1, "tools": "x"}
    llama = entry(tmp_path, {"file_name": "rows.jsonl", "formatting": "sharegpt"}, rows)
    assert unread(llama.detect(llama.rows()), rows) == ["human", "tools"]
    chat = axolotl(tmp_path, {"type": "chat_template", "field_system": "sys"}, {"messages": [USER, ANSWER]})
    detection = chat.detect(chat.rows())
    data = {"messages": [SYSTEM, USER, ANSWER], "sys": "s", "tools": [TOOL], "system": "t", "date": "today"}
    assert unread(detection, data) == ["system", "date"]


def test_columns_that_hold_nothing_are_not_named() -> None:
    values: list[Any] = [None, "", " \n", [], {}, 0, False, [None]]
    data = {"text": "t", **dict(zip("abcdefgh", values, strict=True))}
    assert unread(detect([Row(0, 1, data)]), data) == ["f", "g", "h"]


def test_an_unread_context_is_named_with_the_mapping_that_reads_it() -> None:
    data = {"question": "q", "answer": "a", "context": "c", "id": 3}
    for context, line in (("c", ', context = "context"}'), (["c"], ""), ({"c": 1}, "")):
        rows = [Row(0, 1, data | {"context": context})]
        told = detect(rows).describe_unread(["id", "context"], rows)
        assert told.startswith("context, id")
        assert line in told
        assert ("under the question" in told) == bool(line)
    assert detect(rows).describe_unread(["id"], rows) == "id"


def test_rows_that_each_have_other_columns_take_bounded_memory() -> None:
    found = UnreadColumns(detect([Row(0, 1, {"text": "t"})]))
    counts: Counter[str] = Counter()
    for number in range(3 * MOST_NAMES):
        names = found.of({"text": "t", f"column {number}" + "x" * 10_000: 1, "same": 2})
        count_names(counts, dict.fromkeys(names, 1))
    assert len(counts) == MOST_NAMES
    assert counts["same"] == 3 * MOST_NAMES
    assert max(map(len, counts)) == 80
    assert len(describe_columns(counts)) < 600
    assert describe_columns(counts).endswith("and at least 988 more")


@cases(("rows", "asked"), CASES["question beside a text"])
def test_a_question_beside_a_text_is_asked_about(rows: list[dict[str, Any]], asked: str) -> None:
    """Neither the answers alone are learned nor is the text taken for the answer."""
    found = [Row(number, number + 1, data) for number, data in enumerate(rows)]
    with pytest.raises(UnknownColumnsError, match=f"^x has {asked} beside text") as caught:
        detect(found, "x")
    hint = caught.value.hint
    assert f'data.columns = {{user = "{asked}", assistant = "text"}}' in hint
    assert f"--columns user={asked},assistant=text" in hint
    assert 'data.columns = {text = "text"}' in hint
    named = choose(found, "auto", "x", ColumnMap({"text": "text"}))
    assert [named.example(row).text for row in found] == [data["text"] for data in rows]
    assert choose(found, "text", "x").format == "text"


@cases(("data", "format_"), CASES["detected"])
def test_a_text_beside_columns_that_ask_nothing(data: dict[str, Any], format_: str) -> None:
    assert detect([Row(0, 1, data)]).format == format_
