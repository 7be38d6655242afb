"""Chat templates that never end, or take far longer than any should, with little memory."""

from __future__ import annotations

#: Two lists, and two tuples, of 2^60 parts each: sixty small ones, each of which holds the one before twice.
LISTS = (
    "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}"
    "{% set ns.y = [ns.y, ns.y] %}{% endfor %}"
)
TUPLES = (
    "{% set ns = namespace(x=(1,), y=(1,)) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}"
    "{% set ns.y = (ns.y, ns.y) %}{% endfor %}"
)
_BIG = (
    "{% set b = [1] * 1048576 %}{% set t = 'x' * 1048576 %}{% set u = t + 'y' %}"
    "{% set d = dict.fromkeys(range(9000)) %}"
)


def again(expression: str, times: int = 49_000) -> str:
    """A template that computes something from a large list, text or table again and again."""
    return f"{_BIG}{{% for i in range({times}) %}}{{% set q = {expression} %}}{{% endfor %}}"


def _loop(statements: int) -> str:
    """A loop in which nothing costs a step but its turns."""
    return "{% for i in range(99000) %}" + "{% set q = messages[0].role %}" * statements + "{% endfor %}"


#: Ten seconds, and more than a minute, on a machine of 2024.
SLOW, LONG_BODY = _loop(200), _loop(1500)

#: Operations that each look at a whole value, which the kernel would have to end if they began.
ENDLESS_OPERATIONS = {
    "==": LISTS + "{{ ns.x == ns.y }}",
    "!=": LISTS + "{{ ns.x != ns.y }}",
    "<": TUPLES + "{{ ns.x < ns.y }}",
    "a chain of comparisons": LISTS + "{{ 1 < 2 != ns.x == ns.y }}",
    "in a list": LISTS + "{{ ns.x in [ns.y] }}",
    "in a view": LISTS + "{{ ns.x in {'a': ns.y}.values() }}",
    "== of views": LISTS + "{{ {'a': ns.x}.items() == {'a': ns.y}.items() }}",
    "- of views": TUPLES + "{{ {'a': ns.x}.items() - {'a': ns.y}.items() }}",
    "a test": LISTS + "{{ ns.x is eq ns.y }}",
    "a test on rows": LISTS + "{{ [ns.x] | select('equalto', ns.y) | list }}",
    "lower": LISTS + "{{ ns.x is lower }}",
    "sort": LISTS + "{{ [ns.x, ns.y] | sort | length }}",
    "sort by an attribute": LISTS + "{{ [{'a': ns.x}, {'a': ns.y}] | sort(attribute='a') | length }}",
    "groupby": TUPLES + "{{ [{'a': ns.x}, {'a': ns.y}] | groupby('a') | length }}",
    "max": LISTS + "{{ [ns.x, ns.y] | max | length }}",
    "unique": TUPLES + "{{ [ns.x] | unique | list | length }}",
    "index": LISTS + "{{ [ns.x].index(ns.y) }}",
    "count": LISTS + "{{ [ns.x].count(ns.y) }}",
    "changed": LISTS + "{% for i in range(2) %}{{ loop.changed(ns.x if i else ns.y) }}{% endfor %}",
    "an error": LISTS + "{{ raise_exception(ns.x) }}",
    "a format without width": LISTS + "{{ '%.0s' % ns.x }}{{ '{0:.0}'.format(ns.x) }}",
    "the key of a table": TUPLES + "{{ {ns.x: 1} | length }}",
    "a subscript": TUPLES + "{{ {}[ns.x] }}",
    "get": TUPLES + "{{ {}.get(ns.x) }}",
    "in a table": TUPLES + "{{ ns.x in {} }}",
    "fromkeys": TUPLES + "{{ dict.fromkeys([ns.x]) | length }}",
    "the name of a filter": TUPLES + "{{ ns.x is filter }}{{ [1] | map(ns.x) | list }}",
    "rfind": _BIG + "{{ t.rfind(t[:250000] + 'y' + t[:250000]) }}",
    "strip": _BIG + "{{ t.strip('a' * 1000000 + 'x') | length }}{{ t | trim('a' * 1000000 + 'x') | length }}",
    "urlize": "{{ (')' * 1000000 + 'a') | urlize | length }}",
    "striptags": "{{ ('<!---->' * 100000) | striptags }}{{ (('<!---->' * 100000) | safe).striptags() }}",
    "wordwrap": _BIG + "{{ t | wordwrap(1) | length }}",
    "round": "{{ 5 | round(-1000000000) }}",
    "odd": "{{ '%999999999d' is odd }}",
    "division": _BIG + "{% set n = (1).from_bytes(t.encode(), 'big') %}{{ n // (n - 1) }}",
    "colliding keys": "{{ dict.fromkeys(range(0, -99999 * 2305843009213693951, -2305843009213693951)) | length }}",
    "a long attribute": "{{ ([1] * 1000) | map(attribute='real.' * 100000 + 'real') | list | length }}",
    "a recursive loop": "{% for a in [[1] * 1048576] recursive %}{% if loop.depth0 < 1 %}"
    "{% for j in range(900) %}{{ loop(a) }}{% endfor %}{% endif %}{% endfor %}",
    "many arguments": "{% macro m() %}{% endmacro %}{% for i in range(9000) %}{{ m(*([1] * 1000000)) }}{% endfor %}",
}
#: Operations that each take a moment, and nobody waits for all of them.
REPEATED_OPERATIONS = {
    expression: again(expression)
    for expression in (
        *("2 in b", "'zy' in t", "0.5 in range(100000)", "t == u[:-1]", "d.keys() == d.keys()", "t.find('yz')"),
        *("t.split('y')", "t.count('xy')", "t.replace('y', '')", "t | replace('y', '')", "t.translate({1: 2})"),
        *("t.startswith(u)", "t.isalpha()", "t.rpartition('yx')", "b | max", "b | sort | first", "b | unique | list"),
        *("b | select('eq', 2) | list", "b | reject | list", "b | map('abs') | first", "b | min(attribute='real')"),
        *("b | sum", "b | reverse | first", "b | batch(3) | first", "b | tojson | length", "d | dictsort | first"),
        *("b | join | length", "t | wordcount", "t | title | length", "t | int", "lipsum(n=640)", "'{}' * 9000 == t"),
        *("7 ** 1300 // 3 ** 900 * 5 ** 90", "('{0' + '.real' * 200 + '}').format(1)"),
        *("('{}' * 9000).format(*b[:9000]) | length", "strftime_now('%c' * 100000) | length", "d | items | list"),
    )
}
