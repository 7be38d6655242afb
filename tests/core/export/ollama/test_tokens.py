"""Tokens that the reader of a GGUF file adds, from its metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from core.errors import UserError
from core.export.ollama.modelfile import adds_bos


def write(path: Path, *, model: str = "gpt2", pre: str = "", bos: bool | None = None, eos: bool | None = None) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    if pre:
        writer.add_tokenizer_pre(pre)
    if bos is not None:
        writer.add_add_bos_token(bos)
    if eos is not None:
        writer.add_add_eos_token(eos)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("said", [True, False])
def test_the_metadata_say_it(tmp_path: Path, said: bool) -> None:
    assert adds_bos(write(tmp_path / "m.gguf", bos=said)) is said


def test_a_sentencepiece_tokenizer_adds_it_unless_told_otherwise(tmp_path: Path) -> None:
    assert adds_bos(write(tmp_path / "a.gguf", model="llama"))
    assert not adds_bos(write(tmp_path / "b.gguf", model="llama", bos=False))


def test_some_have_it_whatever_the_metadata_say(tmp_path: Path) -> None:
    assert adds_bos(write(tmp_path / "m.gguf", pre="lfm2", bos=False))


def test_a_file_that_does_not_say_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add_bos_token"):
        adds_bos(write(tmp_path / "m.gguf"))


def test_an_end_of_text_after_every_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="end of text added to every prompt"):
        adds_bos(write(tmp_path / "m.gguf", bos=True, eos=True))
