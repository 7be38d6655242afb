"""Chat templates that never end, or take far longer than any should, with little memory."""

from __future__ import annotations

import re

from tests.cases import tables

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

_TABLES = tables(__file__)
_PARTS = {"LISTS": LISTS, "TUPLES": TUPLES, "BIG": _BIG}
#: Operations that each look at a whole value, which the kernel would have to end if they began.
ENDLESS_OPERATIONS: dict[str, str] = {
    name: re.sub("^(?:LISTS|TUPLES|BIG)", lambda found: _PARTS[found[0]], template)
    for name, template in _TABLES["endless"].items()
}
#: Operations that each take a moment, and nobody waits for all of them.
REPEATED_OPERATIONS = {expression: again(expression) for expression in _TABLES["repeated"]}
