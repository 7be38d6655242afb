"""Thinking switches: found by trying, and named where a row is refused for its reasoning."""

from __future__ import annotations

import dataclasses

from core.template.render import ChatTemplate
from core.template.thinking import thinking_switch
from tests.cases import cases
from tests.core.template.families import QWEN3, SMOLLM2
from tests.core.template.model_families import GLM47, OLMO3_THINK, QWEN35
from tests.core.template.test_mask import refusal, talk

_OPENS = "'<|im_start|>assistant\\n<think>\\n'"
_CLOSES = "'<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n'"


def template(condition: str) -> str:
    """A template that has its models reason where a condition holds."""
    return f"""\
{{%- for message in messages %}}{{{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}}}
{{%- endfor %}}
{{%- if add_generation_prompt %}}{{{{ {_OPENS} if {condition} else {_CLOSES} }}}}{{% endif %}}"""


@cases(
    ("condition", "on", "switch"),
    [
        ("enable_thinking is not defined or enable_thinking", False, ("enable_thinking", False)),
        ("enable_thinking", True, ("enable_thinking", True)),
        ("thinking", True, ("thinking", True)),
        ("reasoning | default(true)", False, ("reasoning", False)),
        ("thinking_mode != 'disabled'", False, ("thinking_mode", "disabled")),
        ("thinking_mode == 'enabled'", True, ("thinking_mode", "enabled")),
        ("reasoning_effort | default('') != 'none'", False, ("reasoning_effort", "none")),
        ("reasoning_effort | default('none') != 'none'", True, ("reasoning_effort", "high")),
        ("thinking_budget is not defined or thinking_budget > 0", False, ("thinking_budget", 0)),
        # Told so already, by nothing, or by what nobody else has.
        ("enable_thinking", False, None),
        ("true", False, None),
        ("my_own_thinking | default(true)", False, None),
    ],
)
def test_a_switch_is_the_variable_that_changes_how_the_prompt_ends(condition: str, on: bool, switch: object) -> None:
    assert thinking_switch(ChatTemplate(template(condition)), on=on) == switch


def test_a_refusal_names_the_switch() -> None:
    example = talk("q", "yes", reasoning="hm")
    for model in (QWEN35, GLM47):
        off = dataclasses.replace(model, marked="{%- set enable_thinking = false %}\n" + model.marked)
        # Set by the template itself, it cannot be told otherwise.
        assert refusal(off, example).message.endswith("that the answer begins with.")
        off = dataclasses.replace(model, marked=model.marked.replace("is defined else true", "is defined else false"))
        error = refusal(off, example)
        assert error.code == "template_rewrites"
        assert error.message.endswith(
            "With template.variables = {enable_thinking = true} it begins with the reasoning."
        )
    needs = dataclasses.replace(SMOLLM2, marked=template("thinking_mode != 'disabled'"))
    error = refusal(needs, talk("q", "yes"))
    assert error.code == "no_reasoning"
    assert error.message.endswith('With template.variables = {thinking_mode = "disabled"} it begins with the answer.')


def test_a_refusal_without_a_switch_says_no_more() -> None:
    error = refusal(OLMO3_THINK, talk("q", "yes"))
    assert (error.code, "template.variables" in error.message) == ("no_reasoning", False)
    assert thinking_switch(ChatTemplate("{{ raise_exception('no') }}{{ thinking }}"), on=False) is None
    assert thinking_switch(ChatTemplate(QWEN3.template), on=False) is None
