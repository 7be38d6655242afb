"""The header of a GGUF file: what the model is, and the shapes of its tensors. The weights are not read.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
#: More than any header has; beyond, the file is damaged.
_MOST_ENTRIES = 1_000_000
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9

#: ``general.architecture`` to ``model_type``.
_FAMILIES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
    "gpt2": "gpt2",
    "gptneox": "gpt_neox",
    "starcoder2": "starcoder2",
    "smollm3": "smollm3",
    "granite": "granite",
    "olmo2": "olmo2",
}
#: Keys of the metadata, after the architecture's name, to those of ``config.json``.
_KEYS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "context_length": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}


@dataclass(frozen=True)
class GgufHeader:
    """Metadata, arrays as their number of elements; and of each tensor its name and its shape, innermost first."""

    metadata: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]

    def config(self, where: str) -> dict[str, Any]:
        """What ``config.json`` would say of the model.

        Raises:
            UserError: If its architecture is not known.
        """
        name = self.metadata.get("general.architecture")
        family = _FAMILIES.get(name) if isinstance(name, str) else None
        if family is None:
            raise UserError(
                f"{where} is of the architecture {name}, whose memory cannot be told.",
                f"Known are {', '.join(sorted(_FAMILIES))}.",
            )
        config: dict[str, Any] = {"model_type": family}
        for key, ours in _KEYS.items():
            value = self.metadata.get(f"{name}.{key}")
            if isinstance(value, int):
                config[ours] = value
        if family == "llama" and config.get("num_experts"):
            config["model_type"] = "mixtral"
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, int):
            config.setdefault("vocab_size", tokens)
        embedding = self.tensors.get("token_embd.weight")
        if embedding is not None and len(embedding) == 2:
            config["vocab_size"] = embedding[1]
        config["tie_word_embeddings"] = "output.weight" not in self.tensors
        return config


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = len(MAGIC)

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from(code, self._data, self._at)
        self._at += struct.calcsize(code)
        return value

    def count(self) -> int:
        value = int(self.number("<Q"))
        if value > max(_MOST_ENTRIES, len(self._data)):
            raise ValueError("too many entries")
        return value

    def text(self) -> str:
        length = self.count()
        piece = self._data[self._at : self._at + length]
        if len(piece) < length:
            raise ValueError("cut short")
        self._at += length
        return piece.decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY or depth > 2:
            raise ValueError("unknown type")
        inner, length = int(self.number("<I")), self.count()
        if inner in _SCALARS:
            self._at += struct.calcsize(_SCALARS[inner]) * length
        else:
            for _ in range(length):
                self.value(inner, depth + 1)
        return length


def read_gguf_header(path: Path) -> GgufHeader:
    """Read a file's header.

    Raises:
        UserError: If the file cannot be read, is no GGUF of a known version, or is damaged.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[: len(MAGIC)] != MAGIC:
                raise UserError(
                    f"{path} is not a GGUF file.", "Give a GGUF file, or a directory with the model's config.json."
                )
            reader = _Reader(data)
            if (version := int(reader.number("<I"))) not in VERSIONS:
                raise UserError(f"{path} is GGUF of version {version}.", "Versions 2 and 3 are read; convert it again.")
            return _read(reader)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions.") from error
    except (ValueError, struct.error, IndexError, OverflowError) as error:
        raise UserError(f"{path} is damaged or cut short.", "Copy it again.") from error


def _read(reader: _Reader) -> GgufHeader:
    tensors, entries = reader.count(), reader.count()
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        name = reader.text()
        metadata[name] = reader.value(int(reader.number("<I")))
    shapes: dict[str, tuple[int, ...]] = {}
    for _ in range(tensors):
        name, dimensions = reader.text(), int(reader.number("<I"))
        if dimensions > 8:
            raise ValueError("too many dimensions")
        shapes[name] = tuple(int(reader.number("<Q")) for _ in range(dimensions))
        reader.number("<I")  # the type
        reader.number("<Q")  # the offset
    return GgufHeader(metadata, shapes)
