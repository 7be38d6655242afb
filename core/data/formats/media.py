"""Pictures, video and sound in a row: in a column, in a message, or as a part of a content.

Only text is read. A row with other media is refused, whatever its format: the model would learn to answer about
something it has never been shown.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from core.data.conversation import CONVERSATION_KEYS, Example, RowError, is_spelled_out, parsed
from core.data.exported_chats import ATTACHED, exported_turns
from core.data.formats.mapping import ColumnMap
from core.text import one_line

#: Code of refused rows.
HAS_MEDIA = "has_media"

#: Names of columns, keys of messages and parts of contents that hold media in TRL, Axolotl, LLaMA-Factory, ms-swift,
#: LLaVA and OpenAI's API.
_NAMES = {
    **dict.fromkeys(("image", "images", "pixel_values", "image_url", "input_image"), "image"),
    **dict.fromkeys(("video", "videos", "pixel_values_videos", "video_url", "input_video"), "video"),
    **dict.fromkeys(("audio", "audios", "audio_url", "input_audio"), "audio"),
}
#: Names of these that may also belong to a harmless column, such as a link in a catalog.
_LINKS = frozenset(("image_url", "video_url", "audio_url"))
#: Words in the names of columns that may hold the media of a placeholder.
_WORDS = {
    **dict.fromkeys(("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos"), "image"),
    **dict.fromkeys(("video", "videos"), "video"),
    **dict.fromkeys(("audio", "audios", "sound", "sounds", "speech", "wav"), "audio"),
}
_NOUNS = {"image": "pictures", "video": "video", "audio": "sound", "file": "pictures or sound"}
_PLACEHOLDER = re.compile("<(image|video|audio)>")
_SPLIT = re.compile("[^a-z]+")
#: Longest name inspected.
_NAME_LENGTH = 40
#: Columns of questions and answers, which may be messages instead of texts.
_SIDES = frozenset(
    (
        *("prompt", "completion", "question", "query", "answer", "response", "input", "output"),
        *("chosen", "rejected", "chosen_messages", "rejected_messages"),
    )
)
#: Texts that stand for nothing in a table.
_NOTHING = frozenset(("", "null", "none", "nan", "false", "<0 bytes>"))


@dataclass(frozen=True)
class MediaColumn:
    """A column that holds, or may hold, pictures, video or sound.

    Args:
        name: Its name.
        kind: ``image``, ``video``, ``audio``, or ``file`` if either is possible.
        is_sure: True if it holds media whenever it is filled, with or without a placeholder in the text.
    """

    name: str
    kind: str
    is_sure: bool


def media_columns(data: Mapping[str, Any], columns: ColumnMap | None = None) -> list[MediaColumn]:
    """Columns of a row that hold, or may hold, pictures, video or sound; columns read as text are excluded.

    Args:
        data: The row.
        columns: The column mapping, if there is one.
    """
    found = []
    for name, value in data.items():
        if columns is not None and name in columns.media:
            found.append(MediaColumn(name, columns.media[name], True))
        elif columns is None or name not in columns.read_columns:
            kind, is_sure = _kind(name) or ("", False)
            is_file = isinstance(value, (dict, list)) and _is_file(value)
            if kind or is_file:
                found.append(MediaColumn(name, kind or "file", is_sure or is_file))
    return found


def refuse_media(data: Mapping[str, Any], holders: list[MediaColumn], columns: ColumnMap | None = None) -> None:
    """Refuse a row with pictures, video or sound.

    Args:
        data: The row.
        holders: Its :func:`media_columns`.
        columns: The column mapping, if there is one.

    Raises:
        RowError: ``has_media``.
    """
    for holder in holders:
        if holder.is_sure and is_filled(data[holder.name]):
            name = one_line(holder.name, 40)
            raise RowError(HAS_MEDIA, f"The column {name} holds {_NOUNS[holder.kind]}, and only text is read.")
    for turns in _conversations(data, columns):
        _refuse_in_turns(turns)


def refuse_placeholders(example: Example, holders: list[MediaColumn]) -> None:
    """Refuse texts in which ``<image>``, ``<video>`` or ``<audio>`` stands for the media of a column.

    Without such a column, or with a closing tag, they are plain text, such as markup.

    Args:
        example: The row.
        holders: Its :func:`media_columns`.

    Raises:
        RowError: ``has_media``.
    """
    names = {holder.kind: holder.name for holder in holders}
    for where, text in _texts(example) if names else ():
        for kind in find_placeholders(text):
            if (name := names.get(kind, names.get("file"))) is not None:
                raise RowError(
                    HAS_MEDIA,
                    f"{where} has <{kind}>, which stands for {_NOUNS[kind]} of the column {one_line(name, 40)}; "
                    "only text is read.",
                )


def find_placeholders(text: str) -> list[str]:
    """Kinds of the placeholders of a text, in order: ``image`` for ``<image>``; a tag that is closed is markup."""
    kinds = dict.fromkeys(found[1] for found in _PLACEHOLDER.finditer(text))
    return [kind for kind in kinds if f"</{kind}>" not in text]


def is_filled(value: Any) -> bool:
    """True if a value of a row holds something other than null, false, zero or empty text, at any depth.

    A list of numbers always does: it may be a black picture.
    """
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            text = one.strip()
            if text.lower() in _NOTHING:
                continue
            if text[:1] in ("[", "{") and (inner := parsed(text)) is not text:
                waiting.append(inner)
                continue
            return True
        if isinstance(one, list):
            if one and isinstance(one[0], (int, float)):
                return True
            waiting += one
        elif isinstance(one, dict):
            waiting += one.values()
        elif one and one == one:  # false for NaN
            return True
    return False


@functools.lru_cache(maxsize=1024)
def _known_kind(name: str) -> tuple[str, bool] | None:
    own = name.strip().casefold()
    if (kind := _NAMES.get(own)) is not None:
        return kind, own not in _LINKS
    return next(((_WORDS[word], False) for word in _SPLIT.split(own) if word in _WORDS), None)


def _kind(name: str) -> tuple[str, bool] | None:
    """Kind of media that a column of this name may hold, and True if the name alone is proof; None for other names."""
    return _known_kind(name) if len(name) <= _NAME_LENGTH else None


def _is_file(value: Any) -> bool:
    """True for a picture or a sound in the form of Hugging Face's ``datasets``, or a list of them."""
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(first, dict):
        return False
    if "bytes" in first and "path" in first:
        return isinstance(first["bytes"], str)
    return isinstance(first.get("array"), list) and "sampling_rate" in first


def _conversations(data: Mapping[str, Any], columns: ColumnMap | None) -> Iterator[list[Any]]:
    """Lists of messages in a row. JSON text counts only where it would be read as messages, not in an answer."""
    if columns is None and (exported := exported_turns(data)) is not None:
        yield exported[1]
    whole: Container[str] = CONVERSATION_KEYS if columns is None else ()
    sides: Container[str] = _SIDES if columns is None else columns.read_columns
    if columns is not None and columns.format == "messages":
        whole, sides = sides, whole
    for name, value in data.items():
        if name in whole:
            if isinstance(turns := parsed(value), list):
                yield turns
        elif name in sides:
            found = parsed(value)
            turns = [found] if isinstance(found, dict) else found
            if isinstance(turns, list) and (not isinstance(value, str) or is_spelled_out(turns)):
                yield turns


def _refuse_in_turns(turns: list[Any]) -> None:
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            continue
        if (key := _filled_key(turn)) is not None:
            raise RowError(HAS_MEDIA, f"Message {number} has {one_line(key, 40)}; only text is read.")
        for key, value in turn.items():
            if isinstance(value, list) and key not in ("tool_calls", "function_call"):
                _refuse_in_parts(value, f"message {number}")


def _refuse_in_parts(parts: list[Any], where: str) -> None:
    for number, part in enumerate(parts, 1):
        if not isinstance(part, dict):
            continue
        kind = part.get("type")
        if isinstance(kind, str) and (kind == ATTACHED or _kind(kind) is not None):
            raise RowError(HAS_MEDIA, f"Part {number} of {where} is of type {one_line(kind, 40)}; only text is read.")
        if (key := _filled_key(part)) is not None:
            raise RowError(HAS_MEDIA, f"Part {number} of {where} has {one_line(key, 40)}; only text is read.")


def _filled_key(found: Mapping[str, Any]) -> str | None:
    """Key of a message or a part that holds pictures, video or sound; None without one."""
    # A loop takes half the time of a generator: every message of every row comes here.
    for key in found:
        if key.casefold() in _NAMES and is_filled(found[key]):
            return key
    return None


def _texts(example: Example) -> Iterator[tuple[str, str]]:
    if example.text:
        yield "The text", example.text
    for number, turn in enumerate(example.messages, 1):
        yield f"Message {number}", turn.content
    for name, answer in (("chosen", example.chosen), ("rejected", example.rejected)):
        for turn in answer:
            yield f"The {name} answer", turn.content
