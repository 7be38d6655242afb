"""Chat template rendering, compared with transformers; one rendering for all rows of a shape equals each row's own."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config.schema import Config, TemplateSection
from core.data.conversation import Example, Message, RowError
from core.errors import UserError
from core.template.builtin import NAMED_TEMPLATES, NamedTemplate, template_source
from core.template.mask import Masker
from core.template.render import ChatTemplate, InspectedError, TracedTemplate, one_template, placeholder, with_variables
from core.template.render_preview import preview_template
from core.template.settings import MaskSettings, mask_settings
from core.template.tokenizer import MaskedRow, ModelTokenizer
from tests.cases import cases
from tests.core.template.families import FAMILIES, GEMMA3, MARKED, SMOLLM2, Family
from tests.core.template.toy_tokenizers import id_of, make_backend
from tests.examples import examples

CASES = yaml.safe_load(Path(__file__).with_name("snippets.yaml").read_text(encoding="utf-8"))

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "é <b>"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds <&>.", "parameters": {}}}]
CONVERSATIONS = [
    [Message("user", "hi")],
    [Message("user", "hi"), Message("assistant", "hello")],
    [Message("system", " be brief "), Message("user", "hi\n"), Message("assistant", " <b>hello</b> ")],
    [Message("user", "a"), Message("assistant", "b", reasoning="because"), Message("user", "c")],
    [Message("user", "a"), Message("assistant", "<think>\nx\n</think>\n\nb"), Message("user", "c")],
    [Message("user", "1+2"), Message("assistant", "", tool_calls=(CALL,)), Message("tool", "3", name="add")],
    [Message("assistant", "first")],
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def render_reference(source: str, messages: Sequence[dict[str, Any]], *, tools: Any, prompt: bool) -> str:
    from transformers.utils.chat_template_utils import _normalize_chat_messages, render_jinja_template

    rendered, _ = render_jinja_template(
        conversations=[_normalize_chat_messages(list(messages))],
        tools=tools,
        chat_template=source,
        add_generation_prompt=prompt,
        **SPECIAL,
    )
    return str(rendered[0])


@functools.cache
def compiled(source: str) -> ChatTemplate:
    return ChatTemplate(source, SPECIAL)


def both(source: str, messages: Sequence[Message], *, tools: Any = None, prompt: bool = False) -> tuple[Any, Any]:
    """The text, or that there is none, by ours and by transformers."""
    fields = [message.fields() for message in messages]
    results: list[Any] = []
    try:
        results.append(compiled(source).render(fields, tools=tools, add_generation_prompt=prompt))
    except RowError:
        results.append(None)
    try:
        results.append(render_reference(source, fields, tools=tools, prompt=prompt))
    except Exception:
        results.append(None)
    return results[0], results[1]


@cases("conversation", range(len(CONVERSATIONS)))
@cases("tools", [None, TOOLS])
def test_real_templates_give_the_same_text(conversation: int, tools: Any) -> None:
    sources = [family.template for family in FAMILIES] + [family.marked for family in FAMILIES]
    sources += [named.source for named in NAMED_TEMPLATES.values()]
    texts = 0
    for source in sources:
        for prompt in (False, True):
            ours, theirs = both(source, CONVERSATIONS[conversation], tools=tools, prompt=prompt)
            assert ours == theirs
            texts += ours is not None
    assert texts > 20


@cases("source", CASES["same"])
def test_the_language_is_the_same(source: str) -> None:
    ours, theirs = both(source, CONVERSATIONS[3][:2], tools=TOOLS)
    assert ours == theirs
    assert ours


@cases("source", CASES["refused"])
def test_what_transformers_refuses_is_refused_in_one_sentence(source: str) -> None:
    ours, theirs = both(source, CONVERSATIONS[1])
    assert ours is None
    assert theirs is None
    with pytest.raises(RowError) as caught:
        ChatTemplate(source).render([{"role": "user", "content": "x"}])
    assert caught.value.code == "template_error"
    assert caught.value.message.endswith(".")
    assert "\n" not in caught.value.message


def test_messages_are_not_changed_by_rendering() -> None:
    message = {"role": "assistant", "content": "x", "reasoning_content": "y", "name": None}
    before = dict(message)
    assert ChatTemplate("{{ messages[0].thinking }}{{ messages[0].name is defined }}").render([message]) == "yFalse"
    assert message == before


def test_the_date_is_that_of_one_moment() -> None:
    precise = ChatTemplate("{{ strftime_now('%H:%M:%S.%f') }}")
    assert precise.render([]) == precise.render([])
    moment = datetime(2024, 2, 29, 23, 59, 59)
    in_macro = "{% macro day() %}{{ strftime_now('%d %b %Y') }}{% endmacro %}{{ day() }}"
    assert ChatTemplate(in_macro, now=moment).render([]) == "29 Feb 2024"
    named = ChatTemplate("x", with_tools=in_macro, now=moment)
    assert named.render([], tools=TOOLS) == "29 Feb 2024"
    before = datetime.now()
    shown = ChatTemplate(in_macro).render([])
    # Midnight may come in between.
    assert shown in {day.strftime("%d %b %Y") for day in (before, datetime.now())}


def test_reasoning_has_the_name_that_the_template_reads() -> None:
    message = Message("assistant", "b", reasoning="because").fields()
    for source in (
        "{{ messages[0].reasoning }}",
        "{{ messages[0].get('reasoning') }}",
        "{{ messages[0]['thinking'] }}",
    ):
        assert ChatTemplate(source).render([message]) == "because"


def test_contents_are_text_for_templates_that_show_text() -> None:
    message = {"role": "user", "content": "q"}
    either = (
        "{% if messages[0].content is string %}text{% endif %}{% for p in messages[0].content %}{{ p }}{% endfor %}"
    )
    assert ChatTemplate(either).render([message]) == "textq"
    parts = "{% for part in messages[0].content %}{{ part.text }}{% endfor %}"
    assert ChatTemplate(parts).render([message]) == "q"
    assert ChatTemplate(parts).render([{"role": "user", "content": [{"type": "text", "text": "a"}]}]) == "a"
    with pytest.raises(RowError):
        ChatTemplate("{{ raise_exception(messages[0].content) }}").render([message])


ASKED = [{"role": "user", "content": "2+2?"}]
#: A template that opens a block of reasoning, and closes it where it is turned off.
THINKS = """
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""


def prompt(source: str, **passed: Any) -> str:
    """The prompt of a template, as another program renders it that passes some variables."""
    template = ChatTemplate(source, passed)
    return template.render(ASKED, add_generation_prompt=True)


def test_a_value_holds_as_if_it_had_been_passed_unless_the_caller_passes_another() -> None:
    off = with_variables(THINKS, {"enable_thinking": False})
    assert prompt(off) == prompt(THINKS, enable_thinking=False)
    assert prompt(off).endswith("</think>\n\n")
    assert prompt(with_variables(THINKS, {"enable_thinking": True})) == prompt(THINKS)
    assert prompt(off, enable_thinking=True) == prompt(THINKS)
    assert with_variables(THINKS, {}) == THINKS


@given(
    st.booleans()
    | st.integers(-9999, 9999)
    | st.floats(-1e4, 1e4)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
)
def test_every_value_arrives_as_it_is(value: bool | int | float | str) -> None:
    shown = ChatTemplate(with_variables("{{ x | tojson }}|{{ x }}", {"x": value})).render(ASKED)
    assert shown == ChatTemplate("{{ x | tojson }}|{{ x }}", {"x": value}).render(ASKED)  # type: ignore[dict-item]


@cases("start", ["", "\n", "\n\n", "  ", "{# a remark #}\n"])
def test_the_rest_is_rendered_to_the_character(start: str) -> None:
    source = f"{start}a{{{{ x }}}}b\n"
    assert ChatTemplate(with_variables(source, {"x": 1})).render(ASKED) == ChatTemplate(source, {"x": "1"}).render(
        ASKED
    )


def test_two_templates_become_one() -> None:
    both = one_template("\nplain {{ x }}", "\ntools {{ x }}")
    assert both is not None
    chosen = ChatTemplate(with_variables(both, {"x": 5}))
    assert chosen.render(ASKED) == "\nplain 5"
    assert chosen.render(ASKED, tools=[{"name": "f"}]) == "\ntools 5"
    assert one_template("alone", None) == "alone"
    assert one_template(None, "tools") is None


def test_the_settings_of_the_mask_have_them(tiny_model_dir: Path) -> None:
    config = Config.model_validate({"data": {"train": "a"}, "template": {"variables": {"enable_thinking": False}}})
    masker = mask_settings(config, str(tiny_model_dir), THINKS).masker()
    assert masker.prompt(ASKED).endswith("</think>\n\n")
    with pytest.raises(UserError, match="does not read"):
        mask_settings(config, str(tiny_model_dir)).masker()  # the model's own has no reasoning


def test_a_preview_has_them_and_ignores_what_a_template_does_not_read() -> None:
    example = Example((Message("user", "2+2?"), Message("assistant", "4")))
    shown = preview_template(
        THINKS, example, settings=MaskSettings("", variables=(("enable_thinking", False), ("other", 1)))
    )
    assert shown.problem == ""
    assert shown.generation_prompt.endswith("</think>\n\n")


TALK = Example(
    messages=(
        Message("system", "Be brief."),
        Message("user", "Hello"),
        Message("assistant", "Hi."),
        Message("user", "Bye"),
        Message("assistant", "Bye."),
    )
)
ALL = list(NAMED_TEMPLATES.values())
#: Special tokens of each template besides its stops.
OTHERS = {"chatml": ["<|im_start|>"], "qwen": ["<|im_start|>"], "gemma": ["<start_of_turn>"]}


def base_tokenizer(named: NamedTemplate, *, complete: bool = True) -> ModelTokenizer:
    """A base model's tokenizer, with the template's own tokens or without; they end no text of the model's."""
    specials = ("<s>", "</s>", *named.stops, *OTHERS.get(named.name, ())) if complete else ("<s>", "</s>")
    backend = make_backend("words", specials)
    return ModelTokenizer(
        backend, special_tokens={"bos_token": "<s>", "eos_token": "</s>"}, stop_ids=[id_of(backend, "</s>")]
    )


def mask(named: NamedTemplate, example: Example, *, complete: bool = True) -> MaskedRow | RowError:
    tokenizer = base_tokenizer(named, complete=complete)
    (row,) = Masker(tokenizer, ChatTemplate(named.source, tokenizer.special_tokens)).mask([example])
    return row


@cases("named", ALL)
def test_a_conversation_is_one_row_and_each_answer_is_learned_with_its_end(named: NamedTemplate) -> None:
    row = mask(named, TALK)
    assert isinstance(row, MaskedRow), row.message
    assert not row.further
    tokenizer = base_tokenizer(named)
    learned = [token for token, wanted in zip(row.input_ids, row.supervised, strict=True) if wanted]
    stop = named.stops[0] if named.stops else "</s>"
    assert tokenizer.decode(learned).replace(" ", "") == f"Hi.{stop}Bye.{stop}"
    assert "Be brief." in tokenizer.decode(list(row.input_ids))
    assert not row.left_out
    # Some need no tokens of their own.
    lacking = mask(named, TALK, complete=False)
    assert getattr(lacking, "code", "") == ("no_stop_token" if named.stops else "")


@cases("named", ALL)
def test_tools_are_shown_or_refused(named: NamedTemplate) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = (Message("user", "1+1"), Message("assistant", "", tool_calls=(call,)), Message("tool", "2"))
    tools = ({"type": "function", "function": {"name": "add", "description": "Adds up."}},)
    row = mask(named, Example(messages=(*turns, Message("assistant", "2")), tools=tools))
    if named.name in ("chatml", "qwen"):
        assert isinstance(row, MaskedRow), row.message
        assert "Adds up." in base_tokenizer(named).decode(list(row.input_ids))
    else:
        assert isinstance(row, RowError)
        assert "no form for tools" in row.message


def test_the_configuration_offers_them_all() -> None:
    (choices, _) = get_args(TemplateSection.model_fields["name"].annotation)
    assert list(get_args(choices)) == list(NAMED_TEMPLATES)


def test_a_template_is_chosen_by_file_or_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{{ messages }}", encoding="utf-8")
    assert template_source(None, None) is None
    assert template_source(str(path), None) == "{{ messages }}"
    assert template_source(None, "chatml") == NAMED_TEMPLATES["chatml"].source
    with pytest.raises(UserError, match="both"):
        template_source(str(path), "chatml")
    with pytest.raises(UserError, match=r"nowhere\.jinja"):
        template_source(str(tmp_path / "nowhere.jinja"), None)
    with pytest.raises(UserError, match="no template called x"):
        template_source(None, "x")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"mine\.jinja"):
        template_source(str(path), None)


#: Contents that templates ask about, or that trimming changes.
_PIECES = ["a", "b c", " ", "\n", "</think>", "<think>", "<tool_response>", "</tool_response>", "{{", "é", "'"]
CONTENT = st.lists(st.sampled_from(_PIECES), max_size=6).map("".join)


@st.composite
def talks(draw: st.DrawFn) -> Example:
    turns = [Message(role, draw(CONTENT)) for _ in range(draw(st.integers(1, 3))) for role in ("user", "assistant")]
    if draw(st.booleans()):
        turns.insert(0, Message("system", draw(CONTENT)))
    return Example(messages=tuple(turns))


@functools.cache
def one_by_one(tokenizer: Any) -> Masker:
    """A masker that renders every conversation by itself."""
    masker = Masker(tokenizer)
    masker._shapes = None
    return masker


@functools.cache
def tokenizer_of(family: Family) -> ModelTokenizer:
    return family.tokenizer()


@cases("family", FAMILIES)
@settings(max_examples=examples(40), deadline=None)
@given(batch=st.lists(talks(), min_size=1, max_size=4))
def test_rows_of_a_shape_are_those_of_each_rendering(family: Family, batch: list[Example]) -> None:
    tokenizer = tokenizer_of(family)
    for fast, slow in zip(Masker(tokenizer).mask(batch), one_by_one(tokenizer).mask(batch), strict=True):
        if isinstance(slow, MaskedRow):
            assert fast == slow
        else:
            assert not isinstance(fast, MaskedRow)
            assert (fast.code, fast.message) == (slow.code, slow.message)


TURNS = (Message("user", "hello"), Message("assistant", "there"))


@cases("family", [family for family in MARKED if "macro" not in family.template])
def test_templates_without_macros_are_rendered_once_for_a_shape(family: Family) -> None:
    masker = Masker(family.tokenizer())
    assert masker._shapes is not None
    # A generation prompt that holds a part of the answer is compared with each answer.
    assert (masker._shapes.rows(TURNS, (1,)) is not None) == (family.name != "no-thinking")


@cases("written", CASES["inspected"])
def test_a_template_that_looks_at_contents_is_never_traced(written: str) -> None:
    source = f"{{% for message in messages %}}{written}{{% endfor %}}"
    ChatTemplate(source).check()
    messages = [{"role": "user", "content": placeholder(0)}, {"role": "assistant", "content": placeholder(1)}]
    with pytest.raises(InspectedError):
        TracedTemplate(ChatTemplate(source)).render(messages, False, set())


@cases(("condition", "ordinary", "other"), CASES["asked"])
def test_questions_about_contents_are_answered_for_each_row(condition: str, ordinary: str, other: str) -> None:
    """The system turn ends in one of two ways, and each row gets the right one."""
    source = (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
        f"{{% if message.role == 'user' %}}{{% if {condition} %}}"
        "{{ 'yes ' }}{% else %}{{ 'no ' }}{% endif %}{% endif %}"
        "{{ message.content + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    family = dataclasses.replace(SMOLLM2, marked=source)
    tokenizer = family.tokenizer()
    batch = [Example(messages=(Message("user", text), TURNS[1])) for text in (ordinary, other, ordinary)]
    assert Masker(tokenizer).mask(batch) == one_by_one(tokenizer).mask(batch)
    shapes = Masker(tokenizer)._shapes
    assert shapes is not None
    assert shapes.rows(batch[0].messages, (1,)) is not None
    assert shapes.rows(batch[1].messages, (1,)) is None


def test_a_template_that_refuses_a_shape_says_so_in_its_own_words() -> None:
    (row,) = Masker(GEMMA3.tokenizer()).mask([Example(messages=(*TURNS, *TURNS[1:]))])
    assert not isinstance(row, MaskedRow)
    assert "must alternate" in row.message
