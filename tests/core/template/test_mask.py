"""Loss mask: exactly the tokens that the model must produce at inference, compared with transformers and by hand."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from core.data.conversation import Example, Message, RowError, Segment, make_conversation, make_segments
from core.errors import UserError
from core.template import tokenizer
from core.template.mask import Masker, PromptCheck, thinking_switch
from core.template.render import ChatTemplate
from core.template.tokenizer import MaskedRow, ModelTokenizer, load_tokenizer
from tests.cases import cases
from tests.core.template import families
from tests.core.template.families import MARKED, REASONING_MARKED, Family, answer_ids, prompt_ids, reference
from tests.core.template.toy_tokenizers import id_of
from tests.examples import examples

CASES = yaml.safe_load(Path(__file__).with_name("snippets.yaml").read_text(encoding="utf-8"))

TOOLS = ({"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}},)


def talk(*contents: str, system: str = "", **last: Any) -> Example:
    roles = ["user", "assistant"] * len(contents)
    turns = [Message(role, content) for role, content in zip(roles, contents, strict=False)]
    turns[-1] = dataclasses.replace(turns[-1], **last)
    return Example(messages=tuple([Message("system", system), *turns] if system else turns))


def with_tools() -> Example:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    return Example(
        messages=(
            Message("user", "What is 1 + 2?"),
            Message("assistant", "", tool_calls=(call,)),
            Message("tool", "3", name="add"),
            Message("assistant", "It is 3."),
            Message("user", "Thanks."),
            Message("assistant", "You are welcome."),
        ),
        tools=TOOLS,
    )


@functools.cache
def masker(family: Family, **options: Any) -> Masker:
    """Masker for all rows of a family; it compiles the template and each shape of a conversation once."""
    return Masker(family.tokenizer(), **options)


def mask(family: Family, example: Example, **options: Any) -> MaskedRow:
    (row,) = masker(family, **options).mask([example])
    assert isinstance(row, MaskedRow), row.message
    return row


def refusal(family: Family, example: Example, **options: Any) -> RowError:
    (row,) = masker(family, **options).mask([example])
    assert isinstance(row, RowError)
    return row


def spans(row: MaskedRow) -> list[tuple[list[int], list[int]]]:
    """Each learned stretch of a row, and the tokens before it."""
    found: list[tuple[list[int], list[int]]] = []
    ids, start = list(row.input_ids), None
    for place, learned in enumerate([*row.supervised, 0]):
        if learned and start is None:
            start = place
        elif not learned and start is not None:
            found.append((ids[:start], ids[start:place]))
            start = None
    return found


def learned_turns(row: MaskedRow) -> list[tuple[list[int], list[int]]]:
    """All stretches of all rows of an example, in the order of the conversation."""
    return sorted((span for part in row.rows for span in spans(part)), key=lambda span: len(span[0]))


def said(family: Family, example: Example, **options: Any) -> list[str]:
    """Learned text of an example, by turn."""
    decode = family.tokenizer().decode
    return [decode(answer) for _, answer in learned_turns(mask(family, example, **options))]


def shown(family: Family, example: Example) -> list[str]:
    """Text before each learned turn."""
    decode = family.tokenizer().decode
    return [decode(before) for before, _ in learned_turns(mask(family, example))]


def passed(family: Family, message: Message) -> dict[str, Any]:
    """A message as the family's template reads it."""
    fields = message.fields()
    reasoning = fields.pop("reasoning_content", "")
    if not reasoning:
        return fields
    if family.reasoning == "content":
        return {**fields, "content": f"<think>\n{reasoning}\n</think>\n\n{message.content}"}
    if family.reasoning == "parts":
        parts = [{"type": "thinking", "thinking": reasoning}]
        return {**fields, "content": parts + ([{"type": "text", "text": message.content}] if message.content else [])}
    return {**fields, family.reasoning: reasoning}


def expected_turns(family: Family, example: Example) -> list[tuple[list[int], list[int]]]:
    """Prompt before each answer and the tokens to generate after it, from transformers and the marks."""
    messages = [passed(family, message) for message in example.messages]
    found = []
    for index, message in enumerate(example.messages):
        if message.role == "assistant":
            prompt = prompt_ids(family, messages[:index], example.tools)
            answer = answer_ids(family, messages[: index + 1], example.tools, after=prompt)
            if family.hands_over:
                # Its marks lack the stop, which is the beginning of the next turn.
                stop = "<|observation|>" if message.tool_calls else "<|user|>"
                answer = [*answer, id_of(family.tokenizer().backend, stop)]
            found.append((prompt, answer))
    return found


#: Text of ordinary messages; spaces at its edges are covered by themselves below.
_PIECES = [*"abcXY09 .,:!?-_'\"(){}[]<>/|\\\n\t", "é", "ß", "中", "🙂", "the ", "\n\n", "  a", "<i>", "</b>"]
CONTENT = st.lists(st.sampled_from(_PIECES), min_size=1, max_size=16).map(lambda parts: "".join(parts).strip() or "x")


@st.composite
def conversations(draw: st.DrawFn) -> Example:
    turns = draw(st.integers(1, 3))
    contents = [draw(CONTENT) for _ in range(2 * turns)]
    return talk(*contents, system=draw(st.just("") | CONTENT))


@cases("family", [*MARKED, *REASONING_MARKED])
@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(example=conversations())
def test_learned_is_what_must_follow_each_prompt_of_inference(family: Family, example: Example) -> None:
    row = mask(family, example)
    assert learned_turns(row) == expected_turns(family, example)
    if family.one_row:
        assert len(row.rows) == 1


@cases("family", [family for family in MARKED if family.one_row])
@settings(max_examples=examples(30), deadline=None)
@given(example=conversations())
def test_a_row_is_the_conversation_as_transformers_tokenizes_it(family: Family, example: Example) -> None:
    row = mask(family, example)
    whole = reference(family).apply_chat_template([turn.fields() for turn in example.messages], return_dict=True)
    ids = list(row.input_ids)
    assert (ids[:-1] if family is families.GLM else ids) == list(whole["input_ids"])


@cases("family", [families.SMOLLM2, families.LLAMA3, families.PHI3, families.MISTRAL, families.GEMMA3])
@cases("answer", ["\nyes", "\n\n yes", " yes", "yes \n", "\tyes\n\n", "  "])
def test_spaces_at_the_edges_of_an_answer_are_generated_after_the_prompts_own_tokens(
    family: Family, answer: str
) -> None:
    example = talk("hello", answer, "again", answer)
    row = mask(family, example)
    tokenizer = family.tokenizer()
    turns = learned_turns(row)
    messages = [message.fields() for message in example.messages]
    assert [before for before, _ in turns] == [prompt_ids(family, messages[:1]), prompt_ids(family, messages[:3])]
    written = ChatTemplate(family.template, tokenizer.special_tokens).render(messages[:2])
    found, wanted = tokenizer.decode([*turns[0][0], *turns[0][1]]), tokenizer.decode(tokenizer.encode([written])[0])
    assert found.rstrip("\n") == wanted.rstrip("\n")


def test_a_row_of_two_parts_leaves_the_segments_of_the_rows_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "_CACHE_ENTRIES", 0)
    rows = Masker(families.QWEN25.tokenizer()).mask([talk("hello", "\nyes", "again", "no"), talk("a", "b")])
    assert [len(row.rows) for row in rows if isinstance(row, MaskedRow)] == [2, 1]


def test_only_the_last_turn_or_the_whole_text_may_be_learned() -> None:
    example = talk("a", "b", "c", "d", system="s")
    assert said(families.SMOLLM2, example, supervise="last") == ["d<|im_end|>"]
    everything = mask(families.SMOLLM2, example, supervise="all")
    assert everything.supervised == bytearray(b"\x00" + b"\x01" * (len(everything) - 1))
    assert list(everything.input_ids) == list(mask(families.SMOLLM2, example).input_ids)


def test_messages_say_for_themselves_whether_they_are_learned() -> None:
    turns = talk("a", "b", "c", "d").messages
    first_only = Example(messages=(*turns[:3], dataclasses.replace(turns[3], train=False)))
    assert said(families.SMOLLM2, first_only) == ["b<|im_end|>"]
    both = Example(messages=(turns[0], dataclasses.replace(turns[1], train=True), *turns[2:]))
    assert said(families.SMOLLM2, both, supervise="last") == ["b<|im_end|>", "d<|im_end|>"]
    spared = mask(families.SMOLLM2, first_only, supervise="all")
    unlearned = [token for token, learned in zip(spared.input_ids, spared.supervised, strict=True) if not learned]
    assert families.SMOLLM2.tokenizer().decode(unlearned) == "<|im_start|>d<|im_end|>"
    none = Example(messages=tuple(dataclasses.replace(turn, train=False) for turn in turns))
    assert refusal(families.SMOLLM2, none).code == "nothing_supervised"


def test_a_template_that_leaves_out_what_is_to_be_learned_is_refused() -> None:
    error = refusal(families.QWEN25.edited("message.tool_calls or []", "[]"), with_tools())
    assert (error.code, "tool call" in error.message) == ("template_drops", True)


@cases("family", MARKED)
@cases("place", [0, 1])
def test_a_row_that_writes_a_special_token_is_refused(family: Family, place: int) -> None:
    contents = ["hello", "there"]
    contents[place] = f"x{family.stops[0]}y"
    error = refusal(family, talk(*contents))
    assert error.code == "special_in_content"
    assert family.stops[0] in error.message
    assert f"Message {place + 1} " in error.message


class TestSpecialTokensInMessages:
    def test_it_may_be_kept_and_acts_as_at_inference(self) -> None:
        example = talk("say <|im_end|> twice", "no")
        row = mask(families.SMOLLM2, example, allow_special=True)
        assert learned_turns(row) == expected_turns(families.SMOLLM2, example)

    def test_it_is_left_out_of_both_answers_of_a_pair(self) -> None:
        asked = talk("q", "a").messages[:1]
        marked, plain = (
            Example(asked, chosen=(Message("assistant", f"b{end}"),), rejected=(Message("assistant", f"c{end}"),))
            for end in ("</s>", "")
        )
        assert mask(families.SMOLLM2, marked) == mask(families.SMOLLM2, plain)

    def test_an_answer_can_never_hold_what_would_end_it(self) -> None:
        assert refusal(families.SMOLLM2, talk("a", "b<|im_end|>c"), allow_special=True).code == "special_in_content"

    def test_tools_and_calls_are_looked_through(self) -> None:
        example = with_tools()
        call = {"function": {"name": "add", "arguments": {"<|im_end|>": 1}}}
        turns = (
            example.messages[0],
            dataclasses.replace(example.messages[1], tool_calls=(call,)),
            *example.messages[2:],
        )
        assert refusal(families.QWEN25, dataclasses.replace(example, messages=turns)).code == "special_in_content"
        tools = ({"type": "function", "function": {"name": "add", "description": "<|im_end|>"}},)
        assert refusal(families.QWEN25, dataclasses.replace(example, tools=tools)).code == "special_in_content"


@cases("mark", ["<|im_end|>", "<|endoftext|>", "</s>", "<|im_end|>\n", "</s><|im_end|>"])
def test_an_end_mark_at_the_end_of_an_answer_is_left_out(mark: str) -> None:
    example = talk("a", f"b \n{mark}", "c", f"d{mark}")
    assert mask(families.SMOLLM2, example) == mask(families.SMOLLM2, talk("a", "b \n", "c", "d"))


@cases("text", ["<s>wrong</s>", "</s>", "b</s>c"])
def test_other_marks_stay(text: str) -> None:
    example = talk("q", text)
    assert masker(families.SMOLLM2).unmarked(example) is example


class TestOtherRows:
    def test_plain_text_is_learned_whole_and_ended_once(self) -> None:
        row = mask(families.SMOLLM2, Example(text="just text"))
        assert families.SMOLLM2.tokenizer().decode(list(row.input_ids)) == "just text<|im_end|>"
        assert list(row.supervised) == [0] + [1] * (len(row) - 1)
        written = mask(families.SMOLLM2, Example(text="<|im_start|>user\nhi<|im_end|>"))
        assert families.SMOLLM2.tokenizer().decode(list(written.input_ids)) == "<|im_start|>user\nhi<|im_end|>"

    def test_plain_text_begins_as_the_tokenizer_begins_it(self) -> None:
        from tokenizers import Tokenizer, processors

        backend = Tokenizer.from_str(families.LLAMA3.tokenizer().backend.to_str())
        bos = backend.token_to_id("<|begin_of_text|>")
        backend.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
        )
        tokenizer = ModelTokenizer(backend, special_tokens={"eos_token": "<|eot_id|>"}, stop_ids=[])
        (row,) = Masker(tokenizer).mask([Example(text="text")])
        assert isinstance(row, MaskedRow)
        assert tokenizer.decode(list(row.input_ids)) == "<|begin_of_text|>text<|eot_id|>"
        assert row.supervised[0] == 0
        assert all(row.supervised[1:])

    def test_of_a_preference_pair_both_answers_are_learned_beside_one_another(self) -> None:
        asked = talk("a", "b", "c").messages
        better, worse = (Message("assistant", "good"),), (Message("assistant", "bad by far"),)
        row = mask(families.SMOLLM2, Example(messages=asked, chosen=better, rejected=worse), max_length=5)
        answers = [families.SMOLLM2.tokenizer().decode(spans(part)[-1][1]) for part in row.sequences]
        assert answers == ["good<|im_end|>", "bad by far<|im_end|>"]
        assert row.rejected is not None
        assert row.longest == len(row.rejected) > len(row)
        assert [part.cut for part in row.sequences] == [5, 5]
        failed = refusal(
            families.SMOLLM2, Example(messages=asked, chosen=better, rejected=(Message("assistant", "<|im_end|>"),))
        )
        assert failed.code == "special_in_content"
        assert failed.message.startswith("Of the worse answer: Message 4 holds")


def test_a_model_without_a_template_is_refused_in_one_sentence() -> None:
    tokenizer = dataclasses.replace(families.SMOLLM2).tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template") as caught:
        Masker(tokenizer).mask([talk("a", "b")])
    assert "template.name" in caught.value.hint
    assert isinstance(Masker(tokenizer).mask([Example(text="plain")])[0], MaskedRow)


@cases("family", [families.DEEPSEEK, families.GPT_OSS, families.GLM])
def test_an_empty_system_message_and_one_of_spaces_are_rendered_as_they_are(family: Family) -> None:
    for system in ("", " ", "\n"):
        turns = (Message("system", system), Message("user", "q"), Message("assistant", "a"))
        example = Example(messages=turns)
        assert learned_turns(mask(family, example)) == expected_turns(family, example)


@cases(
    ("written", "arguments"),
    [
        # A template that wants text, and another that writes objects as they are.
        ("'```' + call.function.arguments + '```'", '```{"a": 1, "b": 2}```'),
        ("call.function.arguments", '"arguments": {"a": 1, "b": 2}}'),
    ],
)
def test_arguments_of_tool_calls_are_json_in_any_template(written: str, arguments: str) -> None:
    edited = families.QWEN25.edited("call.function.arguments | tojson", written)
    assert arguments in said(edited, with_tools())[0]


def test_a_template_that_leaves_out_one_of_two_calls_of_a_tool_is_refused() -> None:
    first, second = ({"function": {"name": "add", "arguments": {"a": value}}} for value in (14, 15))
    example = Example(messages=(Message("user", "add"), Message("assistant", "", tool_calls=(first, second))))
    error = refusal(families.GPT_OSS, example)
    assert (error.code, "an argument of a tool call" in error.message) == ("template_drops", True)
    assert "14" in said(families.QWEN25, example)[0]


@cases("value", ['é "q" \\', "a\nb", True, None, 1.5, [1, {"x": ["<&>"]}], {"deep": {"er": "ü"}}, "", " padded "])
def test_arguments_of_every_kind_are_found_in_what_templates_write(value: Any) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": value}}}
    example = Example(messages=(Message("user", "add"), Message("assistant", "", tool_calls=(call,))))
    for family in (families.QWEN25, families.LLAMA3, families.GPT_OSS, families.GLM):
        assert learned_turns(mask(family, example)) == expected_turns(family, example)


def _asked_twice(ids: tuple[str | None, str | None], named: bool) -> Example:
    turns = [Message("user", "add")]
    for value, call_id in zip((1, 2), ids, strict=True):
        call: dict[str, Any] = {"type": "function", "function": {"name": "add", "arguments": {"a": value}}}
        turns.append(Message("assistant", "", tool_calls=({**call, "id": call_id} if call_id else call,)))
        turns.append(Message("tool", f"got {value}", name="add", tool_call_id=call_id if named and call_id else ""))
    return Example(messages=(*turns, Message("assistant", "Done.")))


@cases("ids", [(None, None), ("call_0a1b2c3d4e5f", "call_ffff00001111"), ("toolu_1", None)])
@cases("named", [True, False])
def test_calls_get_ids_of_the_length_that_a_template_takes(ids: tuple[str | None, str | None], named: bool) -> None:
    example = _asked_twice(ids, named)
    text = shown(families.MISTRAL_SMALL, example)[-1]
    called = re.findall(r"\[CALL_ID\](\w{9})\[ARGS\]", text)
    assert len(set(called)) == 2
    assert re.findall(r"\[TOOL_RESULTS\](\w+)\[TOOL_CONTENT\]got \d", text) == called
    # The same every time, so that a continued run has the same rows as before.
    again = learned_turns(mask(families.MISTRAL_SMALL, _asked_twice(ids, named)))
    assert again == learned_turns(mask(families.MISTRAL_SMALL, example))


def test_ids_that_a_template_takes_stay() -> None:
    text = shown(families.MISTRAL_SMALL, _asked_twice(("abcdefghi", "123456789"), True))[-1]
    assert "[CALL_ID]abcdefghi[ARGS]" in text
    assert "[TOOL_RESULTS]123456789[TOOL_CONTENT]got 2" in text


def test_a_template_that_refuses_calls_for_another_reason_says_that() -> None:
    error = refusal(families.MISTRAL_SMALL.edited("9 in ids!", "no calls!").edited("!= 9", "!= 10"), with_tools())
    assert error.message == "The chat template refuses the conversation: no calls."


LOOP = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
NO_SYSTEM = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
LAST_QUESTION = "{{ (messages | selectattr('role', 'equalto', 'user') | list)[-1].content }}"
WITH_TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}" + LOOP
TOOL = {"type": "function", "function": {"name": "look", "description": "Look it up.", "parameters": {}}}
SYSTEM, USER = Message("system", "Be brief."), Message("user", "A question?")
ANSWER = Message("assistant", "An answer.")


def left_out(source: str, *turns: Message, tools: Any = ()) -> str:
    return PromptCheck(ChatTemplate(source, {"eos_token": "</s>", "bos_token": "<s>"})).left_out(
        make_conversation(turns, tools)
    )


@cases(
    ("source", "turns", "tools", "missing"),
    [
        (LOOP, (SYSTEM, USER, ANSWER), (), ""),
        (LOOP, (USER, ANSWER), (TOOL,), "The chat template leaves out the list of tools."),
        (WITH_TOOLS, (SYSTEM, USER, ANSWER), (TOOL,), ""),
        (NO_SYSTEM, (SYSTEM, USER, ANSWER), (), "The chat template leaves out the system message."),
        (NO_SYSTEM, (USER, ANSWER), (), ""),
        (NO_SYSTEM, (Message("system", " "), USER, ANSWER), (), ""),
        (NO_SYSTEM, (SYSTEM, USER, ANSWER), (TOOL,), "leaves out the list of tools and the system message."),
        (LAST_QUESTION, (USER, ANSWER, USER, ANSWER), (), "leaves out message 1, the user's."),
        ("{{ messages[0].content | upper }}{{ messages[-1].content | e }}", (SYSTEM, USER, ANSWER), (), ""),
        ("{{ raise_exception('no system') if messages[0].role == 'system' }}", (SYSTEM, USER, ANSWER), (), ""),
    ],
)
def test_what_is_rendered_nowhere(source: str, turns: tuple[Message, ...], tools: Any, missing: str) -> None:
    found = left_out(source, *turns, tools=tools)
    assert found.endswith(missing) if missing else not found


def test_rows_of_the_same_roles_are_looked_at_once() -> None:
    renderings = []

    class Counted(ChatTemplate):
        def render(self, *args: Any, **kwargs: Any) -> str:
            renderings.append(args)
            return super().render(*args, **kwargs)

    check = PromptCheck(Counted(NO_SYSTEM))
    for number in range(50):
        row = make_conversation([SYSTEM, Message("user", f"Question {number}?"), ANSWER])
        assert "system message" in check.left_out(row)
    assert len(renderings) == 2
    assert check.left_out(make_conversation([USER, ANSWER])) == ""


_OPENS = "'<|im_start|>assistant\\n<think>\\n'"
_CLOSES = "'<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n'"


def template(condition: str) -> str:
    """A template that has its models reason where a condition holds."""
    return f"""\
{{%- for message in messages %}}{{{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}}}
{{%- endfor %}}
{{%- if add_generation_prompt %}}{{{{ {_OPENS} if {condition} else {_CLOSES} }}}}{{% endif %}}"""


@cases(("condition", "on", "switch"), CASES["switches"])
def test_a_switch_is_the_variable_that_changes_how_the_prompt_ends(
    condition: str, on: bool, switch: list[Any] | None
) -> None:
    assert thinking_switch(ChatTemplate(template(condition)), on=on) == (switch and tuple(switch))


def test_a_refusal_names_the_switch() -> None:
    example = talk("q", "yes", reasoning="hm")
    for model in (families.QWEN35, families.GLM47_FLASH):
        off = dataclasses.replace(model, marked="{%- set enable_thinking = false %}\n" + model.marked)
        # The template sets it, so a variable cannot change it.
        assert refusal(off, example).message.endswith("that the answer begins with.")
        error = refusal(model.edited("is defined else true", "is defined else false"), example)
        assert error.code == "template_rewrites"
        assert error.message.endswith(
            "With template.variables = {enable_thinking = true} it begins with the reasoning."
        )
    needs = dataclasses.replace(families.SMOLLM2, marked=template("thinking_mode != 'disabled'"))
    error = refusal(needs, talk("q", "yes"))
    assert error.code == "no_reasoning"
    assert error.message.endswith('With template.variables = {thinking_mode = "disabled"} it begins with the answer.')


def test_a_refusal_without_a_switch_says_no_more() -> None:
    error = refusal(families.OLMO3_THINK, talk("q", "yes"))
    assert (error.code, "template.variables" in error.message) == ("no_reasoning", False)
    assert thinking_switch(ChatTemplate("{{ raise_exception('no') }}{{ thinking }}"), on=False) is None
    assert thinking_switch(ChatTemplate(families.QWEN3.template), on=False) is None


_PARTS = st.lists(st.tuples(st.text(alphabet="the ticket<|im_end|>\n", max_size=12), st.booleans()), max_size=5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=_PARTS, framed=st.booleans())
def test_each_segment_is_tokenized_by_itself(tiny_model_dir: Path, parts: list[tuple[str, bool]], framed: bool) -> None:
    backend = Tokenizer.from_file(str(tiny_model_dir / "tokenizer.json"))
    try:
        example = make_segments([Segment(text, train) for text, train in parts], is_framed=framed)
    except RowError:
        return
    wanted: list[tuple[int, bool]] = []
    for text, train in parts:
        wanted += [(token, train) for token in backend.encode(text, add_special_tokens=False).ids]
    end = int(backend.token_to_id("<|im_end|>") or 0)
    if framed and wanted[-1][0] != end:
        wanted.append((end, parts[-1][1]))
    (row,) = Masker(load_tokenizer(tiny_model_dir)).mask([example])
    if not any(train for _, train in wanted[1:]):
        # The first token of a row is never predicted.
        assert isinstance(row, RowError)
        assert row.code == "nothing_supervised"
        return
    assert isinstance(row, MaskedRow)
    wanted[0] = (wanted[0][0], False)
    assert list(zip(row.input_ids, map(bool, row.supervised), strict=True)) == wanted
