"""Axolotl dataset types: the rows of each after conversion, and unsupported ones refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from core.data.conversation import Example, RowError
from core.data.files.rows import Row
from core.data.formats.mapping import ColumnMap, TextFormat
from core.data.registries.axolotl import JOINED, PLAIN, REFUSED
from core.data.registries.axolotl_chat import plain_columns
from core.data.registries.resolve import single_source
from core.data.registries.source import DataSource
from core.errors import UserError
from tests.cases import cases
from tests.core.data.conversations import spoken
from tests.core.data.registries.test_resolve import examples
from tests.core.data.sample_files import json_lines, write


def axolotl(directory: Path, entry: dict[str, Any], *rows: dict[str, Any]) -> DataSource:
    """An entry of an Axolotl configuration beside ``rows.jsonl``."""
    write(directory / "rows.jsonl", json_lines(rows or [{}]))
    config = {"base_model": "x", "datasets": [{"path": "rows.jsonl", **entry}]}
    return single_source(f"{write(directory / 'config.yml', yaml.safe_dump(config))}#1")


def read(directory: Path, entry: dict[str, Any], row: dict[str, Any]) -> Example:
    return examples(axolotl(directory, entry, row))[0]


def dropped(directory: Path, entry: dict[str, Any], row: dict[str, Any]) -> RowError:
    with pytest.raises(RowError) as caught:
        read(directory, entry, row)
    return caught.value


def raw(example: Example) -> list[tuple[str, bool]]:
    return [(segment.text, segment.train) for segment in example.segments]


ALPACA = {"instruction": "do", "input": "it", "output": "a"}
ORCA = {"system_prompt": "s", "question": "q", "response": "a"}


INSTRUCTIONS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("alpaca", ALPACA, ["do\nit", "a"]),
    ("alpaca:chat", {**ALPACA, "input": ""}, ["do", "a"]),
    ("alpaca_instruct.load", ALPACA, ["do\nit", "a"]),
    ("alpaca_instruct.load_no_prompt", ALPACA, ["do\nit", "a"]),
    ("alpaca_chat", ALPACA, ["do\nit", "a"]),
    ("alpaca_chat.load_concise", ALPACA, ["do\nit", "a"]),
    ("alpaca_chat.load_no_prompt", ALPACA, ["do\nit", "a"]),
    ("alpaca_chat.load_qa", {"question": "q", "answer": "a"}, ["q", "a"]),
    ("alpaca_chat.load_camel_ai", {"message_1": "q", "message_2": "a"}, ["q", "a"]),
    ("alpaca_w_system", {**ALPACA, "system": "s"}, ["s", "do\nit", "a"]),
    ("alpaca_w_system.load_chat", {**ALPACA, "system": ""}, ["do\nit", "a"]),
    ("alpaca_w_system.load_instruct", ALPACA, ["do\nit", "a"]),
    ("alpaca_w_system.load_open_orca", ORCA, ["s", "q", "a"]),
    ("alpaca_w_system.load_open_orca_chatml", ORCA, ["s", "q", "a"]),
    ("orcamini", ORCA, ["s", "q", "a"]),
    ("gpteacher", {"instruction": "do", "input": "it", "response": "a"}, ["do\nit", "a"]),
    ("oasst", {"INSTRUCTION": "q", "RESPONSE": "a"}, ["q", "a"]),
    ("jeopardy", {"question": "q {x}", "category": "c", "answer": "a"}, ["q {x}\nc", "what is a"]),
    ("context_qa.load_v2", {"context": "c", "question": "q", "answer": "a"}, ["Context: c\nQuestion: q", "Answer: a"]),
    (
        "pygmalion",
        {
            "conversations": [
                {"role": "system", "value": " a cat \n<START>"},
                {"role": "human", "value": " q "},
                {"role": "bot", "value": "a\n"},
            ]
        },
        ["Persona: a cat", "q", "a"],
    ),
    (
        "llama2_chat",
        {
            "conversations": [
                {"from": who, "value": said} for who, said in [("gpt", "hi"), ("human", " q "), ("gpt", "a")]
            ]
        },
        ["q", "a"],
    ),
]


@cases(("kind", "row", "contents"), INSTRUCTIONS)
def test_instruction_types_become_conversations(
    tmp_path: Path, kind: str, row: dict[str, Any], contents: list[str]
) -> None:
    example = read(tmp_path, {"type": kind}, row)
    assert [message.content for message in example.messages] == contents
    assert [message.role for message in example.messages][-2:] == ["user", "assistant"]


def test_every_type_has_been_tried() -> None:
    tried = {kind.partition(":")[0].removesuffix(".load") for kind, _, _ in INSTRUCTIONS}
    assert tried == {*PLAIN, *JOINED, "pygmalion", "llama2_chat"}
    assert not tried & set(REFUSED)


def test_segments_are_learned_as_their_labels_say_without_a_template(tmp_path: Path) -> None:
    segments = [{"text": "<s>Hi", "label": False}, {"text": "there</s>", "label": True}, {"text": "", "label": False}]
    example = read(tmp_path, {"type": "input_output"}, {"segments": segments})
    assert raw(example) == [("<s>Hi", False), ("there</s>", True), ("", False)]
    assert (example.text, example.is_framed) == ("<s>Hithere</s>", False)
    for wrong, code in (
        ([{"text": "a", "label": False}], "no_answer"),
        ([{"text": "", "label": True}], "empty_answer"),
        ([{"text": "a", "label": 1}], "bad_label"),
        ([{"text": None, "label": True}], "bad_content"),
    ):
        assert dropped(tmp_path, {"type": "input_output"}, {"segments": wrong}).code == code


def test_texts_and_tokens(tmp_path: Path) -> None:
    assert read(tmp_path, {"type": "completion"}, {"text": "words"}).text == "words"
    assert read(tmp_path, {"type": "completion", "field": "body"}, {"body": "words"}).text == "words"
    assert read(tmp_path, {"type": "pretrain"}, {"text": "words"}).text == "words"
    row = {"input_ids": [1, 2, 0], "attention_mask": [1, 1, 0], "labels": [-100, 2, -100]}
    example = read(tmp_path, {"type": None}, row)
    assert (list(example.ids or []), list(example.labels or [])) == ([1, 2], [-100, 2])


def test_prompts_with_markers_of_their_own_get_no_template(tmp_path: Path) -> None:
    example = read(tmp_path, {"type": "metharme"}, {"prompt": "<|user|>q<|model|>", "generation": "a"})
    assert raw(example) == [("<|user|>q<|model|>", False), ("a", True)]
    assert example.is_framed
    assert dropped(tmp_path, {"type": "metharme"}, {"prompt": "q", "generation": " "}).code == "empty_answer"


def test_a_table_of_parts_becomes_a_conversation(tmp_path: Path) -> None:
    kind = {"field_instruction": "q", "field_output": "a", "format": "{instruction}", "system_prompt": "be brief"}
    example = read(tmp_path, {"type": kind}, {"q": "x", "a": "y"})
    assert spoken(example) == [("system", "be brief"), ("user", "x"), ("assistant", "y")]
    own = read(tmp_path, {"type": kind}, {"q": "x", "a": "y", "system": "be long"})
    assert spoken(own)[0] == ("system", "be long")
    assert read(tmp_path, {"type": {"field": "body"}}, {"body": "words"}).text == "words"


@cases(
    ("row", "prompt"),
    [
        ({"q": "x", "extra": "e", "a": "y"}, "[SYS]be brief[/SYS][INST] x {e} [/INST]"),
        ({"q": "x", "a": "y"}, "[SYS]be brief[/SYS][INST] x [/INST]"),
        ({"q": "{x}", "a": "y", "system": "own"}, "[SYS]own[/SYS][INST] {x} [/INST]"),
        ({"q": "x", "a": "y", "system": ""}, "[INST] x [/INST]"),
    ],
)
def test_formats_are_carried_over_as_they_are(tmp_path: Path, row: dict[str, Any], prompt: str) -> None:
    kind = {
        "system_prompt": "be brief",
        "system_format": "[SYS]{system}[/SYS]",
        "format": "[INST] {instruction} {{{input}}} [/INST]",
        "no_input_format": "[INST] {instruction} [/INST]",
        "field_instruction": "q",
        "field_input": "extra",
        "field_output": "a",
    }
    example = read(tmp_path, {"type": kind}, row)
    assert raw(example) == [(prompt, False), ("y", True)]
    assert example.is_framed


def test_a_format_alone_has_the_others_of_axolotl(tmp_path: Path) -> None:
    example = read(tmp_path, {"type": {"format": "Q: {instruction} {input}\nA:"}}, {"instruction": "x", "output": "y"})
    assert raw(example) == [("x ", False), ("y", True)]
    missing = axolotl(tmp_path, {"type": {"format": "Q: {instruction}"}}, {"instruction": "x"})
    with pytest.raises(UserError, match="no column 'output'"):
        examples(missing)


@cases("text", ["{", "{x", "{instruction.__class__}", "{0}", "{}", "{instruction!r}", "{instruction:>9}"])
def test_formats_that_are_more_than_places_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"type\.format") as caught:
        axolotl(tmp_path, {"type": {"format": text}})
    assert "ouble" in caught.value.hint


@given(st.text(alphabet="ab{}.!:[]0", max_size=20), st.text(max_size=5))
def test_any_format_is_filled_or_refused(text: str, value: str) -> None:
    try:
        found = TextFormat.parse(text, ["a"], "It")
    except UserError:
        return
    assert found.fill({"a": value}) == text.format(a=value)


TALK: list[dict[str, Any]] = [
    {"from": "system", "value": "s"},
    {"from": "human", "value": "q"},
    {"from": "bot", "value": "<think>\nhm\n</think>\n\na", "learn": True, "weight": 0, "why": "because"},
    {"from": "human", "value": "r"},
    {"from": "bot", "value": "b", "train": False},
]
CHAT = {
    "type": "chat_template",
    "field_messages": "talk",
    "message_property_mappings": {"role": "from", "content": "value"},
    "roles": {"user": ["human"], "assistant": ["gpt", "bot"]},
}


def test_chat_messages_are_read_by_their_mappings(tmp_path: Path) -> None:
    example = read(tmp_path, CHAT, {"talk": TALK, "system": "not used", "weight": 3})
    assert [role for role, _ in spoken(example)] == ["system", "user", "assistant", "user", "assistant"]
    assert example.messages[0].content == "s"
    # Without message_field_training no key of a message selects turns, by any name.
    assert [message.train for message in example.messages if message.role == "assistant"] == [True, True]


@cases(
    ("keys", "learned"),
    [
        ({"message_field_training": "learn"}, [True, True]),
        ({"message_field_training": "learn", "roles_to_train": []}, [True, False]),
        ({"message_field_training": "train"}, [True, False]),
        ({"roles_to_train": ["assistant"], "train_on_eos": "turn"}, [True, True]),
        ({"roles_to_train": ["gpt"], "chat_template": "tokenizer_default"}, [True, True]),
        ({"chat_template": "tokenizer_default_fallback_chatml"}, [True, True]),
    ],
)
def test_what_of_a_chat_is_learned(tmp_path: Path, keys: dict[str, Any], learned: list[bool]) -> None:
    example = read(tmp_path, {**CHAT, **keys}, {"talk": TALK})
    assert [message.train for message in example.messages if message.role == "assistant"] == learned


def test_system_messages_and_columns(tmp_path: Path) -> None:
    talk = TALK[1:]
    assert spoken(read(tmp_path, CHAT, {"talk": talk, "system": "column"}))[0] == ("system", "column")
    assert spoken(read(tmp_path, {**CHAT, "drop_system_message": True}, {"talk": TALK}))[0] == ("user", "q")
    without = read(tmp_path, {**CHAT, "drop_system_message": True}, {"talk": talk, "system": "column"})
    assert spoken(without)[0] == ("user", "q")


@cases(
    "keys",
    [
        {},
        {"roles_to_train": ["assistant"]},
        {"roles": {"user": ["human", "asker"], "assistant": ["gpt", "bot"], "tool": ["ipython"]}},
        {"field_system": "rule", "field_tools": "can"},
    ],
)
@cases("first", [0, 1])
def test_columns_that_say_the_same_as_a_chat(tmp_path: Path, keys: dict[str, Any], first: int) -> None:
    talk = [{"from": turn["from"], "value": turn["value"]} for turn in TALK[first:]]
    row = {"talk": talk, "rule": "column", "can": [{"type": "function", "function": {"name": "look"}}]}
    entry = {**CHAT, **keys}
    columns = plain_columns(entry, "here")
    assert columns is not None
    read_row = Row(0, 1, row)
    said = DataSource("here", Path(), "auto", ColumnMap(dict(columns.columns))).detect([read_row])
    wanted, found = read(tmp_path, entry, row), said.example(read_row)
    assert spoken(found) == spoken(wanted)
    assert found.tools == wanted.tools


def test_inverted_speakers_are_said_too() -> None:
    columns = plain_columns({"type": "chat_template", "roles": {"user": ["gpt"], "assistant": ["human"]}}, "here")
    assert columns is not None
    assert (columns.columns["user_role"], columns.columns["assistant_role"]) == ("gpt", "human")


@cases(
    "keys",
    [
        {"message_field_training": "learn"},
        {"drop_system_message": True},
        {"split_thinking": True},
        {"field_thinking": "why"},
        {"message_property_mappings": {"tool_calls": "calls"}},
        {"roles": {"user": ["a,b"]}},
    ],
)
def test_what_columns_cannot_say_of_a_chat(keys: dict[str, Any]) -> None:
    assert plain_columns({"type": "chat_template", **keys}, "here") is None


@cases(
    "keys",
    [
        {"input_transform": "x", "input_format": "y", "logprobs_field": "z", "temperature": 0.7},
        {"shards": 1, "shards_idx": 0},
        {"template_thinking_key": "reasoning_content"},
    ],
)
def test_keys_that_say_nothing_about_the_rows_are_taken(tmp_path: Path, keys: dict[str, Any]) -> None:
    assert spoken(read(tmp_path, {**CHAT, **keys}, {"talk": TALK})) == spoken(read(tmp_path, CHAT, {"talk": TALK}))


def test_reasoning_is_taken_from_a_key_or_out_of_the_content(tmp_path: Path) -> None:
    apart = read(tmp_path, {**CHAT, "field_thinking": "why"}, {"talk": TALK})
    assert apart.messages[2].reasoning == "because"
    split = read(tmp_path, {**CHAT, "split_thinking": True}, {"talk": TALK})
    assert (split.messages[2].reasoning, split.messages[2].content) == ("hm", "a")
    assert (split.messages[4].reasoning, split.messages[4].content) == ("", "b")
    long = "<|begin_of_thought|> hm <|end_of_thought|>\n<|begin_of_solution|> a <|end_of_solution|>"
    solved = read(tmp_path, {**CHAT, "split_thinking": True}, {"talk": [TALK[1], {"from": "bot", "value": long}]})
    assert (solved.messages[1].reasoning, solved.messages[1].content) == ("hm", "a")
    lost = [TALK[1], {"from": "bot", "value": "Well. <think>hm</think> a"}]
    assert dropped(tmp_path, {**CHAT, "split_thinking": True}, {"talk": lost}).code == "bad_content"


def test_tools_of_a_chat(tmp_path: Path) -> None:
    call = {"function": {"name": "look", "arguments": '{"city": "Ulm"}'}}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": "1"},
        {"role": "assistant", "content": "It rains."},
    ]
    entry = {"type": "chat_template", "message_property_mappings": {"tool_calls": "calls"}, "field_tools": "can"}
    example = read(tmp_path, entry, {"messages": messages, "can": '[{"name": "look"}]'})
    assert example.messages[1].tool_calls[0]["function"]["arguments"] == {"city": "Ulm"}
    assert example.messages[2].tool_call_id == "1"
    assert example.tools[0]["function"]["name"] == "look"


@cases(
    ("talk", "code"),
    [
        ([{"from": "human", "value": "q", "learn": True}, TALK[2]], "bad_role"),
        ([TALK[1], {"from": "bot", "value": "a", "learn": "yes"}], "bad_label"),
        ([TALK[1], {"from": "bot", "value": [{"type": "text", "text": "a", "train": False}]}], "bad_content"),
        ([TALK[1], {"from": "bot", "value": [{"type": "text", "text": "a", "weight": 0}]}], "bad_content"),
        ([TALK[1], "a"], "wrong_keys"),
        ("words", "wrong_keys"),
        ([TALK[1], {"from": "bot"}], "wrong_keys"),
        ([TALK[1], {"from": "narrator", "value": "a"}], "bad_role"),
        ([], "no_messages"),
    ],
)
def test_chats_that_cannot_be_carried_over_are_dropped_with_the_reason(tmp_path: Path, talk: Any, code: str) -> None:
    assert dropped(tmp_path, {**CHAT, "message_field_training": "learn"}, {"talk": talk}).code == code


@cases("kind", sorted(REFUSED))
def test_types_that_are_refused_say_why_and_what_else(tmp_path: Path, kind: str) -> None:
    name = f"{kind}.default" if kind in ("chat_template", "user_defined") else kind
    with pytest.raises(UserError, match=r"which (writes sentences|is for reward|holds preference)") as caught:
        axolotl(tmp_path, {"type": name})
    assert caught.value.hint


@cases(
    ("entry", "part", "hint"),
    [
        ({"type": "sharegpt"}, "the type sharegpt", "chat_template"),
        ({"type": "sharegpt.load_role"}, "the type sharegpt", "chat_template"),
        ({"type": "chatml.intel"}, "the type chatml.intel, which holds preference pairs", "data.columns"),
        ({"type": "nothing"}, "the type nothing, which is not read", "input_output"),
        ({"type": 3}, "is no name", "alpaca"),
        ({"type": "alpaca", "feild": "x"}, "the unknown key feild", "Did you mean field?"),
        ({"type": {"formt": "x"}}, "the unknown key formt", "Did you mean format?"),
        ({"type": {"format": 3}}, "type.format is no text", "Fix"),
        ({"type": "chat_template", "train_on_eos": "none"}, "train_on_eos: none", "always learned"),
        ({"type": "chat_template", "train_on_eot": "all"}, "train_on_eot: all", "always learned"),
        ({"type": "chat_template", "roles_to_train": ["user"]}, "roles_to_train", "data.supervise"),
        ({"type": "chat_template", "roles_to_train": []}, "nothing is learned", "Remove"),
        ({"type": "chat_template", "roles": {"narrator": ["x"]}}, "roles may name", ""),
        ({"type": "chat_template", "chat_template": "chatml"}, "chat_template: chatml", 'template.name = "chatml"'),
        ({"type": "chat_template", "chat_template": "jinja"}, "chat_template: jinja", "template.file"),
        ({"type": "chat_template", "chat_template_jinja": "x"}, "chat_template_jinja: x", "template.file"),
        ({"type": "chat_template", "message_property_mappings": {"images": "i"}}, "has images", "properties"),
        ({"type": "chat_template", "message_property_mappings": ["role"]}, "no table", ""),
        ({"type": "chat_template", "message_field_training_detail": "x"}, "training_detail", "whole messages"),
        ({"type": "chat_template", "template_thinking_key": "odd"}, "template_thinking_key: odd", "Remove"),
        ({"type": "chat_template", "split_thinking": "yes"}, "split_thinking is not", ""),
        ({"type": "chat_template", "field_messages": 3}, "field_messages is no name", ""),
        ({"type": "alpaca", "shards": 4}, "shards: 4", "a file of their own"),
        ({"type": "alpaca", "split": "train[:10%]"}, "a part of one", ""),
        ({"type": "alpaca", "data_files": [3]}, "data_files", ""),
    ],
)
def test_entries_that_are_refused(tmp_path: Path, entry: dict[str, Any], part: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        axolotl(tmp_path, entry)
    assert part in caught.value.message
    assert caught.value.hint
    assert hint in caught.value.hint
