from __future__ import annotations

from core.config.sixteen_bit import kept_patterns, stays_16bit
from tests.cases import cases


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
