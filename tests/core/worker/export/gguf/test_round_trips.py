"""Random models of every family go through transformers, the converter and llama.cpp, which agree on all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from core.export.llama_cpp import has_library
from tests.forking import Forks
from tests.short_list import long_but

from .apart import converter_in, lines_of

#: Rows of Llama's weights are moved, Mistral has a window and a tokenizer of SentencePiece's kind, gpt-oss has experts.
NAMES = ("llama", "mistral", "gpt-oss")
OTHERS = (
    *("llama3-rope", "mixtral", "qwen2", "qwen3", "qwen3-moe", "olmo2", "olmoe", "granite", "smollm3", "phi3"),
    *("gemma", "gemma2", "gemma3", "cohere", "gpt-neox", "starcoder2", "stablelm", "seed-oss", "lfm2", "lfm2-moe"),
    *("qwen2-moe", "deepseek-v2", "deepseek-v3", "dots1"),
)
pytestmark = pytest.mark.skipif(not has_library(), reason="llama-cpp-py-sync is not installed")
Result = dict[str, Any]


@pytest.fixture(scope="module")
def result_of(forks: Forks, converter_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    """The result for an architecture; a single process makes all of a group, since most of the time goes to imports."""

    @functools.cache
    def made(names: Sequence[str]) -> dict[str, Result]:
        directory = str(tmp_path_factory.mktemp("round-trips"))
        lines = lines_of(forks, "round_trips", directory, converter_in(converter_home), *names)
        return {str(line["name"]): line for line in lines}

    return lambda name: made(OTHERS if name in OTHERS else NAMES)[name]


@pytest.mark.parametrize("name", long_but(NAMES, [*NAMES, *OTHERS]))
def test_a_model_comes_out_as_it_was(result_of: Callable[[str], Result], name: str) -> None:
    """The GGUF file computes the same as the model."""
    result = result_of(name)
    assert "error" not in result
    # Relative to the spread of the logits: a model without any would equal every other.
    assert result["delta"] <= min(0.01, 0.05 * result["spread"])
    assert result["tokens"]
    assert result["with_special"], "programs put tokens before or after a prompt that training had not"
    assert result["template"]
    # The tokenizer's own end, and that of an answer.
    assert result["ends"] == [2, 4]


def test_a_window_that_llama_cpp_does_not_compute_limits_the_context(result_of: Callable[[str], Result]) -> None:
    assert result_of("llama")["context"] == 512
    assert result_of("mistral")["context"] == 256


def test_the_tokenizer_of_a_base_that_was_gguf_is_copied(result_of: Callable[[str], Result]) -> None:
    result = result_of("from-gguf")
    assert result["refused"].startswith("llama.cpp's converter does not know this model's tokenizer")
    assert "copied" not in result
    assert result["tokens"]
    assert result["templates"] == {"default": "{{ messages[0].content }}"}
    assert result["specials"] == {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("name", long_but(["llama", "mistral"], ["llama", "mistral", "qwen3", "phi3", "gpt-neox"]))
def test_an_adapter_has_the_same_effect_beside_the_base(result_of: Callable[[str], Result], name: str) -> None:
    """rsLoRA, ranks and scales of single modules, embeddings, and weights whose rows are moved or joined."""
    result = result_of(name)
    assert result["adapter_effect"] > 1
    assert result["adapter_delta"] <= 0.05
