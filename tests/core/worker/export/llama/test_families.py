"""The same conversation is the same tokens in training and in the GGUF file, over the families of templates."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from core.data.conversation import RowError
from core.helper import Helper
from core.template.mask import Masker
from core.worker.export.gguf.write import GgufOptions, write_gguf
from tests.cases import cases
from tests.core.export.tiny_gguf import write_tiny_gguf
from tests.core.template.families import FAMILIES, GEMMA3, PHI3, Family
from tests.core.template.toy_tokenizers import save
from tests.core.worker.export.llama.test_reader import Asked
from tests.families.tiny import SHAPE

pytest.importorskip("llama_cpp_py_sync")

#: llama.cpp's name of each way of cutting text. Tokenizers of SentencePiece's kind are written by the export, as their
#: scores are: they are in no file of the model.
SPLITTING = {"bytes": "gpt-2", "words": "llama-bpe"}
TURNS = [
    {"role": "system", "content": "Be brief.\n  Indent."},
    {"role": "user", "content": "the ticket – 12345, äöü 日本語 🚀?  "},
    {"role": "assistant", "content": "urgency: high\n\n- one"},
    {"role": "user", "content": "\nand now?"},
]
CONVERSATIONS = [TURNS[1:2], TURNS[1:], TURNS[:2], TURNS]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with Helper("core.worker.export.llama", str(tmp_path_factory.getbasetemp())) as helper:
            yield Asked(helper)


def tiny_llama(vocabulary: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    more = {"vocab_size": vocabulary, "num_hidden_layers": 1, "max_position_embeddings": 1024}
    return LlamaForCausalLM(LlamaConfig(**SHAPE | more, tie_word_embeddings=True))


def write_family(path: Path, family: Family) -> Path:
    """A tiny model with the tokenizer and the template of a family."""
    from transformers import PreTrainedTokenizerFast

    ours = family.tokenizer()
    named = {name: text for name, text in ours.special_tokens.items() if text}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=ours.backend, **named)
    return write_tiny_gguf(
        path,
        tiny_llama(len(tokenizer)),
        tokenizer,
        template=family.template,
        splitting=SPLITTING[family.kind],
        add_bos=bool(family.bos),
    )


def export_family(path: Path, family: Family, name: str) -> tuple[str, ...]:
    """The same model as the export writes it; returns the export's notes."""
    ours = family.tokenizer()
    named = {key: text for key, text in ours.special_tokens.items() if text}
    directory = save(path.parent / "model", ours.backend, stops=family.stops, **named)
    tiny_llama(ours.backend.get_vocab_size()).save_pretrained(directory)
    options = GgufOptions(template=family.template, stops=tuple(ours.stop_ids), name=name)
    return write_gguf(directory, path, "F32", options, lambda _detail, _done, _total: None)


def compare(family: Family, reader: Asked, path: Path) -> list[list[dict[str, str]]]:
    """The conversations that a file makes other tokens of than training; all that are refused are so by both."""
    loaded = reader.ask("load", base=str(path))
    assert loaded["ok"], loaded
    masker = Masker(family.tokenizer())
    compared, different = 0, []
    for messages in CONVERSATIONS:
        try:
            wanted = masker.prompt(messages), masker.prompt_ids(messages)
        except RowError:
            assert not reader.ask("tokenize", messages=messages)["ok"], "refused by both"
            continue
        found = reader.ask("tokenize", messages=messages)
        assert found["text"] == wanted[0]
        if found["tokens"] != wanted[1]:
            different.append(messages)
        compared += 1
    assert compared >= 2
    return different


@cases("family", [family for family in FAMILIES if family.kind in SPLITTING], ids=lambda family: family.name)
def test_a_prompt_is_the_same_tokens(family: Family, reader: Asked, tmp_path: Path) -> None:
    assert compare(family, reader, write_family(tmp_path / "family.gguf", family)) == []


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.kind not in SPLITTING], ids=lambda family: family.name
)
@pytest.mark.usefixtures("converter")
def test_a_prompt_is_the_same_tokens_with_scores_of_the_export(family: Family, reader: Asked, tmp_path: Path) -> None:
    path = tmp_path / "family.gguf"
    # llama.cpp decides by the name: only in a Phi 3 do special tokens strip blanks.
    told = export_family(path, family, "tickets" if family is PHI3 else "phi-3 and other tickets")
    different = compare(family, reader, path)
    if family is not GEMMA3:
        assert (told, different) == ((), [])
        return
    # llama.cpp truly differs: before a text that begins with a blank, this tokenizer puts no other.
    (note,) = told
    assert note.startswith("Text that begins with a blank after a special token gets one more from llama.cpp")
    assert different == [messages for messages in CONVERSATIONS if messages[0]["role"] == "system"], "with an indent"
    prefixing = always_prefixing(family.tokenizer().backend)
    for messages in different:
        found = reader.ask("tokenize", messages=messages)
        assert found["tokens"] == prefixing.encode(found["text"], add_special_tokens=False).ids, "one more, as told"


def always_prefixing(backend: Tokenizer) -> Tokenizer:
    """The same tokenizer, with a space before each piece of text whatever it begins with."""
    content = json.loads(backend.to_str())
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    content["pre_tokenizer"] = None
    content["normalizer"] = {"type": "Sequence", "normalizers": [prepend, replace]}
    return Tokenizer.from_str(json.dumps(content))
