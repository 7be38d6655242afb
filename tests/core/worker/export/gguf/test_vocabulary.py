from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from core.worker.export.gguf.vocabulary import (
    _name_by_rules,
    adds_space_prefix,
    is_sentencepiece,
    name_for_blanks,
    prefix_difference,
    sentencepiece_vocabulary,
)
from tests.cases import cases

RULES: list[list[Any]] = yaml.safe_load(Path(__file__).with_name("rules.yaml").read_text(encoding="utf-8"))


@cases(("rules", "ignores_merges", "normalizer", "name"), RULES)
def test_a_pre_tokenizer_is_known_by_rules_that_are_exactly_those(
    rules: dict[str, Any], ignores_merges: bool, normalizer: dict[str, Any] | None, name: str | None
) -> None:
    model = {"type": "BPE", "ignore_merges": ignores_merges}
    assert _name_by_rules({"model": model, "pre_tokenizer": rules, "normalizer": normalizer}) == name


def test_scores_are_in_the_order_of_the_merges() -> None:
    content = {
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "unk_token": "<unk>",
            "vocab": {"<unk>": 0, "<0x0A>": 1, "a": 2, "b": 3, "ab": 4, "abab": 5, "<end>": 6},
            "merges": [["a", "b"], "ab ab"],
        },
        "added_tokens": [
            {"id": 0, "content": "<unk>", "special": True},
            {"id": 6, "content": "<end>", "special": True},
            {"id": 7, "content": "\u2581\u2581", "special": False},
        ],
    }
    assert is_sentencepiece(content)
    tokens, scores, kinds = sentencepiece_vocabulary(content, 9)
    assert tokens == [b"<unk>", b"<0x0A>", b"a", b"b", b"ab", b"abab", b"<end>", b"  ", b"[PAD8]"]
    assert kinds == [2, 6, 1, 1, 1, 1, 3, 4, 5]
    assert scores[4] > scores[5] > scores[2]
    assert all(map(math.isfinite, scores))


@cases(
    ("content", "begins", "adds", "told"),
    [
        (
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend"}, {"type": "Replace"}]}},
            True,
            True,
            "",
        ),
        ({"normalizer": {"type": "Replace"}}, False, False, ""),
        (
            {"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "always"}},
            True,
            True,
            "gets one more from llama.cpp",
        ),
        ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}}, True, False, ""),
        ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}}, False, True, "after each special token"),
        ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never"}}, False, False, ""),
    ],
)
def test_a_space_before_text_is_where_the_tokenizer_puts_one_or_the_difference_is_reported(
    content: dict[str, Any], begins: bool, adds: bool, told: str
) -> None:
    assert adds_space_prefix(content, begins) is adds
    note = prefix_difference(content, begins)
    assert told in note if note else not told


def with_added(swallowing: str, keeping: str, **further: Any) -> dict[str, Any]:
    """A tokenizer with special tokens that swallow the blanks after them, and some that do not."""
    added = [{"content": text, "rstrip": True, **further} for text in swallowing.split()]
    added += [{"content": text, "rstrip": False} for text in keeping.split()]
    return {"model": {"vocab": {"a": 0}}, "added_tokens": added}


#: As in Phi 3, in Phi 4 mini, and in another family.
PHI3 = with_added("</s> <|user|> <|end|>", "<unk> <s> <|endoftext|>")
PHI4 = with_added("<|user|> <|end|>", "<|endoftext|>")
OTHER = with_added("", "<unk> <s> </s> <|endoftext|> <|user|>")


@cases(
    ("content", "name", "changed", "such_as"),
    [
        (PHI3, "tickets", "tickets (Phi-3)", None),
        (PHI3, "", "Phi-3", None),
        (PHI3, "My-Phi3-tickets", "My-Phi3-tickets", None),
        (OTHER, "tickets", "tickets", None),
        (OTHER, "", "", None),
        (OTHER, "no-Phi-3, and no phi3", "no-Phi 3, and no phi 3", None),
        ({"model": {}}, "phi-3", "phi 3", None),
        ({"model": {"type": "Unigram", "vocab": [["<unk>", 0.0]]}}, "phi-3", "phi 3", None),
        (PHI4, "phi-3", "phi 3", "<|end|>"),
        (with_added("</s> <|user|> <|end|>", "<unk> <s> <|endoftext|> <|b|>"), "phi-3", "phi-3", "<|b|>"),
        (with_added("<mask>", "<unk>", rstrip=False, lstrip=True), "phi-3", "phi 3", "<mask>"),
    ],
)
def test_a_name_makes_llama_cpp_strip_the_same_blanks_or_the_difference_is_reported(
    content: dict[str, Any], name: str, changed: str, such_as: str | None
) -> None:
    found, note = name_for_blanks(name, content)
    assert found == changed
    assert (note is None) is (such_as is None)
    assert note is None or f"such as {such_as}, are swallowed" in note
