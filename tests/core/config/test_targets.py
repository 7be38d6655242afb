"""Names, wildcards and regular expressions of layers; experts that get adapters, and the size of these."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from core.config.schema import MethodSection
from core.config.targets import (
    EXPRESSION,
    adapts_experts,
    adapts_linear,
    expression_problem,
    is_target,
    kept_patterns,
    names_experts,
    stays_16bit,
    without_adapters,
)
from tests.cases import cases, tables

TABLES = tables(__file__)

NAME = "model.layers.12.self_attn.q_proj"


@cases(("entry", "found"), TABLES["what_an_entry_stands_for"])
def test_what_an_entry_stands_for(entry: str, found: bool) -> None:
    assert is_target(NAME, entry) is found


@cases("expression", TABLES["expressions_that_cannot_be_used_say_so_and_match_nothing"])
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


@cases(("name", "keep", "stays"), TABLES["layers_that_stay_in_16_bit"])
def test_routers_and_layers_that_are_named_stay_in_16_bit(name: str, keep: str | list[str] | None, stays: bool) -> None:
    assert stays_16bit(name, keep) is stays
    assert bool(kept_patterns(keep)) == isinstance(keep, list)


QWEN3_30B = ((1536, 2048), (2048, 768))
MIXTRAL = ((28672, 4096), (4096, 14336))
EXPERTS = "model.layers.3.mlp.experts"


@cases(("options", "matrices", "wanted"), TABLES["experts_get_adapters_where_these_stay_small"])
def test_experts_get_adapters_where_these_stay_small(options: dict[str, Any], matrices: Any, wanted: bool) -> None:
    assert adapts_experts(MethodSection(**options), EXPERTS, matrices) is wanted


def test_a_sentence_says_why_there_are_none() -> None:
    sentence = without_adapters(MethodSection(), QWEN3_30B, 48 * 128)
    assert sentence is not None
    assert "629 M parameters, 2.2% of the experts' own" in sentence
    assert "method.target_experts = on" in sentence
    assert "DoRA" in (without_adapters(MethodSection(dora=True), MIXTRAL, 256) or "")


@cases(
    ("options", "matrices"),
    [({}, MIXTRAL), ({"target_experts": "off"}, QWEN3_30B), ({"target_modules": ["q_proj"]}, QWEN3_30B)],
)
def test_no_sentence_where_it_was_asked_for(options: dict[str, Any], matrices: Any) -> None:
    assert without_adapters(MethodSection(**options), matrices, 256) is None


def test_routers_get_no_adapter_unless_named() -> None:
    assert not adapts_linear("model.layers.0.mlp.gate", "all-linear")
    assert adapts_linear("model.layers.0.mlp.gate_proj", "all-linear")
    assert adapts_linear("model.layers.0.mlp.gate", ["mlp.gate"])


@cases("entry", ["experts", "mlp.experts", "down_proj", "gate_up_proj", "layers.3.mlp.*"])
def test_a_list_names_experts_by_module_or_matrix(entry: str) -> None:
    assert names_experts([entry], EXPERTS)
    assert not names_experts(["shared_expert.down_proj", "q_proj"], EXPERTS)
