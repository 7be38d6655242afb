"""Toy tokenizers of the kinds that real models have, made on the fly."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "the ticket area urgency normal high low ref null user assistant system model tool answer question hello world",
    "What is the capital of France? The capital of France is Paris. It has two million people.\n\nBut no more.\n",
    "think step by step\n\nfirst, second, third:\n- one\n- two\n\n\nfinal <think> reason </think> [INST] a [/INST]",
    'def add(a, b):\n    return a + b\n\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n### Response:\n',
] * 4

#: Llama 3's and Qwen's way to cut text before merging.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

#: Special tokens of Phi 3 that do not swallow the spaces after them, as its others do.
SWALLOW_NOTHING = ("<unk>", "<s>", "<|endoftext|>")
KINDS = ("bytes", "words", "first", "always", "legacy")


@functools.cache
def make_backend(kind: str, specials: tuple[str, ...], rstrip: bool = False, newlines: bool = False) -> Tokenizer:
    """Tokenizer of a kind of ``KINDS``.

    Args:
        kind: How it cuts text.
        specials: Its special tokens.
        rstrip: Whether those swallow the spaces after them, all but three of them, as Phi 3's do.
        newlines: Whether one and two newlines are tokens that merge with nothing, as Gemma's are.
    """
    backend = Tokenizer(models.BPE(byte_fallback=kind in ("first", "always", "legacy"), unk_token=None))
    alphabet: list[str] = []
    initial = list(specials)
    if kind == "bytes":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif kind == "words":
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    elif kind in ("first", "always"):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=kind, split=False)
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    if kind in ("bytes", "words"):
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = [chr(code) for code in range(0x20, 0x7F)] + ["▁"]
        initial += [f"<0x{byte:02X}>" for byte in range(256)]
    corpus = CORPUS if kind in ("bytes", "words") else [word for text in CORPUS for word in text.split(" ")]
    backend.train_from_iterator(
        corpus,
        trainers.BpeTrainer(vocab_size=700, special_tokens=initial, initial_alphabet=alphabet, show_progress=False),
    )
    state = json.loads(backend.to_str())
    # The trainer makes byte tokens special; they are ordinary, and only the model's own special tokens are.
    state["added_tokens"] = [
        {**token, "rstrip": rstrip and token["content"] not in SWALLOW_NOTHING, "normalized": False}
        for token in state["added_tokens"]
        if token["content"] in specials
    ]
    made = Tokenizer.from_str(json.dumps(state))
    if newlines:
        made.add_tokens([AddedToken("\n", normalized=False), AddedToken("\n\n", normalized=False)])
    return made


def id_of(backend: Tokenizer, text: str) -> int:
    """The token that a text is as a whole."""
    found = backend.token_to_id(text)
    assert found is not None, text
    return found


def save(
    directory: Path, backend: Tokenizer, *, template: str | None = None, stops: Sequence[str] = (), **named: str
) -> Path:
    """Write a tokenizer as a model's directory has it."""
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    ids = [id_of(backend, text) for text in stops]
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    return directory
