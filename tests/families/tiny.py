"""Tiny models by family: configurations of the real classes with all features of a family, few layers deep."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from tests.tiny_model import CHATML, train_byte_level

#: Rows of the tokenizer and of the embeddings.
VOCABULARY = 320
_CORPUS = ["the ticket area urgency normal high low ref null user assistant system"] * 4


#: Fields of most configurations.
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


class Family:
    """A family: its configuration and its features, as ``families.yaml`` has them."""

    def __init__(self, described: dict[str, Any]) -> None:
        self._described = described
        #: Models that people tune, of this family.
        self.models: str = described.get("models", "")
        #: True if it has a tower besides its text part.
        self.sees = "vision" in described
        #: True if it has experts.
        self.experts = "experts" in described
        #: True if some layers carry a state from token to token instead of attending.
        self.hybrid = "hybrid" in described

    def config(self, **values: Any) -> Any:
        """The configuration that its ``config.json`` has, with other values of its text part."""
        import transformers

        described = self._described
        name, values = described.get("text", described["config"]), described.get("values", {}) | values
        text = getattr(transformers, name)(**SHAPE | copy.deepcopy(values))
        if not self.sees:
            return text
        parts = {"text_config": text.to_dict(), "vision_config": dict(described["vision"])}
        return getattr(transformers, described["config"])(**parts, **described.get("whole", {}))


def _read(file: str) -> dict[str, Family]:
    """The families in a file, whose entries with a leading underscore are values that several share."""
    described = yaml.safe_load(Path(__file__).with_name(file).read_text(encoding="utf-8"))
    return {name: Family(values) for name, values in described.items() if not name.startswith("_")}


FAMILIES = _read("families.yaml")
#: Further families, whose experts are of other kinds.
OTHERS = _read("others.yaml")


def write_family(name: str, directory: Path, *, dtype: str = "bfloat16", **values: Any) -> Path:
    """A random model of a family with a byte-level tokenizer and ChatML, saved as published ones are.

    Args:
        name: A key of :data:`FAMILIES` or :data:`OTHERS`.
        directory: Where it goes.
        dtype: Of its weights.
        values: Of its configuration, in place of the family's.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast

    family = (FAMILIES | OTHERS)[name]
    backend = train_byte_level(_CORPUS, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], VOCABULARY)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token="<|im_start|>"
    )
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    loader = AutoModelForImageTextToText if family.sees else AutoModelForCausalLM
    model = loader.from_config(family.config(**values), dtype=getattr(torch, dtype))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
