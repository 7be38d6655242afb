"""A reader of GGUF files, independent of what writes them: llama.cpp's library, with fp32 caches and one thread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.worker.export.gguf.library import load_library

_CONTEXT = 512


class Reader:
    """A GGUF file, loaded.

    Args:
        path: The file.
        adapter: A LoRA adapter as GGUF that is added to it.
    """

    def __init__(self, path: Path, adapter: Path | None = None) -> None:
        llama = load_library()
        self._ffi, self._lib = llama.ffi, llama.lib
        settings = self._lib.llama_model_default_params()
        settings.n_gpu_layers = 0
        self._model = self._lib.llama_model_load_from_file(str(path).encode(), settings)
        assert self._model != self._ffi.NULL, f"llama.cpp cannot read {path}"
        self._vocabulary = self._lib.llama_model_get_vocab(self._model)
        choices = self._lib.llama_context_default_params()
        choices.n_ctx = choices.n_batch = choices.n_ubatch = _CONTEXT
        choices.n_threads = choices.n_threads_batch = 1
        choices.type_k = choices.type_v = 0
        choices.flash_attn_type = 0
        self._context = self._lib.llama_init_from_model(self._model, choices)
        assert self._context != self._ffi.NULL
        self._kept: list[Any] = []
        if adapter is not None:
            loaded = self._lib.llama_adapter_lora_init(self._model, str(adapter).encode())
            assert loaded != self._ffi.NULL, f"llama.cpp cannot read {adapter}"
            adapters = self._ffi.new("struct llama_adapter_lora *[]", [loaded])
            scales = self._ffi.new("float[]", [1.0])
            assert self._lib.llama_set_adapters_lora(self._context, adapters, 1, scales) == 0
            self._kept += [adapters, scales]

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of a text, special tokens in it as such."""
        raw = text.encode()
        room = self._ffi.new("llama_token[]", len(raw) + 16)
        count = self._lib.llama_tokenize(self._vocabulary, raw, len(raw), room, len(raw) + 16, add_special, True)
        assert count >= 0
        return list(room[0:count])

    def ends(self, token: int) -> bool:
        """Whether generation ends at a token."""
        return bool(self._lib.llama_vocab_is_eog(self._vocabulary, token))

    def metadata(self, key: str) -> str | None:
        """A value of the metadata as text."""
        room = self._ffi.new("char[]", 1 << 16)
        size = self._lib.llama_model_meta_val_str(self._model, key.encode(), room, 1 << 16)
        return None if size < 0 else self._ffi.string(room).decode()

    def template(self) -> str | None:
        """The chat template."""
        found = self._lib.llama_model_chat_template(self._model, self._ffi.NULL)
        return None if found == self._ffi.NULL else self._ffi.string(found).decode()

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits at every position of a sequence: ``(tokens, vocabulary)``."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        batch = self._lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place], batch.n_seq_id[place] = token, place, 1
            batch.seq_id[place][0], batch.logits[place] = 0, 1
        assert self._lib.llama_decode(self._context, batch) == 0
        size = self._lib.llama_vocab_n_tokens(self._vocabulary)
        rows = [
            np.frombuffer(
                self._ffi.buffer(self._lib.llama_get_logits_ith(self._context, place), size * 4), dtype=np.float32
            ).copy()
            for place in range(len(ids))
        ]
        self._lib.llama_batch_free(batch)
        return np.stack(rows)


def centered(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Logits with a mean of zero at each position: a constant that is added to all of them changes nothing."""
    result: npt.NDArray[Any] = logits - logits.mean(axis=-1, keepdims=True)
    return result


def mean_divergence(reference: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    """Mean Kullback-Leibler divergence in nats."""
    first, second = _log_softmax(reference), _log_softmax(found)
    return float((np.exp(first) * (first - second)).sum(axis=-1).mean())


def _log_softmax(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: npt.NDArray[Any] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
