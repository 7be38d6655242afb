"""Chat templates that never end, or take far longer than any should, with little memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

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


def _again(expression: str, times: int = 49_000) -> str:
    """A template that computes something from a large list, text or table again and again."""
    return f"{_BIG}{{% for i in range({times}) %}}{{% set q = {expression} %}}{{% endfor %}}"


def _loop(statements: int) -> str:
    """A loop in which nothing costs a step but its turns."""
    return "{% for i in range(99000) %}" + "{% set q = messages[0].role %}" * statements + "{% endfor %}"


#: Ten seconds, and more than a minute, on a machine of 2024.
SLOW, LONG_BODY = _loop(200), _loop(1500)


_TEXT = "{% set big = 'x' * 1000000 %}"
_NESTED = "{% set ns = namespace(x=[big]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
_STANDS_FOR = {"LISTS ": LISTS, "TUPLES ": TUPLES, "BIG ": _BIG, "TEXT ": _TEXT, "NESTED ": _NESTED}
#: Tables of the file.
HOSTILE: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def _written_out(text: str) -> str:
    for word, meaning in (*_STANDS_FOR.items(), ("LITERALS", "literal " * 1000)):
        text = text.replace(word, meaning)
    return text


BOMBS = list(map(_written_out, HOSTILE["bombs"]))
ENDLESS_OPERATIONS = {name: _written_out(text) for name, text in HOSTILE["endless"].items()}
REPEATED_OPERATIONS = {expression: _again(expression) for expression in HOSTILE["repeated"]}
