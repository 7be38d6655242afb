from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.export.llama_cpp import has_library
from core.export.request import QUANTS
from tests.forking import Forks

from .apart import converter_in, lines_of

pytestmark = pytest.mark.skipif(not has_library(), reason="llama-cpp-py-sync is not installed")
Results = dict[tuple[str, bool], dict[str, Any]]


@pytest.fixture(scope="module")
def results(forks: Forks, converter_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The results by type, and by the use of an importance matrix."""
    directory = tmp_path_factory.mktemp("quantizations")
    lines = lines_of(forks, "quantizations", str(directory), converter_in(converter_home))
    return {(line["quant"], line["weighed"]): line for line in lines}


@pytest.mark.long
def test_each_type_is_what_it_says(results: Results) -> None:
    types = {quant: results[quant, False]["types"] for quant in QUANTS}
    assert types == {
        "F32": ["F32"],
        "F16": ["F16", "F32"],
        "BF16": ["BF16", "F32"],
        "Q8_0": ["F32", "Q8_0"],
        "Q6_K": ["F32", "Q6_K"],
        "Q5_K_M": ["F32", "Q5_K", "Q6_K"],
        "Q4_K_M": ["F32", "Q4_K", "Q6_K"],
        "Q4_0": ["F32", "Q4_0", "Q6_K"],
    }


@pytest.mark.long
def test_fewer_bits_cost_more(results: Results) -> None:
    order = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")
    divergences = [results[quant, False]["divergence"] for quant in order]
    assert divergences == sorted(divergences)
    assert divergences[0] < 1e-9
    assert divergences[1] < 1e-4
    sizes = [results[quant, False]["bytes"] for quant in order]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.long
@pytest.mark.parametrize("quant", ["Q4_K_M", "Q4_0"])
def test_an_importance_matrix_makes_the_error_smaller(results: Results, quant: str) -> None:
    """On rows that it was not computed from; its weights take as much room as without."""
    plain, weighed = results[quant, False], results[quant, True]
    assert weighed["divergence"] < 0.95 * plain["divergence"]
    assert 0 < weighed["bytes"] - plain["bytes"] < 1024, "that there was one is said in the metadata"


@pytest.mark.long
def test_the_importance_matrix_is_the_mean_square_of_what_meets_each_weight(results: Results) -> None:
    """As hooks of torch see it, in every layer."""
    result = results["importance", True]
    assert result["names"] == sorted(result["differences"])
    assert len(result["names"]) == 14
    # llama.cpp keeps keys and values in 16 bit.
    assert max(result["differences"].values()) < 5e-3


def test_experts_are_weighed_apart(results: Results) -> None:
    result = results["experts", True]
    assert result["positive"]
    assert result["sizes"]["blk.0.ffn_up_exps.weight"] == 4 * 256
    assert result["sizes"]["blk.0.ffn_down_exps.weight"] == 4 * 256
    assert result["sizes"]["blk.1.attn_q.weight"] == 256


def test_sizes_are_forecast_to_the_byte(results: Results) -> None:
    """Of models whose rows are no multiples of 256 as well, for which llama.cpp falls back to other types."""
    sizes: dict[str, tuple[int, int]] = results["sizes", True]["sizes"]
    assert len(sizes) == 3 * (4 + 3 * 4)
    assert {name: pair for name, pair in sizes.items() if pair[0] != pair[1]} == {}
