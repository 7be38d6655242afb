"""Row tokenization, with token boundaries where answers begin, since inference tokenizes the prompt separately."""

from __future__ import annotations

import contextlib
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from tokenizers import models

from core.data.conversation import RowError
from core.template.answer_turns import RowText
from core.template.tokenizer import ModelTokenizer

if TYPE_CHECKING:
    from typing import Self

IdsT = TypeVar("IdsT", bound=Sized)
MaskT = TypeVar("MaskT")
#: Token ids, 32-bit.
Ids: TypeAlias = "array[int]"


@dataclass(frozen=True)
class TokenRow(Generic[IdsT, MaskT]):
    """A row as a training sequence, in arrays of Python or numpy."""

    input_ids: IdsT
    """Token ids, 32-bit."""
    supervised: MaskT
    """A byte per token: 1 if it is trained on. Never the first token, which is not predicted."""
    further: tuple[Self, ...] = ()
    """Sequences for turns that the template renders differently once later turns follow; each turn is trained on in
    exactly one sequence.
    """
    rejected: Self | None = None
    """The prompt with the worse answer of a preference pair; this row has the better answer."""
    label: bool | None = None
    """True if the answer is labeled good; None for rows without a label."""

    def __len__(self) -> int:
        return len(self.input_ids)

    def with_further(self, further: Sequence[Self]) -> Self:
        """This row with further sequences."""
        return replace(self, further=tuple(further))

    @property
    def rows(self) -> tuple[Self, ...]:
        """This row and its further sequences."""
        return (self.with_further(()), *self.further) if self.further else (self,)

    @property
    def sequences(self) -> tuple[Self, ...]:
        """Sequences for the model: this row and, in a preference pair, the rejected row."""
        return (self,) if self.rejected is None else (self, self.rejected)

    @property
    def longest(self) -> int:
        """Tokens of its longest sequence, to which the length limit applies."""
        return max(len(part) for sequence in self.sequences for part in sequence.rows)

    @property
    def tokens(self) -> int:
        """Tokens of :attr:`sequences`, without further sequences."""
        return sum(map(len, self.sequences))


@dataclass(frozen=True)
class MaskedRow(TokenRow[Ids, bytearray]):
    """A row made by :class:`~core.template.mask.Masker`."""

    cut: int | None = None
    """Position at which the row is truncated, if it exceeds the greatest length."""
    left_out: str = ""
    """A sentence on parts of the prompt that the template does not render; empty if it renders all."""

    @property
    def supervised_count(self) -> int:
        """Number of tokens in the loss, without further sequences."""
        return self.supervised.count(1)


#: Most cached words, and most characters of them; beyond either, the cache is emptied.
KEPT_WORDS, KEPT_CHARACTERS = 1 << 16, 4 << 20

_CUT = re.compile(r"(?<=\S) (?=\S)")

# Known alternatives of pre-tokenization patterns. None matches a space after a non-space character, and none looks
# behind, or ahead at anything but spaces. So a match that ends before such a space ends there whatever follows, and
# matches from the space on do not depend on the text before it.
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
    """Tokenizes texts, word by word with a cache if that gives the same tokens.

    Args:
        tokenizer: Tokenizer of the model.
    """

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        self._tokenizer = tokenizer
        self.by_words = cuts_at_spaces(tokenizer)
        """True if words are cached."""
        self._first: dict[str, bytes] = {}
        """32-bit tokens of the first words of texts, up to the first split."""
        self._later: dict[str, bytes] = {}
        """Tokens of words and the space before each, by the word without the space."""
        self._last: dict[str, bytes] = {}
        """Tokens of the last words of texts that end with a space."""
        self._characters = 0

    def encode(self, texts: Sequence[str]) -> list[array[int]]:
        """Tokens of many texts at once, the same as from :meth:`ModelTokenizer.encode`."""
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
        # Odd words (empty, or with a space at either end) are never cached, so only texts with new words have them.
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
    """True if a tokenizer always splits before a single space between two non-space characters."""
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
    """True if a step splits there, False if not; None for an unknown step, which may merge across."""
    kind = None if step is None else step["type"]
    if kind == "Digits":
        return False
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return bool(step["use_regex"])
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"] and "Regex" in step["pattern"]:
        parts = _alternatives(step["pattern"]["Regex"])
        # The pattern must match all spaces: unmatched text is not split.
        return _ANY_SPACES in parts if _KNOWN.issuperset(parts) else None
    return None


def _alternatives(expression: str) -> list[str]:
    """Top-level alternatives of a regular expression."""
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


#: Most cached segments of text, since the text of a template repeats in every row.
_CACHE_ENTRIES = 4096

#: A segment of text with the offsets at which answers begin in it, or one special token.
_Piece = tuple["str | int", "tuple[int, ...]"]


class RowTokenizer:
    """Tokenizes rows, many at once.

    Text is split at special tokens, which no tokenization crosses, and the segments are cached. If an answer begins
    inside a segment, the part before it (the end of the prompt) is also tokenized separately. If its tokens are a
    prefix of the whole segment's tokens, one sequence is exact for prompt and row. If not (an answer begins with a
    newline that merges with the newline before it), the answer is tokenized after the tokens of the prompt, as the
    model would generate it. Later answers then get a sequence of their own, in which that place is tokenized as part
    of the prompt.

    Args:
        tokenizer: Tokenizer of the model.
        stop_ids: Tokens that end an answer.
        template: Text of the chat template, searched for special tokens.
    """

    def __init__(self, tokenizer: ModelTokenizer, stop_ids: Sequence[int], template: str) -> None:
        self._tokenizer = tokenizer
        self._words = WordTokenizer(tokenizer)
        self._stop_ids = tuple(stop_ids)
        texts = [text for text in (stop_text(tokenizer, token) for token in stop_ids) if text]
        self._cuts = tokenizer.cuts("\0".join([template, *tokenizer.special_tokens.values(), *texts]))
        self._splitter = any_of(self._cuts) if self._cuts else None
        self.stops = any_of(texts)
        self._count_stops = not all(text in self._cuts for text in texts)
        self._cache: dict[str, array[int]] = {}

    def tokenize(self, rows: Sequence[RowText]) -> list[list[MaskedRow] | RowError]:
        """Sequences of each row, or a ``no_stop_token`` error.

        A row that cannot be exact as one sequence becomes several; the sequence of the last answer comes first.
        """
        laid_out = [self._lay_out(row) for row in rows]
        known = self._prepare(laid_out)
        found: list[list[MaskedRow] | RowError] = []
        for row, pieces in zip(rows, laid_out, strict=True):
            try:
                found.append([self._whole(row)] if row.last is not None else self._assemble(row, pieces, known))
            except RowError as error:
                found.append(error)
        return found

    def encode(self, text: str) -> array[int]:
        """Tokens of one text."""
        pieces = self._lay_out(RowText(text, ()))
        known = self._prepare([pieces])
        ids = array("i")
        for piece, _ in pieces:
            ids.extend([piece] if isinstance(piece, int) else known[piece])
        return ids

    def _lay_out(self, row: RowText) -> list[_Piece]:
        starts = [start for start, _ in row.spans]
        parts = self._splitter.split(row.text) if self._splitter is not None else [row.text]
        pieces: list[_Piece] = []
        position = taken = 0
        for number, part in enumerate(parts):
            end = position + len(part)
            first = taken
            while taken < len(starts) and starts[taken] <= end:
                taken += 1
            offsets = tuple(start - position for start in starts[first:taken]) if taken > first else ()
            if number % 2:
                pieces.append((self._cuts[part], offsets))
            elif part or offsets:
                pieces.append((part, offsets))
            position = end
        return pieces

    def _prepare(self, laid_out: Sequence[Sequence[_Piece]]) -> dict[str, array[int]]:
        """Tokens of all segments; those that are not cached are tokenized in one call."""
        if len(self._cache) > _CACHE_ENTRIES:
            # Not cleared: rows before, which are not assembled yet, still have it.
            self._cache = {}
        wanted: dict[str, None] = {}
        for pieces in laid_out:
            for piece, offsets in pieces:
                if isinstance(piece, int):
                    continue
                if piece not in self._cache:
                    wanted[piece] = None
                for offset in offsets:
                    if 0 < offset < len(piece) and (head := piece[:offset]) not in self._cache:
                        wanted[head] = None
        texts = list(wanted)
        self._cache.update(zip(texts, self._words.encode(texts), strict=True))
        return self._cache

    def _assemble(self, row: RowText, pieces: Sequence[_Piece], known: Mapping[str, array[int]]) -> list[MaskedRow]:
        ids = array("i")
        starts: list[int] = []
        for piece, offsets in pieces:
            if isinstance(piece, int):
                ids.append(piece)
                if offsets:
                    text = self._tokenizer.added_tokens[piece].content
                    if any(0 < offset < len(text) for offset in offsets):
                        return self._split(row, len(starts))
                    starts += [len(ids) - (offset == 0) for offset in offsets]
                continue
            tokens = known[piece]
            for offset in offsets:
                if offset == 0:
                    starts.append(len(ids))
                elif offset == len(piece):
                    starts.append(len(ids) + len(tokens))
                else:
                    head = known[piece[:offset]]
                    if tokens[: len(head)] != head:
                        return self._split(row, len(starts))
                    starts.append(len(ids) + len(head))
            ids.extend(tokens)
        return [self._mark(row, ids, starts)]

    def _split(self, row: RowText, broken: int) -> list[MaskedRow]:
        """Two sequences: the tokens at the start of an answer differ when generated and as a part of the prompt."""
        spans, later = row.spans[: broken + 1], row.spans[broken + 1 :]
        start, end = spans[-1]
        ids = self.encode(row.text[:start])
        begun = len(ids)
        ids.extend(self._tokenizer.encode_continuation(row.text[start:end]))
        starts = [len(self.encode(row.text[:begin])) for begin, _ in spans[:-1]]
        own = self._mark(RowText(row.text[:end], spans), ids, [*starts, begun])
        if not later:
            return [own]
        following = RowText(row.text, later)
        pieces = self._lay_out(following)
        return [*self._assemble(following, pieces, self._prepare([pieces])), own]

    def _whole(self, row: RowText) -> MaskedRow:
        """A row supervised as a whole; its marked answers begin at token boundaries, as when generated."""
        spans = [*row.spans, *([] if row.last is None or row.last in row.spans else [row.last])]
        ids, position, starts = array("i"), 0, []
        for edge in (*(start for start, _ in spans), len(row.text)):
            whole = self.encode(row.text[:edge])
            if whole[: len(ids)] == ids:
                ids = whole
            else:
                ids.extend(self._tokenizer.encode_continuation(row.text[position:edge]))
            starts.append(len(ids))
            position = edge
        stops = [self._stop_after(row.text[:end], ids, start) for (_, end), start in zip(spans, starts, strict=False)]
        supervised = bytearray(b"\x01" * len(ids))
        for start, stop in zip(starts[: len(row.spans)], stops, strict=False):
            supervised[start : stop + 1] = bytes(stop + 1 - start)
        return MaskedRow(ids, supervised)

    def _mark(self, row: RowText, ids: array[int], starts: Sequence[int]) -> MaskedRow:
        supervised = bytearray(b"\x01" * len(ids) if row.inverted else len(ids))
        for (_, end), start in zip(row.spans, starts, strict=True):
            stop = self._stop_after(row.text[:end] if self._count_stops else "", ids, start)
            supervised[start : stop + 1] = b"\x01" * (stop + 1 - start)
        return MaskedRow(ids, supervised)

    def _stop_after(self, text: str, ids: array[int], start: int) -> int:
        """Position of the token that ends an answer; ``text`` is the text of the row up to the end of the answer."""
        stop = len(ids)
        for token in self._stop_ids:
            with contextlib.suppress(ValueError):
                stop = ids.index(token, start, stop)
        before = ids[: stop + 1]
        # There must be as many stop tokens up to there as stop texts.
        counts = not self._count_stops or sum(map(before.count, set(self._stop_ids))) == len(self.stops.findall(text))
        if stop == len(ids) or not counts:
            raise RowError("no_stop_token", "The token that ends an answer is not one token of this tokenizer.")
        return stop


def stop_text(tokenizer: ModelTokenizer, token: int) -> str:
    """Text of a stop token; empty if the tokenizer does not encode it as that token."""
    text = tokenizer.token_text(token)
    return text if text and tokenizer.encode([text])[0] == [token] else ""


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Pattern with one group that matches any of the texts, the longest at each position."""
    tree: dict[str, Any] = {}
    for text in texts:
        node = tree
        for character in text:
            node = node.setdefault(character, {})
        node[""] = {}
    return re.compile(f"({_expression(tree)})" if tree else "(?!)")


def _expression(tree: dict[str, Any]) -> str:
    """Alternatives with merged prefixes, since there may be thousands."""
    ends = "" in tree
    branches = []
    for character, below in tree.items():
        prefix = re.escape(character)
        while len(below) == 1 and "" not in below:
            ((character, below),) = below.items()
            prefix += re.escape(character)
        if character:
            branches.append(prefix + _expression(below))
    if not branches:
        return ""
    return f"(?:{'|'.join(branches)}){'?' if ends else ''}"
