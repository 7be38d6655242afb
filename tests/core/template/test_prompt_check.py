"""Prompt completeness check: parts of a prompt that a template leaves out are reported."""

from __future__ import annotations

from typing import Any

from core.data.conversation import Message, make_conversation
from core.template.builtin import NAMED_TEMPLATES
from core.template.mask import PromptCheck
from core.template.render import ChatTemplate
from tests.cases import cases
from tests.conftest import CHATML

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


@cases("name", [*NAMED_TEMPLATES, "chatml of the tests"])
def test_named_templates_show_all(name: str) -> None:
    source = CHATML if name not in NAMED_TEMPLATES else NAMED_TEMPLATES[name].source
    assert left_out(source, SYSTEM, USER, ANSWER, USER, ANSWER) == ""


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
