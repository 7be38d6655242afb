"""The same conversation is the same tokens in training and in the GGUF file, over the families of templates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.data.conversation import RowError
from core.helper import Helper
from core.template.mask import Masker
from tests.core.export.tiny_gguf import write_tiny_gguf
from tests.core.template.families import FAMILIES, Family
from tests.core.worker.export.llama.test_reader import Asked

pytest.importorskip("llama_cpp_py_sync")

#: llama.cpp's name of each way of cutting text. Vocabularies of SentencePiece need scores, which the toys have none of.
SPLITTING = {"bytes": "gpt-2", "words": "llama-bpe"}
#: Phi 3's special tokens swallow spaces, which llama.cpp knows of by the name of the model.
TESTED = [family for family in FAMILIES if family.kind in SPLITTING and not family.rstrip]
TURNS = [
    {"role": "system", "content": "Be brief.\n  Indent."},
    {"role": "user", "content": "the ticket – 12345, äöü 日本語 🚀?  "},
    {"role": "assistant", "content": "urgency: high\n\n- one"},
    {"role": "user", "content": "\nand now?"},
]
CONVERSATIONS = [TURNS[1:2], TURNS[1:], TURNS[:2], TURNS]


@pytest.fixture(scope="module")
def reader() -> Iterator[Asked]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with Helper("core.worker.export.llama") as helper:
            yield Asked(helper)


def write_family(path: Path, family: Family) -> Path:
    """A tiny model with the tokenizer and the template of a family."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    ours = family.tokenizer()
    named = {name: text for name, text in ours.special_tokens.items() if text}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=ours.backend, **named)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    model: Any = LlamaForCausalLM(config)
    splitting = SPLITTING[family.kind]
    return write_tiny_gguf(
        path, model, tokenizer, template=family.template, splitting=splitting, add_bos=bool(family.bos)
    )


@pytest.mark.parametrize("family", TESTED, ids=lambda family: family.name)
def test_a_prompt_is_the_same_tokens(family: Family, reader: Asked, tmp_path: Path) -> None:
    path = write_family(tmp_path / "family.gguf", family)
    loaded = reader.ask("load", base=str(path))
    assert loaded["ok"], loaded
    masker = Masker(family.tokenizer())
    compared = 0
    for messages in CONVERSATIONS:
        try:
            wanted = masker.prompt(messages), masker.prompt_ids(messages)
        except RowError:
            assert not reader.ask("tokenize", messages=messages)["ok"], "refused by both"
            continue
        found = reader.ask("tokenize", messages=messages)
        assert (found["text"], found["tokens"]) == wanted
        compared += 1
    assert compared >= 2
