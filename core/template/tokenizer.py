"""Tokenizer of a model, loaded with the tokenizers library alone, without transformers.

Rows are tokenized with token boundaries where answers begin, since inference tokenizes the prompt separately.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import json
import os
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from tokenizers import AddedToken, Tokenizer, models

from core.data.conversation import RowError
from core.errors import UserError, is_panic
from core.models.description import read_description
from core.small_files import read_small
from core.template.answer_turns import RowText
from core.template.builtin import TEMPLATE_LIMIT
from core.template.render import ChatTemplate
from core.text import one_line

if TYPE_CHECKING:
    from typing import Self


_NUMBER = re.compile(r"[0-9]{1,9}")
#: Names of special tokens in tokenizer_config.json, as in transformers.
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
#: Tokenizer files that transformers can convert to a tokenizer.json.
_OTHER_FORMS = ("tokenizer.model", "spiece.model", "tekken.json", "vocab.json", "vocab.txt")
#: Texts that may not merge with the text after them; every tokenizer has one such text.
_ANCHORS = ("\n", "\0", "\x01", "a", "0", ".")
#: Length in tokenizer_config.json that means no limit.
_NO_LENGTH = 1 << 30
#: Largest tokenizer.json, and largest other JSON file, in bytes; the largest known tokenizers have about 35 MB.
_TOKENIZER_LIMIT, _SETTINGS_LIMIT = 512 << 20, 64 << 20


class ModelTokenizer:
    """Tokenizer of a model: encoding, decoding and special tokens.

    Args:
        backend: The tokenizer of the tokenizers library; truncation and padding are off.
        special_tokens: Name (``bos_token``) to text.
        stop_ids: Tokens that end an answer.
        chat_template: The model's own chat template, or None.
        tool_template: Its separate template for conversations with tools, or None.
        max_length: Context length of the model, if known.
        vocabulary_size: Vocabulary size of the model, including padding of the embeddings; None to take it from the
            tokenizer.
    """

    def __init__(
        self,
        backend: Tokenizer,
        *,
        special_tokens: Mapping[str, str],
        stop_ids: Iterable[int] = (),
        chat_template: str | None = None,
        tool_template: str | None = None,
        max_length: int | None = None,
        vocabulary_size: int | None = None,
    ) -> None:
        self.backend = backend
        self.special_tokens = dict(special_tokens)
        self.stop_ids = tuple(dict.fromkeys(stop_ids))
        self.chat_template = chat_template
        self.tool_template = tool_template
        self.max_length = max_length
        self.added_tokens: dict[int, AddedToken] = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(number for number, token in self.added_tokens.items() if token.special)
        self.vocabulary_size = vocabulary_size or int(backend.get_vocab_size(with_added_tokens=True))

    def own_template(self, now: datetime | None = None) -> ChatTemplate | None:
        """The model's own chat template, or None; ``now`` as in :class:`ChatTemplate`."""
        if not self.chat_template:
            return None
        return ChatTemplate(self.chat_template, self.special_tokens, with_tools=self.tool_template, now=now)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of many texts at once. No special tokens are added; special tokens in a text are encoded as such.

        Raises:
            UserError: If the tokenizers library fails.
        """
        if not texts:
            return []
        try:
            return [found.ids for found in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        except BaseException as error:  # as in _read_backend
            if not (isinstance(error, Exception) or is_panic(error)):
                raise
            reason = one_line(str(error), 160).rstrip(".")
            raise UserError(
                f"The model's tokenizer fails: {reason}.", "Copy it again from where the model is from."
            ) from error

    def encode_continuation(self, text: str) -> list[int]:
        """Tokens of text that follows other text, without the space that some tokenizers prepend to their input."""
        if self._adds_prefix:
            for anchor in _ANCHORS:
                lead, both = self.encode([anchor, anchor + text])
                if both[: len(lead)] == lead:
                    return both[len(lead) :]
        return self.encode([text])[0]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, including special tokens."""
        return str(self.backend.decode(list(ids), skip_special_tokens=False))

    def token_id(self, text: str) -> int | None:
        """Token of a whole text, or None."""
        found: int | None = self.backend.token_to_id(text)
        return found

    def token_text(self, token: int) -> str:
        """Text of a token; an incomplete character becomes U+FFFD."""
        return self.token_bytes(token).decode("utf-8", errors="replace")

    def token_texts(self, ids: Iterable[int]) -> list[str]:
        """Text of each token. A character made of several tokens is in the text of the last of them."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return [decoder.decode(self.token_bytes(token)) for token in ids]

    @functools.lru_cache(maxsize=65536)  # noqa: B019 - as long-lived as the tokenizer itself
    def token_bytes(self, token: int) -> bytes:
        """Bytes of a token."""
        added = self.added_tokens.get(token)
        if added is not None:
            return added.content.encode()
        raw: str | None = self.backend.id_to_token(token)
        if raw is None:
            return f"<{token}>".encode()
        if "ByteLevel" in self._decoders:
            alphabet = _byte_alphabet()
            if all(character in alphabet for character in raw):
                return bytes(alphabet[character] for character in raw)
            return raw.encode()
        if "ByteFallback" in self._decoders and len(raw) == 6 and raw.startswith("<0x") and raw.endswith(">"):
            return bytes([int(raw[3:5], 16)])
        return raw.replace("\u2581", " ").encode()

    @functools.cached_property
    def text_prefix(self) -> list[int]:
        """Tokens that the tokenizer puts before plain text, such as the beginning-of-sequence token."""
        with_added = self.backend.encode("a", add_special_tokens=True).ids
        without = self.backend.encode("a", add_special_tokens=False).ids
        for place in range(len(with_added) - len(without) + 1):
            if with_added[place : place + len(without)] == without:
                return [int(token) for token in with_added[:place]]
        return []

    @property
    def eos_id(self) -> int | None:
        """End-of-sequence token."""
        eos = self.special_tokens.get("eos_token")
        return None if eos is None else self.token_id(eos)

    def cuts(self, text: str) -> dict[str, int]:
        """Special tokens in a text that split its tokenization, regardless of the text around them: text to id.

        Tokens that strip adjacent spaces, or that overlap with another token, are excluded. Empty if the tokenizer
        treats the beginning of a text differently from its middle.
        """
        if "first" in _values(self.state["pre_tokenizer"], "prepend_scheme"):
            return {}
        normalizes = self.state["normalizer"] is not None
        others = [token.content for token in self.added_tokens.values()]
        return {
            token.content: number
            for number, token in self.added_tokens.items()
            if token.special
            and token.content
            and token.content in text
            and not (token.lstrip or token.rstrip or token.single_word or (token.normalized and normalizes))
            and not any(_takes_part_of(other, token.content) for other in others)
        }

    @functools.cached_property
    def state(self) -> dict[str, Any]:
        """Rules of the tokenizer without its vocabulary, as in tokenizer.json."""
        parts = {name: getattr(self.backend, name) for name in ("normalizer", "pre_tokenizer", "decoder")}
        return {name: None if part is None else json.loads(part.__getstate__()) for name, part in parts.items()}

    @functools.cached_property
    def _decoders(self) -> frozenset[str]:
        return frozenset(map(str, _values(self.state["decoder"], "type")))

    @functools.cached_property
    def _adds_prefix(self) -> bool:
        lead, text, both = self.encode(["\n", "a", "\na"])
        return both != lead + text


def _values(state: Any, key: str) -> Iterable[Any]:
    """All values of a key, at any depth."""
    if isinstance(state, dict):
        for name, value in state.items():
            if name == key:
                yield value
            yield from _values(value, key)
    elif isinstance(state, list):
        for value in state:
            yield from _values(value, key)


def _takes_part_of(other: str, token: str) -> bool:
    """True if another token, matched in a text, could consume a part of a token."""
    if other == token:
        return False
    return token in other or other.endswith(tuple(token[:count] for count in range(1, len(token))))


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """Byte-level alphabet: characters to bytes. Printable bytes stand for themselves, others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    return alphabet


def load_tokenizer(directory: Path | str) -> ModelTokenizer:
    """Load the tokenizer of a model's directory; weights are not needed.

    Raises:
        UserError: If there is no tokenizer that can be read without transformers.
    """
    place = Path(directory)
    if not os.path.isdir(place):
        raise UserError(
            f"{place} is not a directory, so there is no tokenizer in it.",
            "Give the directory that has the model's tokenizer.json.",
        )
    backend = _read_backend(place)
    settings = _read_json(place / "tokenizer_config.json")
    _add_tokens(backend, settings)
    specials = _special_tokens(settings, _read_json(place / "special_tokens_map.json"))
    config = _read_json(place / "config.json")
    templates = _chat_templates(place, settings)
    return ModelTokenizer(
        backend,
        special_tokens=specials,
        stop_ids=_stop_ids(place, config, backend, specials.get("eos_token")),
        chat_template=templates.get("default"),
        tool_template=templates.get("tool_use"),
        max_length=_max_length(settings, config),
        vocabulary_size=_vocabulary_size(config),
    )


def _read_backend(place: Path) -> Tokenizer:
    path = place / "tokenizer.json"
    try:
        found = path.is_file()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", "Fix its permissions, or copy it.") from error
    if not found:
        if any((place / name).is_file() for name in _OTHER_FORMS):
            raise UserError(
                f"{place} has its tokenizer in a form that only the training process reads, not as tokenizer.json.",
                "Load it once with transformers and save it again, and tokens can be shown here too.",
            )
        raise UserError(f"{place} has no tokenizer.json.", "Copy the tokenizer's files from where the model is from.")
    if path.stat().st_size > _TOKENIZER_LIMIT:
        raise UserError(f"{path} is too large for a tokenizer.", "Copy it again from where the model is from.")
    try:
        backend = Tokenizer.from_file(str(path))
    except BaseException as error:  # bare Exception for missing and damaged files; a Rust panic is not even that
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        reason = one_line(str(error), 160).rstrip(".")
        raise UserError(
            f"{path} cannot be read as a tokenizer: {reason}.", "Copy it again from where the model is from."
        ) from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _read_json(path: Path) -> dict[str, Any]:
    return read_description(path, _SETTINGS_LIMIT) or {}


def _token_text(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _special_tokens(settings: Mapping[str, Any], older: Mapping[str, Any]) -> dict[str, str]:
    found = {name: _token_text(settings.get(name, older.get(name))) for name in SPECIAL_NAMES}
    return {name: text for name, text in found.items() if text is not None}


def _add_tokens(backend: Tokenizer, settings: Mapping[str, Any]) -> None:
    """Add the special tokens of tokenizer_config.json that tokenizer.json lacks."""
    declared = settings.get("added_tokens_decoder")
    if not isinstance(declared, dict):
        return
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    missing = []
    for _, value in sorted(declared.items(), key=lambda item: int(item[0]) if _NUMBER.fullmatch(item[0]) else 0):
        text = _token_text(value)
        if text is not None and text not in known and isinstance(value, dict):
            flags = {key: bool(value[key]) for key in ("lstrip", "rstrip", "single_word", "normalized") if key in value}
            missing.append(AddedToken(text, special=bool(value.get("special")), **flags))
    if missing:
        backend.add_tokens(missing)


def _chat_templates(place: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name, ``default`` and others, from files of their own or from a JSON file."""
    value = _read_json(place / "chat_template.json").get("chat_template", settings.get("chat_template"))
    found: dict[str, Any] = {"default": value}
    if isinstance(value, dict):
        found = dict(value)
    elif isinstance(value, list):
        found = {
            item["name"]: item.get("template")
            for item in value
            if isinstance(item, dict) and isinstance(item.get("name"), str)
        }
    files = {path.stem: path for path in sorted((place / "additional_chat_templates").glob("*.jinja"))}
    if (path := place / "chat_template.jinja").is_file():
        files["default"] = path
    for name, path in files.items():
        try:
            found[name] = read_small(path, TEMPLATE_LIMIT).decode("utf-8").replace("\r\n", "\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"{path} cannot be read: {one_line(reason, 160)}.", "Copy it again.") from error
    for name, text in found.items():
        if isinstance(text, str) and len(text) > TEMPLATE_LIMIT:
            raise UserError(
                f"The chat template {one_line(str(name), 40)} of {place} is larger than {TEMPLATE_LIMIT >> 10} KiB.",
                "Copy the model's files again, or name another template in template.file.",
            )
    return {name: text for name, text in found.items() if isinstance(name, str) and isinstance(text, str)}


def _stop_ids(place: Path, config: Mapping[str, Any], backend: Tokenizer, eos: str | None) -> list[int]:
    """Stop tokens as in generation: of the generation configuration, else of config.json; and the tokenizer's own."""
    path = place / "generation_config.json"
    source = _read_json(path) if path.exists() else {**_text_config(config), **config}
    value = source.get("eos_token_id")
    values = value if isinstance(value, list) else [value]
    if eos is not None:
        values = [*values, backend.token_to_id(eos)]
    return [number for number in dict.fromkeys(filter(_is_token, values)) if number is not None]


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _vocabulary_size(config: Mapping[str, Any]) -> int | None:
    value = _text_config(config).get("vocab_size", config.get("vocab_size"))
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _max_length(settings: Mapping[str, Any], config: Mapping[str, Any]) -> int | None:
    values = [settings.get("model_max_length"), _text_config(config).get("max_position_embeddings")]
    lengths = [int(value) for value in values if isinstance(value, (int, float)) and 0 < value < _NO_LENGTH]
    return min(lengths) if lengths else None


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
