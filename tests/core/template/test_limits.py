"""Templates that would not come to an end, and that they do."""

from __future__ import annotations

import pytest

from core.data.conversation import RowError
from core.template.render import ChatTemplate
from tests.conftest import CHATML

MESSAGES = [{"role": "user", "content": "Say hello."}, {"role": "assistant", "content": "Hello!"}]


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"
        "{% endfor %}",
        "{% for a in 'x' * 1000 %}{% for b in 'x' * 1000 %}{% for c in 'x' * 1000 %}{% endfor %}{% endfor %}"
        "{% endfor %}",
        "{% macro two(n) %}{% if n %}{{ two(n - 1) }}{{ two(n - 1) }}{% endif %}{% endmacro %}{{ two(60) }}",
        "{% for a in [[1, 2], [3, 4]] recursive %}{{ loop([[1, 2], [3, 4]]) }}{{ loop([[1, 2]]) }}{% endfor %}",
        "{% for a in range(9000) | map('string') %}{% for b in range(9000) | select %}{% endfor %}{% endfor %}",
        "{% for a in range(9000) %}{% for b in range(9000) if b > 5 %}{{ loop.index }}{% endfor %}{% endfor %}",
    ],
)
def test_loops_without_an_end_are_refused(source: str) -> None:
    with pytest.raises(RowError) as caught:
        ChatTemplate(source).render(MESSAGES)
    assert caught.value.code == "template_error"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10 ** 10 }}",
        "{{ ([1] * 10 ** 10) | length }}",
        "{{ 10 ** 9999999999 }}",
        "{{ 10 ** 64 ** 64 ** 64 ** 64 }}",
        "{{ 'x'.ljust(10 ** 10) }}",
        "{{ 'x' | center(10 ** 10) }}",
        "{{ 'x' | indent(width=10 ** 10) }}",
        "{{ lipsum(n=10 ** 10) }}",
        "{{ [1] | slice(10 ** 10) | list }}",
    ],
)
def test_one_operation_that_takes_all_memory_is_refused(source: str) -> None:
    with pytest.raises(RowError, match="far larger than a conversation"):
        ChatTemplate(source).render(MESSAGES)


def test_loops_keep_what_they_know_of_themselves() -> None:
    source = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ '.' if loop.last else ',' }}{% endfor %}"
        "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}{% for x in missing %}{% else %}-{% endfor %}"
        "{% for n in [3, 1, 2] | sort if n > 1 %}{{ n }}{{ loop.nextitem }}{% endfor %}{{ 2 * 3 }}{{ 2 ** 3 }}"
        "{% for a in 'abc' | map('upper') %}{{ a }}{{ loop.length }}{% endfor %}"
    )
    assert ChatTemplate(source).render(MESSAGES) == "1/2,2/2.a1-23368A3B3C3"


def test_long_conversations_have_enough_steps() -> None:
    messages = [{"role": "user", "content": "x" * 500}] * 1000
    every_character = "{% for m in messages %}{% for c in m.content %}{{ c }}{% endfor %}{% endfor %}"
    assert len(ChatTemplate(every_character).render(messages)) == 500_000
    each_for_each = "{% for m in messages %}{% for n in messages %}{% endfor %}{% endfor %}{{ messages | length }}"
    assert ChatTemplate(each_for_each).render(messages) == "1000"
    assert ChatTemplate(CHATML).render(messages).count("<|im_end|>") == 1000


def test_each_rendering_has_its_own_steps() -> None:
    template = ChatTemplate("{% for a in range(60000) %}{% endfor %}done")
    assert [template.render(MESSAGES) for _ in range(3)] == ["done"] * 3
