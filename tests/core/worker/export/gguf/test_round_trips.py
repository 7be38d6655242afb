"""Random models of every family go through transformers, the converter and llama.cpp, which agree on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from core.export.gguf.checks import has_library
from tests.cases import cases
from tests.forking import Forks

from .apart import converter_in, lines_of

#: Rows of Llama's weights are moved, Mistral has a window and a tokenizer of SentencePiece's kind, gpt-oss has experts.
NAMES = ("llama", "mistral", "gpt-oss")
OTHERS = (
    *("llama3-rope", "mixtral", "qwen2", "qwen3", "qwen3-moe", "olmo2", "olmoe", "granite", "smollm3", "phi3"),
    *("gemma", "gemma2", "gemma3", "cohere", "gpt-neox", "starcoder2", "stablelm", "seed-oss", "lfm2", "lfm2-moe"),
    *("qwen2-moe", "deepseek-v2", "deepseek-v3", "dots1"),
)
pytestmark = pytest.mark.skipif(not has_library(), reason="llama-cpp-py-sync is not installed")
Results = dict[str, dict[str, Any]]


def round_trips(forks: Forks, directory: Path, home: Path, names: Sequence[str]) -> Results:
    """The results by architecture; in a single process, since most of the time goes to imports."""
    lines = lines_of(forks, "round_trips", str(directory), converter_in(home), *names)
    return {str(line["name"]): line for line in lines}


@pytest.fixture(scope="module")
def results(forks: Forks, converter_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return round_trips(forks, tmp_path_factory.mktemp("round-trips"), converter_home, NAMES)


@pytest.fixture(scope="module")
def others(forks: Forks, converter_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return round_trips(forks, tmp_path_factory.mktemp("round-trips"), converter_home, OTHERS)


def check_model(result: dict[str, Any]) -> None:
    """The GGUF file computes the same as the model."""
    assert "error" not in result
    # Relative to the spread of the logits: a model without any would equal every other.
    assert result["delta"] <= min(0.01, 0.05 * result["spread"])
    assert result["tokens"]
    assert result["with_special"], "programs put tokens before or after a prompt that training had not"
    assert result["template"]
    # The tokenizer's own end, and that of an answer.
    assert result["ends"] == [2, 4]


def check_adapter(result: dict[str, Any]) -> None:
    """The adapter has the same effect beside the base."""
    assert result["adapter_effect"] > 1
    assert result["adapter_delta"] <= 0.05


@cases("name", NAMES)
def test_a_model_comes_out_as_it_was(results: Results, name: str) -> None:
    check_model(results[name])


@pytest.mark.long
@cases("name", OTHERS)
def test_a_model_of_another_family_comes_out_as_it_was(others: Results, name: str) -> None:
    check_model(others[name])


def test_a_window_that_llama_cpp_does_not_compute_limits_the_context(results: Results) -> None:
    assert results["llama"]["context"] == 512
    assert results["mistral"]["context"] == 256


def test_the_tokenizer_of_a_base_that_was_gguf_is_copied(results: Results) -> None:
    result = results["from-gguf"]
    assert result["refused"].startswith("llama.cpp's converter does not know this model's tokenizer")
    assert "copied" not in result
    assert result["tokens"]
    assert result["templates"] == {"default": "{{ messages[0].content }}"}
    assert result["specials"] == {"bos_token": "<s>", "eos_token": "</s>"}


@cases("name", ["llama", "mistral"])
def test_an_adapter_does_beside_the_base_what_it_did(results: Results, name: str) -> None:
    """rsLoRA, single modules, embeddings, and weights whose rows are moved."""
    check_adapter(results[name])


@pytest.mark.long
@cases("name", ["qwen3", "phi3", "gpt-neox"])
def test_an_adapter_of_another_family_does_beside_the_base_what_it_did(others: Results, name: str) -> None:
    """Ranks and scales of single modules, and layers that are put together."""
    check_adapter(others[name])
