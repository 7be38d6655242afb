"""Bounded Jinja sandbox: templates that would never end are stopped."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from core.data.conversation import RowError
from core.template.render import ChatTemplate
from tests.cases import cases
from tests.conftest import CHATML

MESSAGES = [{"role": "user", "content": "Say hello."}, {"role": "assistant", "content": "Hello!"}]


@cases(
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


@cases(
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


BIG = "{% set big = 'x' * 1000000 %}"
NESTED = "{% set ns = namespace(x=[big]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
BOMBS = [
    "{% set ns = namespace(x='xy') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='xy') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x='xy') %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    "{% set ns = namespace(x='xy') %}{% for i in range(60) %}{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}",
    "{% set ns = namespace(x='xy') %}{% for i in range(60) %}{% set ns.x = '%s%s' | format(ns.x, ns.x) %}{% endfor %}",
    "{% set ns = namespace(x='xy') %}{% for i in range(60) %}{% set ns.x = '{0}{0}'.format(ns.x) %}{% endfor %}",
    "{% set ns = namespace(x='xy') %}{% for i in range(60) %}{% set ns.x = ns.x.join([ns.x, ns.x]) %}{% endfor %}",
    "{% set ns = namespace(x='xy') %}{% for i in range(60) %}{% set ns.x = ns.x | replace('x', 'xx') %}{% endfor %}",
    "{% set ns = namespace(x='xy') %}{% for i in range(60) %}{% set x %}{{ ns.x }}{{ ns.x }}{% endset %}"
    "{% set ns.x = x %}{% endfor %}",
    "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    BIG + NESTED + "{{ ns.x }}",
    BIG + NESTED + "{{ ns.x | tojson }}",
    "{% macro two(x, n) %}{{ two(x ~ x, n - 1) if n else x }}{% endmacro %}{{ two('xy', 60) }}",
    "{{ 'a' * 10**9 }}",
    "{{ range(10**9) | list }}",
    "{{ 'a' | center(10**9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%.1000000000f' % 1.5 }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '{:>1000000000}'.format('a') }}",
    "{{ ('%999999d' * 1000) % ((1,) * 1000) }}",
    "{{ ([1] * 1000) | tojson(indent=1000000) }}",
    "{{ 1.5 | round(1000000000, 'floor') }}",
    BIG + "{{ ('{0}' * 100000).format(big) }}",
    BIG + "{{ big.replace('x', big) }}",
    BIG + "{{ big | replace('', big) }}",
    BIG + "{{ big.join(big) }}",
    BIG + "{{ big | join(big) }}",
    BIG + "{{ big.translate({120: big}) }}",
    BIG + "{{ big | indent(big, first=true) }}{{ ('\n' * 1000000) | indent(1000000, blank=true) }}",
    BIG + "{{ ('\t' * 1000000).expandtabs(1000000) }}",
    BIG + "{{ big | wordwrap(1, true, big) }}",
    BIG + "{{ [big] * 100000 }}",
    BIG + "{{ ([big] * 100000) | string }}",
    BIG + "{{ ([[1] * 1000000] * 1000000) | sum(start=[]) | length }}",
    BIG + "{% for i in range(90000) %}{{ big }}{% endfor %}",
    BIG + "{% set ns = namespace(x=[]) %}{% for i in range(9000) %}{% set ns.x = [ns.x, big[1:]] %}{% endfor %}",
    BIG + "{% set ns = namespace(x=[]) %}{% for i in range(9000) %}{% set ns.x = [ns.x, big ~ i] %}{% endfor %}",
    BIG + "{% set ns = namespace(x=[]) %}{% for i in range(9000) %}{% set ns.x = [ns.x, big.upper()] %}{% endfor %}",
    BIG + "{% set ns = namespace(x=[]) %}{% for i in range(9000) %}{% set ns.x = [ns.x, big | upper] %}{% endfor %}",
    "{% for i in range(90000) %}" + "literal " * 1000 + "{% endfor %}",
    "{% set x %}{% for i in range(90000) %}" + "literal " * 1000 + "{% endfor %}{% endset %}",
]
_TRY = """
import json, resource, sys
from core.data.conversation import RowError
from core.template.render import ChatTemplate
from core.template.trace import InspectedError, TracedTemplate

resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for number, source in enumerate(json.load(sys.stdin)):
    template = ChatTemplate(source)
    messages = [{"role": "user", "content": "Say hello."}]
    for trial in (lambda: template.render(messages), lambda: TracedTemplate(template).render(messages, True, set())):
        try:
            trial()
        except RowError as error:
            assert "far larger than a conversation" in error.message or "Range too big" in error.message, number
        except InspectedError:
            pass
        else:
            sys.exit(f"bomb {number} went through")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""


def test_what_would_fill_the_memory_is_refused_in_little_of_it() -> None:
    see_refused(BOMBS)


@pytest.mark.long
def test_so_is_a_list_of_many_small_ones() -> None:
    """Counting them takes seconds."""
    see_refused([bomb.replace("[big]", "[1]") for bomb in BOMBS if NESTED in bomb])


def see_refused(bombs: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TRY], input=json.dumps(bombs), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 160 << 10


def test_large_conversations_have_enough_room() -> None:
    messages = [{"role": "user", "content": "word " * 20_000}, {"role": "assistant", "content": "word " * 20_000}] * 25
    grown = "{% set ns = namespace(x='') %}{% for m in messages %}{% set ns.x = ns.x ~ (m.content | trim) + '.' %}"
    assert len(ChatTemplate(grown + "{% endfor %}{{ ns.x }}").render(messages)) == 50 * 100_000
    assert len(ChatTemplate("{{ messages | tojson }}{{ messages[1:] | tojson }}").render(messages)) > 9 * 10**6


def test_formats_and_filters_are_as_they_were() -> None:
    source = (
        "{{ '%s is %05d' % ('a', 7) }} {{ '{:>4}|{}'.format('b', 3) }} {{ 'a-b'.split('-') | join('+') }} "
        "{{ 1 ~ 'x' ~ none }} "
        "{{ [1] + [2] }} {{ 7 % 4 }} {{ 'abc'[1:] }} {{ messages[0:1] | length }} {{ {'a': 1} | tojson(indent=1) }} "
        "{{ 'x' | upper | center(3) }}|{{ messages | map(attribute='role') | join(',') }} {{ '&' | e }} "
        "{{ 2.45 | round(1) }} "
        "{{ none }} {{ true }} {{ missing }}| {{ range(3) | sum }} {{ 'aab' | replace('a', 'c', 1) }}"
    )
    assert ChatTemplate(source).render(MESSAGES) == (
        'a is 00007    b|3 a+b 1xNone [1, 2] 3 bc 1 {\n "a": 1\n}  X |user,assistant &amp; 2.5 None True | 3 cab'
    )


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
