"""Measured passes of layers without values against the same passes with real tensors."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.config.schema import Config
from core.memory.plan import Machine
from core.memory.planner import arithmetic
from core.models.architecture.measuring import Growth, peak_at
from core.worker.measure.layers import Passes, SizedPass
from core.worker.measure.measure import fit_around, fit_layer, fit_scan
from core.worker.measure.skeleton import Skeleton, build_bare, build_skeleton
from core.worker.model.experts import ExpertsParams4bit
from core.worker.model.text_part import described_causal_lm
from tests.cases import cases
from tests.core.worker.measure.test_plan import described, loaded_of
from tests.families.tiny import FAMILIES
from tests.short_list import long_but

ROWS = 2


def config_of(**more: Any) -> Config:
    sections: dict[str, Any] = {"data": {"train": "x"}, "train": {"precision": "bf16"}, "method": {"rank": 8}}
    return Config.model_validate(sections | more)


def without_values(family: str, config: Config) -> Skeleton:
    bare = build_bare(described_causal_lm(described(family), family), torch.bfloat16, family)
    return build_skeleton(bare, config, arithmetic(config, Machine("cpu")))


def with_values(family: str, config: Config, directory: Path) -> Skeleton:
    """The same of real tensors, loaded as a run does."""
    loaded = loaded_of(family, directory, config)
    causal, how = loaded.model.get_base_model(), arithmetic(config, Machine("cpu"))
    return Skeleton(loaded.model, causal, contextlib.nullcontext(), loaded.dtype, how)


def in_four_bits(skeleton: Skeleton) -> set[str]:
    """Names of the layers and the matrices of experts in 4 bits."""
    layers = {name for name, module in skeleton.causal.named_modules() if isinstance(module, bnb.nn.Linear4bit)}
    matrices = skeleton.causal.named_parameters()
    return layers | {name for name, matrix in matrices if isinstance(matrix, ExpertsParams4bit)}


def peak(points: tuple[int, ...]) -> int:
    return max(points, default=0)


def figures(found: SizedPass) -> tuple[Any, ...]:
    """Bytes that are kept, and the peaks."""
    kinds = {
        kind: (passes.kept, passes.casts, *map(peak, (passes.forward, passes.backward, passes.again)))
        for kind, passes in found.kinds.items()
    }
    return found.around, found.end_kept, peak(found.end_backward), kinds


@pytest.mark.parametrize("family", long_but(["llama"], FAMILIES))
def test_a_model_without_values_keeps_what_a_real_one_does(family: str, tmp_path: Path) -> None:
    config = config_of()
    without, with_them = Passes(without_values(family, config)), Passes(with_values(family, config, tmp_path))
    assert without.kinds == with_them.kinds
    # Rows for the worker's own attention on a CPU, as a whole and in blocks, and longer ones.
    for length in (96, 320, 1032):
        assert figures(without.measure(ROWS, length)) == figures(with_them.measure(ROWS, length)), length


@pytest.mark.long
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("keep", [False, True])
def test_adapters_on_experts_are_kept_as_in_a_real_one(family: str, keep: bool, tmp_path: Path) -> None:
    """With layers in 16 bits beside layers in 4."""
    config = config_of(
        method={"rank": 4, "target_experts": "on"}, model={"keep_16bit": ["layers.0.*"] if keep else None}
    )
    skeleton = without_values(family, config)
    without, with_them = Passes(skeleton), Passes(with_values(family, config, tmp_path))
    assert without.kinds == with_them.kinds
    experts = [weight for name, weight in skeleton.causal.named_parameters() if name.endswith(".down_proj")]
    assert [weight.dtype for weight in experts] == [torch.bfloat16 if keep else torch.uint8, torch.uint8]
    assert figures(without.measure(ROWS, 96)) == figures(with_them.measure(ROWS, 96))


@cases(
    ("family", "keep"),
    [
        ("qwen3", ()),
        ("olmo3", ()),
        ("lfm2", ("*.out_proj", "layers.1.*")),
        ("olmo3", ("re:.*[.](q|k)_proj", "up_proj")),
        ("smollm3", ("model.layers.[02].mlp.*",)),
        ("glm4_moe_lite", ("*.experts.down_proj", "?_proj")),
        ("granitemoehybrid", ("*mamba*", "layers.0.*")),
    ],
)
def test_layers_in_4_bits_are_those_of_a_loaded_model(family: str, keep: tuple[str, ...], tmp_path: Path) -> None:
    config = config_of(model={"keep_16bit": list(keep) or None})
    found = in_four_bits(without_values(family, config))
    assert found == in_four_bits(with_values(family, config, tmp_path))
    assert found
    assert "lm_head" not in found


COUNTS = st.integers(0, 1 << 20)


def samples(sizes: list[tuple[int, int]], growth: Growth) -> list[tuple[int, int, float]]:
    return [(rows, length, growth.at(rows * length, length)) for rows, length in sizes]


def assert_same(found: Growth, growth: Growth, off: int = 1) -> None:
    for rows, length in ((1, 64), (3, 2048), (7, 16_384)):
        assert found.at(rows * length, length) == pytest.approx(growth.at(rows * length, length), rel=1e-6, abs=off)


@given(COUNTS, COUNTS, COUNTS)
def test_the_growth_of_a_layer_is_found_from_three_sizes(once: int, per_token: int, per_pair: int) -> None:
    growth = Growth(once, per_token, per_pair)
    assert_same(fit_layer(samples([(2, 512), (4, 512), (2, 1024)], growth)), growth)


SCANS = [(2, 128), (4, 128), (2, 256), (2, 512)]


@given(COUNTS, COUNTS, st.integers(-(1 << 20), 0))
def test_the_growth_of_a_scan_is_found_from_rows_that_double(once: int, per_token: int, per_row: int) -> None:
    growth = Growth(once, per_token, per_row=per_row)
    for found in fit_scan(samples(SCANS, growth)):
        assert_same(found, growth)


def test_the_peak_of_a_scan_is_the_larger_of_what_peaks_in_short_and_in_long_rows() -> None:
    short, long = Growth(0, 100, per_row=10_000), Growth(0, 140, per_row=-100)
    found = fit_scan([(rows, n, peak_at((short, long), rows * n, n)) for rows, n in SCANS])
    for rows, length in ((1, 4096), (2, 512), (8, 128)):
        tokens = rows * length
        assert peak_at(found, tokens, length) == pytest.approx(peak_at((short, long), tokens, length), rel=1e-6)


@given(COUNTS, COUNTS, COUNTS, COUNTS, st.integers(0, 64))
def test_what_is_for_all_rows_is_distinguished_from_what_is_for_each(
    once: int, per_token: int, per_pair: int, per_column: int, per_square: int
) -> None:
    growth = Growth(once, per_token, per_pair, per_column, per_square)
    assert_same(fit_around(samples([(2, 512), (4, 512), (2, 1024), (4, 1024), (2, 768)], growth)), growth, off=64)
