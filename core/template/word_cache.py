"""Word cache: each word is tokenized once, for tokenizers whose tokens never cross word boundaries.

Most tokenizers split text into words (pre-tokenization) before they look for tokens, and never merge across words. All
of the usual rules split before a single space between two non-space characters, whatever the text around it; so the
words of a text can be looked up one by one, which takes a fraction of the time. A tokenizer is recognized as such by
its rules alone: with any unknown rule, texts are tokenized whole.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import models

from core.template.tokenizer import ModelTokenizer

#: Most cached words, and most characters of all of them; beyond either the cache is emptied.
KEPT_WORDS, KEPT_CHARACTERS = 1 << 16, 4 << 20

_CUT = re.compile(r"(?<=\S) (?=\S)")

# Alternatives of the pre-tokenization patterns of tokenizers. None of them matches a space after a non-space character,
# and none looks behind, or ahead at anything but spaces: so a match that ends before such a space ends there whatever
# follows, and the matches from the space on do not depend on the text before it.
_ANY_SPACES = r"\s+"
_CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_KNOWN = frozenset(
    (
        *(_ANY_SPACES, r"\s+(?!\S)", r"\s*[\r\n]+", r"\s*[\r\n]"),
        *(_CONTRACTED, "'(?i:[sdmt]|ll|ve|re)", "'s", "'t", "'re", "'ve", "'m", "'ll", "'d"),
        *(r" ?\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"),
        *(r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+", r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"),
        *_CASED,
        *(f"{word}{_CONTRACTED}?" for word in _CASED),
        *(r" ?\p{N}+", r"\p{N}", r"\p{N}+", r"\p{N}{1,3}", r"\d", r"\d+", r"[0-9]"),
        *(r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"),
        *(r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", r" ?[\p{P}\p{S}]+[\r\n]*", r"[一-龥぀-ゟ゠-ヿ]+"),
    )
)


class WordTokenizer:
    """Tokenizes texts, word by word if that gives the same tokens.

    Args:
        tokenizer: The model's.
    """

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        self._tokenizer = tokenizer
        self.by_words = cuts_at_spaces(tokenizer)
        """Whether words are looked up in the cache."""
        self._first: dict[str, bytes] = {}
        """First words of texts, up to the first split, to their tokens of 32 bits."""
        self._later: dict[str, bytes] = {}
        """Words after a space, without that space, to the tokens of both."""
        self._last: dict[str, bytes] = {}
        """Last words of texts that end with a space, to their tokens."""
        self._characters = 0

    def encode(self, texts: Sequence[str]) -> list[array[int]]:
        """Tokens of many texts at once, the same as those of :meth:`ModelTokenizer.encode`."""
        if not self.by_words:
            return [array("i", ids) for ids in self._tokenizer.encode(texts)]
        known = (self._first, self._later, self._last)
        if sum(map(len, known)) > KEPT_WORDS or self._characters > KEPT_CHARACTERS:
            for kept in known:
                kept.clear()
            self._characters = 0
        cut = [text.split(" ") for text in texts]
        first = [words.pop(0) for words in cut]
        last: dict[int, str] = {}
        new = set().union(*cut).difference(self._later)
        # Odd words (empty, or with a space at an end) are never cached, so only texts with new words can have them.
        odd = {word for word in new if not word or word[0].isspace() or word[-1].isspace()}
        unsure = [
            place
            for place, words in enumerate(cut)
            if words and (first[place][-1:].isspace() or not odd.isdisjoint(words))
        ]
        if unsure:
            for place in unsure:
                first[place], *words = _CUT.split(texts[place])
                if words and words[-1][-1].isspace():
                    last[place] = words.pop()
                cut[place] = words
            new = set().union(*cut).difference(self._later)
        self._learn(set(first).difference(self._first), new, set(last.values()).difference(self._last))
        found: list[array[int]] = []
        for place, words in enumerate(cut):
            ids = array("i", self._first[first[place]])
            ids.frombytes(b"".join(map(self._later.__getitem__, words)))
            if place in last:
                ids.frombytes(self._last[last[place]])
            found.append(ids)
        return found

    def _learn(self, first: Iterable[str], later: Iterable[str], last: Iterable[str]) -> None:
        """Tokenize words that are not cached."""
        begin, follow, end = list(first), list(later), list(last)
        words = [*begin, *(f" {word}" for word in (*follow, *end))]
        self._characters += sum(map(len, words))
        packed = iter([array("i", ids).tobytes() for ids in self._tokenizer.encode(words)])
        self._first.update(zip(begin, packed, strict=False))
        self._later.update(zip(follow, packed, strict=False))
        self._last.update(zip(end, packed, strict=False))


def cuts_at_spaces(tokenizer: ModelTokenizer) -> bool:
    """Whether a tokenizer always splits before a single space between two non-space characters."""
    model = tokenizer.backend.model
    if not isinstance(model, models.BPE) or model.dropout:
        return False
    if (normalizer := tokenizer.state["normalizer"]) is not None and normalizer != {"type": "NFC"}:
        return False
    for token in tokenizer.added_tokens.values():
        # It must neither contain such a space nor strip an adjacent one.
        reaches = token.lstrip or token.rstrip or token.single_word
        if reaches or token.content == " " or " " in token.content.strip(" "):
            return False
        if token.content.strip(" ") and token.content != token.content.strip(" "):
            return False
    before = tokenizer.state["pre_tokenizer"]
    steps = [before] if before is None or before["type"] != "Sequence" else before["pretokenizers"]
    found = [_cuts(step) for step in steps]
    return True in found and None not in found


def _cuts(step: Any) -> bool | None:
    """Whether a step splits there; None for an unknown step, which may merge across."""
    kind = None if step is None else step["type"]
    if kind == "Digits":
        return False
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return bool(step["use_regex"])
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"] and "Regex" in step["pattern"]:
        parts = _alternatives(step["pattern"]["Regex"])
        # Only a pattern that matches all spaces splits before each: text that no pattern matches is not split.
        return _ANY_SPACES in parts if _KNOWN.issuperset(parts) else None
    return None


def _alternatives(expression: str) -> list[str]:
    """Top-level alternatives of a pattern, outside of groups and sets."""
    parts, start, depth, in_set, position = [], 0, 0, False, 0
    while position < len(expression):
        character = expression[position]
        if character == "\\":
            position += 1
        elif in_set:
            in_set = character != "]"
        elif character == "[":
            in_set = True
        elif character in "()":
            depth += 1 if character == "(" else -1
        elif character == "|" and not depth:
            parts.append(expression[start:position])
            start = position + 1
        position += 1
    return [*parts, expression[start:]]
