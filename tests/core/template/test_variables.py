"""Variables of a chat template: their values for a run, in the template's text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config.schema import Config
from core.data.conversation import Example, Message
from core.errors import UserError
from core.template.render import ChatTemplate, one_template, with_variables
from core.template.render_preview import preview_template
from core.template.settings import mask_settings
from tests.cases import cases
from tests.core.template.families import FAMILIES

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


def test_a_value_holds_as_if_it_had_been_passed() -> None:
    assert prompt(with_variables(THINKS, {"enable_thinking": False})) == prompt(THINKS, enable_thinking=False)
    assert prompt(with_variables(THINKS, {"enable_thinking": False})).endswith("</think>\n\n")
    assert prompt(with_variables(THINKS, {"enable_thinking": True})) == prompt(THINKS)


def test_a_caller_has_the_last_word() -> None:
    assert prompt(with_variables(THINKS, {"enable_thinking": False}), enable_thinking=True) == prompt(THINKS)


def test_nothing_set_changes_nothing() -> None:
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


@cases("family", FAMILIES, ids=lambda family: family.name)
def test_a_template_of_a_family_takes_an_unused_name_only_where_it_reads_it(family: Any) -> None:
    with pytest.raises(UserError, match="sets no_such_variable, which the chat template does not read"):
        with_variables(family.template, {"no_such_variable": True})


def test_two_templates_become_one() -> None:
    both = one_template("\nplain {{ x }}", "\ntools {{ x }}")
    assert both is not None
    chosen = ChatTemplate(with_variables(both, {"x": 5}))
    assert chosen.render(ASKED) == "\nplain 5"
    assert chosen.render(ASKED, tools=[{"name": "f"}]) == "\ntools 5"
    assert one_template("alone", None) == "alone"
    assert one_template(None, "tools") is None


def test_the_settings_of_the_mask_have_them(tiny_model_dir: Any, tmp_path: Any) -> None:
    file = tmp_path / "thinks.jinja"
    file.write_text(THINKS)
    config = Config.model_validate({"data": {"train": "a"}, "template": {"variables": {"enable_thinking": False}}})
    masker = mask_settings(config, str(tiny_model_dir), THINKS).masker()
    assert masker.prompt(ASKED).endswith("</think>\n\n")
    with pytest.raises(UserError, match="does not read"):
        mask_settings(config, str(tiny_model_dir)).masker()  # the model's own has no reasoning


def test_a_preview_has_them_and_ignores_what_a_template_does_not_read() -> None:
    example = Example((Message("user", "2+2?"), Message("assistant", "4")))
    shown = preview_template(THINKS, example, variables={"enable_thinking": False, "other": 1})
    assert shown.problem == ""
    assert shown.generation_prompt.endswith("</think>\n\n")
