"""Tokenizer of a model, loaded with the tokenizers library alone, without transformers."""

from __future__ import annotations

import codecs
import functools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from core.errors import UserError, is_panic
from core.models.description import read_description
from core.small_files import read_small
from core.template.builtin import TEMPLATE_LIMIT
from core.template.render import ChatTemplate
from core.text import one_line

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
