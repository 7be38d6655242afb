"""Chat template rendering, compared with transformers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest

from core.data.conversation import Message, RowError
from core.errors import UserError
from core.template.builtin import NAMED_TEMPLATES
from core.template.render import ChatTemplate
from tests.cases import cases
from tests.core.template.families import FAMILIES

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

#: What templates use of the language, each by itself.
SNIPPETS = [
    "{{ messages | tojson }}",
    "{{ messages[0] | tojson(indent=2) }} {{ tools | tojson(ensure_ascii=true, sort_keys=true) }}",
    "{{ [1, 2] | tojson(separators=(',', ':')) }}",
    "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ documents is none }}{{ tools is defined }}",
    "  {% if true %}\n  x\n  {% endif %}\n  y",
    "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}|",
    "{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}",
    "{{ dict(a=1) }}{{ dict.fromkeys(['a', 'b']) }}",
    "{{ strftime_now('%Y') }}",
    "{{ messages[-1].thinking }}{{ messages[-1].reasoning_content }}",
    "{{ messages | map(attribute='role') | join(',') }}",
]
REFUSED = [
    "{{ raise_exception('no') }}",
    "{{ messages.append(1) }}",
    "{{ ''.__class__.__mro__ }}",
    "{% set ns = namespace(_a=1) %}",
    "{% set ns = namespace() %}{% set ns._a = 1 %}{{ ns._a }}",
    "{{ messages[0].content.nothing.more }}",
    "{{ 1 / 0 }}",
]


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
@cases("tools", [None, TOOLS], ids=["no tools", "tools"])
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


@cases("source", SNIPPETS)
def test_the_language_is_the_same(source: str) -> None:
    ours, theirs = both(source, CONVERSATIONS[3][:2], tools=TOOLS)
    assert ours == theirs
    assert ours


@cases("source", REFUSED)
def test_what_transformers_refuses_is_refused_in_one_sentence(source: str) -> None:
    ours, theirs = both(source, CONVERSATIONS[1])
    assert ours is None
    assert theirs is None
    with pytest.raises(RowError) as caught:
        ChatTemplate(source).render([{"role": "user", "content": "x"}])
    assert caught.value.code == "template_error"
    assert caught.value.message.endswith(".")
    assert "\n" not in caught.value.message


def test_a_template_that_is_no_jinja_is_refused_with_the_line() -> None:
    template = ChatTemplate("{{ bos_token }}\n{% for message in %}")
    with pytest.raises(UserError, match="not valid in line 2") as caught:
        template.check()
    assert "template.file" in caught.value.hint
    with pytest.raises(RowError, match="not valid in line 2"):
        template.render([{"role": "user", "content": "x"}])
    ChatTemplate("{{ messages }}").check()


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
