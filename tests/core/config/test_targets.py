"""Names, wildcards and regular expressions of layers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from core.config.targets import (
    EXPRESSION,
    expression_problem,
    has_patterns,
    is_pattern,
    is_target,
    kept_patterns,
    stays_16bit,
)
from tests.cases import cases

NAME = "model.layers.12.self_attn.q_proj"


@cases(
    ("entry", "found"),
    [
        ("q_proj", True),
        ("self_attn.q_proj", True),
        (NAME, True),
        ("proj", False),
        ("attn.q_proj", False),
        ("*_proj", True),
        ("self_attn.*", True),
        ("layers.1?.*", True),
        ("layers.?.*", False),
        ("layers.1[0-9].self_attn.[qv]_proj", True),
        ("*attn*", True),
        ("Q_PROJ*", False),
        (r"re:.*\.(q|v)_proj", True),
        ("re:q_proj", False),
        (r"re:model\.layers\.\d{2}\..*", True),
        ("re:(q", False),
    ],
)
def test_what_an_entry_stands_for(entry: str, found: bool) -> None:
    assert is_target(NAME, entry) is found


def test_what_is_a_pattern() -> None:
    assert has_patterns(["q_proj", "v_*"])
    assert not has_patterns(["q_proj", "mlp.up_proj"])
    assert not has_patterns("all-linear")
    assert is_pattern("re:q_proj")


@cases(
    "expression",
    [
        "(q",
        "*q",
        "(a+)+x",
        r"(\w+\.?)*X",
        "(?:a|a){2,}",
        "a*a*a*a*a*a*x",
        "a{99999999999}",
        "(" * 2000 + ")" * 2000,
    ],
)
def test_expressions_that_cannot_be_used_say_so_and_match_nothing(expression: str) -> None:
    assert expression_problem(EXPRESSION + expression)
    assert not is_target(NAME, EXPRESSION + expression)


@cases("expression", [r".*\.(q|v)_proj", r"[(*+)]+x", r"a\)*", r".*layers\.\d+\..*[)*]?"])
def test_usual_expressions_can_be_used(expression: str) -> None:
    assert expression_problem(EXPRESSION + expression) is None


@given(st.text(alphabet="a.*+?()[]{}|\\\\^$1,_", max_size=30))
def test_no_entry_fails_or_takes_long(text: str) -> None:
    for entry in (text, EXPRESSION + text):
        assert is_target("a.a_a.aaaa_aaaaaaaaaa.aaaaaaaaaaaaaa1", entry) in (True, False)


@cases("name", ["model.layers.0.mlp.gate", "model.layers.3.linear_attn.in_proj_a", "layers.1.router"])
def test_routers_and_small_gates_always_stay(name: str) -> None:
    assert stays_16bit(name)


def test_layers_stay_that_are_named() -> None:
    keep = ["layers.0.*", "re:.*down_proj"]
    assert stays_16bit("model.layers.0.self_attn.q_proj", keep)
    assert stays_16bit("model.layers.7.mlp.down_proj", keep)
    assert not stays_16bit("model.layers.10.self_attn.q_proj", keep)
    assert not stays_16bit("model.layers.0.mlp.gate_proj")


@cases("keep", [None, "auto", []])
def test_none_are_named_before_auto_has_decided(keep: str | list[str] | None) -> None:
    assert kept_patterns(keep) == ()
    assert not stays_16bit("model.layers.0.mlp.up_proj", keep)
