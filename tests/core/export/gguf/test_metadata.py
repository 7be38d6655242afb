from __future__ import annotations

import jinja2
import jinja2.ext

from core.export.gguf.write import GgufOptions, entries, without_training_tags
from core.template.render import ChatTemplate
from tests.cases import cases

TAGGED = (
    "{%- for message in messages %}\n"
    "    {%- if message.role == 'assistant' %}\n"
    "<|start|>assistant\n"
    "        {% generation %}\n"
    "{{ message.content }}<|end|>{% endgeneration %}\n"
    "    {%- else %}\n"
    "{{ '<|start|>' + message.role + '\\n' + message.content + '<|end|>' }}\n"
    "    {%- endif %}\n"
    "{%- endfor %}\n"
)
TALK = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "  Good day \n"},
    {"role": "user", "content": "{% generation %}"},
    {"role": "assistant", "content": "no"},
]


@cases(
    "template",
    [
        TAGGED,
        TAGGED.replace("{% generation %}", "{%- generation -%}").replace(
            "{% endgeneration %}", "{%- endgeneration -%}"
        ),
        TAGGED.replace("{% generation %}", "{%+ generation %}").replace("{% endgeneration %}", "{%endgeneration%}"),
        "{% for m in messages %}{% generation %}{{ loop.index }}{{ m.content }}{% endgeneration %}{% endfor %}",
    ],
)
def test_training_tags_go_and_what_is_rendered_stays(template: str) -> None:
    stripped = without_training_tags(template)
    assert "generation" not in stripped
    assert ChatTemplate(stripped).render(TALK) == ChatTemplate(template).render(TALK)
    # Readers other than transformers have no such tag.
    jinja2.Environment(autoescape=True).parse(stripped)


def test_what_is_no_training_tag_stays_as_it_is() -> None:
    template = "{% if add_generation_prompt %}{{ generation }}{% endif %}{# {% #}"
    assert without_training_tags(template) == template


def test_entries_are_those_that_are_asked_for() -> None:
    assert entries(GgufOptions()) == []
    options = GgufOptions(
        template="{% generation %}a{% endgeneration %}",
        tool_template="b",
        name="Tickets",
        license="apache-2.0",
        base_name="SmolLM2",
    )
    assert {entry.key: entry.value for entry in entries(options)} == {
        "general.name": "Tickets",
        "general.license": "apache-2.0",
        "general.base_model.count": 1,
        "general.base_model.0.name": "SmolLM2",
        "tokenizer.chat_template": "{% if true %}a{% endif %}",
        "tokenizer.chat_template.tool_use": "b",
    }
