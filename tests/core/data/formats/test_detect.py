from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config.choices import FORMATS, Format
from core.data.conversation import Example, RowError
from core.data.files.rows import Row
from core.data.formats.detect import choose, detect, refuse_untrainable, row_example, to_example
from core.errors import UserError
from tests.cases import cases
from tests.core.data.conversations import spoken
from tests.examples import examples

USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}
QA = [("user", "q"), ("assistant", "a")]
# Parts of LLaMA-Factory's second generation.
IMAGE = {"type": "image_url", "value": "1.jpg"}
CALL = {"type": "tool_call", "value": '{"name": "look", "arguments": {"city": "Ulm"}}'}


def rows(*data: dict[str, Any] | None) -> list[Row]:
    return [
        Row(index, index + 1, item, "" if item is not None else "The row is not JSON.", "" if item else "not_json")
        for index, item in enumerate(data)
    ]


@cases(
    ("data", "format_", "messages"),
    [
        ({"messages": [USER, ASSISTANT]}, "messages", QA),
        ({"conversations": [USER, ASSISTANT], "id": 3}, "messages", QA),
        (
            {"messages": [{"role": "developer", "content": "s"}, USER, ASSISTANT]},
            "messages",
            [("system", "s"), ("user", "q"), ("assistant", "a")],
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "on"}, "e"]}, ASSISTANT]},
            "messages",
            [("user", "one"), ("assistant", "a")],
        ),
        (
            {"conversations": [HUMAN, GPT], "system": "s"},
            "sharegpt",
            [("system", "s"), ("user", "q"), ("assistant", "a")],
        ),
        (
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "user", "value": "q"},
                    {"from": "bot", "value": "a"},
                ]
            },
            "sharegpt",
            [("system", "s"), ("user", "q"), ("assistant", "a")],
        ),
        ({"instruction": "do", "input": "", "output": "a"}, "alpaca", [("user", "do"), ("assistant", "a")]),
        ({"instruction": "do", "input": "it", "output": "a"}, "alpaca", [("user", "do\nit"), ("assistant", "a")]),
        ({"instruction": "do", "context": "it", "response": "a"}, "alpaca", [("user", "do\nit"), ("assistant", "a")]),
        (
            {"instruction": "do", "output": "a", "system": "s", "history": [["q1", "a1"]]},
            "alpaca",
            [("system", "s"), ("user", "q1"), ("assistant", "a1"), ("user", "do"), ("assistant", "a")],
        ),
        ({"prompt": "q", "completion": "a"}, "prompt_completion", QA),
        ({"question": "q", "answer": "a"}, "prompt_completion", QA),
        ({"prompt": [USER], "completion": [ASSISTANT]}, "prompt_completion", QA),
        ({"prompt": [USER], "completion": "a"}, "prompt_completion", QA),
        ({"query": "q", "response": "a"}, "prompt_completion", QA),
        ({"problem": "q", "solution": "a"}, "prompt_completion", QA),
        (
            {"prompt": '[{"role": "user", "content": "q"}]', "completion": '{"from": "A", "text": "b"}'},
            "prompt_completion",
            [("user", "q"), ("assistant", '{"from": "A", "text": "b"}')],
        ),
        ({"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'}, "messages", QA),
        (
            {"conversation": [{"human": "q", "assistant": "a"}, {"human": "q2", "assistant": "a2"}]},
            "sharegpt",
            [("user", "q"), ("assistant", "a"), ("user", "q2"), ("assistant", "a2")],
        ),
        ({"dialogue": [{"speaker": "Human", "text": "q"}, {"speaker": "AI", "text": "a"}]}, "sharegpt", QA),
        ({"conversations": [{"from": "human", "content": "q"}, {"from": "gpt", "content": "a"}]}, "sharegpt", QA),
    ],
)
def test_recognizes_and_reads(data: dict[str, Any], format_: Format, messages: list[tuple[str, str]]) -> None:
    assert detect(rows(data)).format == format_
    assert spoken(to_example(data, format_)) == messages


def test_openai_messages_with_tools_thoughts_and_weights() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"city": "Ulm"}'}}
    data = {
        "messages": [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm", "weight": 0},
            {"role": "tool", "content": "rain", "tool_call_id": "c1", "name": "look", "tool_calls": None},
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "so"}, {"type": "text", "text": "It rains."}],
                "weight": 1,
            },
        ],
        "tools": [{"type": "function", "function": {"name": "look"}}, {"name": "bare", "parameters": {}}],
    }
    assert detect(rows(data)).format == "messages"
    example = to_example(data, "messages")
    asked, called, answered, said = example.messages
    assert (asked.train, called.train, said.train) == (None, False, True)
    assert called.tool_calls == (
        {"type": "function", "function": {"name": "look", "arguments": {"city": "Ulm"}}, "id": "c1"},
    )
    assert (called.content, called.reasoning, said.content, said.reasoning) == ("", "hm", "It rains.", "so")
    assert (answered.role, answered.name, answered.tool_call_id) == ("tool", "look", "c1")
    assert [tool["function"]["name"] for tool in example.tools] == ["look", "bare"]


def part(text: str, kind: str = "text") -> dict[str, str]:
    """A part of a content in LLaMA-Factory's spelling."""
    return {"type": kind, "value": text}


def turn(role: str, *parts: dict[str, str], weight: float | None = None) -> dict[str, Any]:
    """A message in LLaMA-Factory's spelling; without a weight the key is left out."""
    message: dict[str, Any] = {"role": role, "content": list(parts)}
    return message if weight is None else {**message, "loss_weight": weight}


def test_messages_of_llama_factorys_second_generation() -> None:
    data = {
        "messages": [
            turn("system", part("be short"), weight=0.0),
            turn("user", part("weather?"), weight=0.0),
            turn("assistant", part("hm", "reasoning"), CALL, CALL, weight=0.0),
            turn("tool", part("ra"), part("in"), weight=1.0),
            turn("assistant", part("so", "reasoning"), part("It rains."), weight=1.0),
            turn("user", part("sure?"), weight=0.5),
            turn("assistant", part("Yes.")),
        ],
        "tools": '[{"name": "look", "parameters": {}}]',
        "extra_info": "kto_labels",
    }
    assert detect(rows(data)).format == "messages"
    example = to_example(data, "messages")
    assert spoken(example) == [
        *(("system", "be short"), ("user", "weather?"), ("assistant", ""), ("tool", "rain")),
        *(("assistant", "It rains."), ("user", "sure?"), ("assistant", "Yes.")),
    ]
    # Only answers are learned there; a weight of another message counts for nothing, and 1 is that of none.
    assert [message.train for message in example.messages] == [None, None, False, None, True, None, None]
    assert [message.reasoning for message in example.messages] == ["", "", "hm", "", "so", "", ""]
    called = {"type": "function", "function": {"name": "look", "arguments": {"city": "Ulm"}}}
    assert example.messages[2].tool_calls == (called, called)
    assert [tool["function"]["name"] for tool in example.tools] == ["look"]


def test_pairs_of_llama_factorys_second_generation() -> None:
    asked = [turn("system", part("s"), weight=0.0), turn("user", part("q"), weight=0.0)]
    data = {
        "chosen_messages": [*asked, turn("assistant", part("good"), weight=1.0)],
        "rejected_messages": [*asked, turn("assistant", part("bad"), weight=1.0)],
        "tools": '[{"name": "look"}]',
    }
    detection = detect(rows(data))
    assert detection.format == "preference"
    example = detection.example(rows(data)[0])
    assert spoken(example) == [("system", "s"), ("user", "q")]
    assert [(side[-1].content, side[-1].train) for side in (example.chosen, example.rejected)] == [
        ("good", True),
        ("bad", True),
    ]
    assert len(example.tools) == 1
    refuse_untrainable(detection, "f.jsonl", "dpo")


def test_a_fraction_of_a_message_is_not_learned() -> None:
    data = {"messages": [turn("user", part("q")), turn("assistant", part("a"), weight=0.25)]}
    with pytest.raises(RowError) as caught:
        to_example(data, "messages")
    assert caught.value.message == (
        "Message 2 has the loss_weight 0.25, and a message is learned (1) or not (0), as a whole."
    )


@settings(max_examples=examples(150), deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.text(max_size=5), min_size=1, max_size=3),
            st.lists(st.text(max_size=5), min_size=1, max_size=3),
            st.sampled_from([None, 0, 1, 0.0, 1.0]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_parts_are_joined_and_weights_are_flags(turns: list[tuple[list[str], list[str], float | None]]) -> None:
    data: dict[str, Any] = {"messages": []}
    for asked, answered, weight in turns:
        data["messages"] += [turn("user", *map(part, asked)), turn("assistant", *map(part, answered), weight=weight)]
    if not all("".join(answered).strip() for _, answered, _ in turns):
        with pytest.raises(RowError, match="is empty"):
            to_example(data, "messages")
        return
    example = to_example(data, "messages")
    said = example.messages[1::2]
    assert [message.content for message in said] == ["".join(answered) for _, answered, _ in turns]
    assert [message.content for message in example.messages[::2]] == ["".join(asked) for asked, _, _ in turns]
    assert [message.train for message in said] == [None if weight is None else weight == 1 for *_, weight in turns]


@cases(
    ("data", "asked"),
    [
        ({"prompt": "q", "chosen": "good", "rejected": "bad"}, [("user", "q")]),
        ({"instruction": "do", "input": "it", "chosen": "good", "rejected": "bad"}, [("user", "do\nit")]),
        ({"question": "q", "system": "s", "chosen": "good", "rejected": "bad"}, [("system", "s"), ("user", "q")]),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, [("user", "q")]),
        (
            {"prompt": "ignored, as the conversations begin with it", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            [("user", "q")],
        ),
        (
            {
                "conversations": [HUMAN],
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            },
            [("user", "q")],
        ),
    ],
)
def test_preference_pairs(data: dict[str, Any], asked: list[tuple[str, str]]) -> None:
    detection = detect(rows(data))
    assert detection.format == "preference"
    example = to_example(data, "preference")
    assert spoken(example) == asked
    assert ([turn.content for turn in example.chosen], [turn.content for turn in example.rejected]) == (
        ["good"],
        ["bad"],
    )
    with pytest.raises(UserError, match=r"f\.jsonl holds preference pairs, and train\.objective is sft") as caught:
        refuse_untrainable(detection, "f.jsonl", "sft")
    assert "train.objective = dpo" in caught.value.hint
    assert "data.columns" in caught.value.hint
    refuse_untrainable(detection, "f.jsonl", "dpo")
    refuse_untrainable(detection, "f.jsonl", "orpo")
    with pytest.raises(UserError, match=r"train\.objective is kto, which learns from answers labeled") as caught:
        refuse_untrainable(detection, "f.jsonl", "kto")
    assert "train.objective = dpo" in caught.value.hint


@cases(
    "data",
    [
        {"prompt": "q", "completion": "a", "label": False},
        {"messages": [USER, ASSISTANT], "label": False},
        {"instruction": "q", "output": "a", "kto_tag": False},
    ],
)
def test_labeled_answers(data: dict[str, Any]) -> None:
    detection = detect(rows(data))
    assert detection.format == "kto"
    example = to_example(data, "kto")
    assert (spoken(example), example.label) == (QA, False)
    with pytest.raises(UserError, match="answers labeled good or bad") as caught:
        refuse_untrainable(detection, "f.jsonl", "sft")
    assert "train.objective = kto" in caught.value.hint
    refuse_untrainable(detection, "f.jsonl", "kto")
    with pytest.raises(UserError, match=r"train\.objective is dpo, which learns from preference pairs"):
        refuse_untrainable(detection, "f.jsonl", "dpo")


def test_a_label_that_is_no_yes_or_no_is_just_a_column() -> None:
    assert detect(rows({"prompt": "q", "completion": "a", "label": "spam"})).format == "prompt_completion"


def test_tokens() -> None:
    data = {"input_ids": [7, 8, 0], "labels": [-100, 8, -100], "attention_mask": [1, 1, 0], "text": "x"}
    detection = detect(rows(data))
    assert detection.format == "tokens"
    refuse_untrainable(detection, "f.jsonl", "sft")
    with pytest.raises(UserError, match=r"rows of the format tokens, and train\.objective is kto") as caught:
        refuse_untrainable(detection, "f.jsonl", "kto")
    assert "train.objective = sft" in caught.value.hint
    example = to_example(data, "tokens")
    assert (list(example.ids or []), list(example.labels or [])) == ([7, 8], [-100, 8])


def test_text() -> None:
    assert detect(rows({"text": "plain"})).format == "text"
    assert to_example({"text": "plain"}, "text") == Example(text="plain")


def test_the_reason_counts() -> None:
    good = {"prompt": "q", "completion": "a"}
    assert detect(rows(good)).reason == "The first row has prompt and completion, or question and answer."
    assert detect(rows(good, good)).reason.startswith("Each of the first 2 rows has prompt and completion")
    assert detect(rows(good, None, {"text": "x"}, good)).reason.startswith("2 of the first 3 rows have prompt")


def test_what_most_rows_fit_wins() -> None:
    assert detect(rows({"text": "x"}, {"prompt": "q", "completion": "a"}, {"text": "y"})).format == "text"


def test_looks_at_the_first_rows_only() -> None:
    def endless() -> Any:
        index = 0
        while True:
            yield Row(index, index + 1, {"text": "x"})
            index += 1

    assert detect(endless()).format == "text"


@cases(
    ("data", "meant", "column"),
    [
        ({"mesages": [USER, ASSISTANT]}, "messages", "mesages"),
        ({"instuction": "do", "output": "a"}, "instruction", "instuction"),
        ({"instruction": "do", "ouput": "a"}, "output", "ouput"),
        ({"Prompt": "q", "Completion": "a"}, "prompt", "Prompt"),
        ({"conversation_s": [USER]}, "conversations", "conversation_s"),
    ],
)
def test_a_near_miss_is_named(data: dict[str, Any], meant: str, column: str) -> None:
    with pytest.raises(UserError) as caught:
        detect(rows(data), "my.jsonl")
    assert "my.jsonl" in caught.value.message
    assert column in caught.value.message
    assert caught.value.hint == f"Did you mean {meant}? Rename the column {column}."


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


@cases(
    ("data", "format_", "code"),
    [
        ({"text": "x"}, "messages", "wrong_keys"),
        ({"messages": "x"}, "messages", "wrong_keys"),
        ({"messages": []}, "messages", "no_messages"),
        ({"messages": ["hi"]}, "messages", "wrong_keys"),
        ({"messages": [{"role": "user"}]}, "messages", "wrong_keys"),
        ({"messages": [{"content": "q"}]}, "messages", "wrong_keys"),
        ({"messages": [{"role": 7, "content": "q"}]}, "messages", "bad_role"),
        ({"messages": [USER, {"role": "narrator", "content": "x"}]}, "messages", "bad_role"),
        ({"messages": [ASSISTANT, USER]}, "messages", "role_order"),
        ({"messages": [USER]}, "messages", "no_answer"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "messages", "empty_answer"),
        ({"messages": [USER, {"role": "assistant", "content": 4}]}, "messages", "bad_content"),
        ({"messages": [USER, {"role": "assistant", "content": {"a": 1}}]}, "messages", "bad_content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ASSISTANT]}, "messages", "bad_content"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]}, "messages", "bad_tool_call"),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x"}}]}]},
            "messages",
            "bad_tool_call",
        ),
        ({"messages": [USER, ASSISTANT], "tools": "nonsense"}, "messages", "bad_tool_call"),
        ({"conversations": [HUMAN]}, "sharegpt", "no_answer"),
        ({"conversations": [HUMAN, {"from": "function_call", "value": "not json"}]}, "sharegpt", "bad_tool_call"),
        ({"chosen": "a", "rejected": "b"}, "preference", "no_messages"),
        ({"prompt": "q", "chosen": "a"}, "preference", "wrong_keys"),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, "preference", "empty_answer"),
        ({"prompt": "q", "completion": "a", "label": 1}, "kto", "bad_label"),
        ({"label": True}, "kto", "wrong_keys"),
        ({"input_ids": [1], "labels": "x"}, "tokens", "bad_label"),
        ({"input_ids": [1], "attention_mask": [1, 1]}, "tokens", "bad_tokens"),
        ({"input_ids": "x"}, "tokens", "wrong_keys"),
        ({"instruction": "do"}, "alpaca", "wrong_keys"),
        ({"instruction": "do", "output": " "}, "alpaca", "empty_answer"),
        ({"instruction": "do", "output": "a", "history": "x"}, "alpaca", "wrong_keys"),
        ({"instruction": "do", "output": "a", "history": [["q"]]}, "alpaca", "wrong_keys"),
        *(
            ({"messages": [USER, {**ASSISTANT, "loss_weight": weight}]}, "messages", "bad_label")
            for weight in (0.5, 2, -1, 1e-9, float("nan"), "1", [1])
        ),
        ({"messages": [USER, {"role": "assistant", "content": [{"type": "text"}]}]}, "messages", "bad_content"),
        ({"messages": [{"role": "user", "content": [IMAGE]}, ASSISTANT]}, "messages", "bad_content"),
        ({"messages": [{"role": "user", "content": [CALL]}, ASSISTANT]}, "messages", "bad_tool_call"),
        (
            {"messages": [USER, {"role": "assistant", "content": [{"type": "tool_call", "value": "look"}]}]},
            "messages",
            "bad_tool_call",
        ),
        ({"prompt": [{"type": "tool_call", "value": "{}"}], "completion": "a"}, "prompt_completion", "bad_content"),
        ({"chosen_messages": [USER, ASSISTANT]}, "preference", "wrong_keys"),
        ({"chosen_messages": [USER, ASSISTANT], "rejected_messages": []}, "preference", "no_messages"),
        ({"prompt": "q"}, "prompt_completion", "wrong_keys"),
        ({"prompt": "q", "completion": ""}, "prompt_completion", "empty_answer"),
        ({"prompt": "q", "completion": True}, "prompt_completion", "bad_content"),
        ({"text": 5}, "text", "wrong_keys"),
        ({"text": ""}, "text", "empty_answer"),
    ],
)
def test_a_bad_row_has_a_code_and_a_sentence(data: dict[str, Any], format_: Format, code: str) -> None:
    with pytest.raises(RowError) as caught:
        to_example(data, format_)
    assert caught.value.code == code
    assert caught.value.message.endswith(".")


def test_an_unreadable_row_keeps_its_own_error() -> None:
    with pytest.raises(RowError) as caught:
        row_example(Row(0, 1, None, "The row is 100 MB long.", "too_long"), "messages")
    assert (caught.value.code, caught.value.message) == ("too_long", "The row is 100 MB long.")


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
