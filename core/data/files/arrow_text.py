"""Arrow tables to JSON Lines, column by column: the text that ``json.dumps`` would write, without making the rows.

Only the unpacking helper loads it, and with it pyarrow.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from json.encoder import encode_basestring
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

#: First byte that a JSON string may hold unescaped, and the most common bytes below it.
_FIRST_PLAIN, _COMMON = pa.scalar(0x20, pa.uint8()), (b"\n", b"\t")
#: The most common escaped characters. The backslash comes first, as it is part of the other escapes.
_ESCAPES = (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\t", "\\t"))

Plain = Callable[[Any], Any]
#: JSON text of each value as consecutive parts: a constant for all values, or an array with a text per value.
_Parts = list["str | pa.Array"]


def json_lines(batch: pa.RecordBatch, plain: Plain) -> bytes:
    """JSON Lines of a record batch with distinct column names, one line per row.

    Args:
        batch: The rows.
        plain: Converts values that JSON cannot represent.

    Raises:
        pyarrow.ArrowException: If the rows cannot be written.
    """
    columns = [_parts(column, plain) for column in batch.columns]
    return _data(_joined([*_object(batch.schema.names, columns), "\n"], batch.num_rows))


def _parts(array: pa.Array, plain: Plain) -> _Parts:
    """Parts of the JSON text of each value."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _parts(array.dictionary_decode(), plain)
    if pa.types.is_null(kind):
        return ["null"]
    if pa.types.is_boolean(kind):
        return [pc.if_else(array, "true", "false").fill_null("null")]
    if pa.types.is_integer(kind):
        return [array.cast(pa.string()).fill_null("null")]
    parts: _Parts | None = None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        parts = ['"', _escaped(array.cast(pa.string())), '"']
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        parts = ["[", _elements(array, plain), "]"]
    elif pa.types.is_struct(kind):
        names = [kind.field(place).name for place in range(kind.num_fields)]
        if len(set(names)) == len(names):
            parts = _object(names, [_parts(part, plain) for part in array.flatten()])
    if parts is None:
        values = [json.dumps(value, ensure_ascii=False, default=plain) for value in array.to_pylist()]
        return [pa.array(values, type=pa.string())]
    return [pc.if_else(array.is_valid(), _joined(parts, len(array)), "null")] if array.null_count else parts


def _object(names: list[str], values: list[_Parts]) -> _Parts:
    parts: _Parts = ["{"]
    for name, text in zip(names, values, strict=True):
        parts += [f"{', ' if len(parts) > 1 else ''}{json.dumps(name, ensure_ascii=False)}: ", *text]
    return [*parts, "}"]


def _joined(parts: _Parts, count: int) -> pa.Array:
    """Concatenated parts. Constants are merged first, as each join copies the text."""
    merged: _Parts = [""]
    for part in parts:
        if isinstance(part, str) and isinstance(merged[-1], str):
            merged[-1] += part
        else:
            merged.append(part)
    if len(merged) == 1:
        return pa.repeat(pa.scalar(merged[0], pa.string()), count)
    return pc.binary_join_element_wise(*merged, "")


def _elements(array: pa.Array, plain: Plain) -> pa.Array:
    """The text between the brackets of each list."""
    values = array.flatten()
    texts = _joined(_parts(values, plain), len(values))
    ends = pc.cumulative_sum(pc.list_value_length(array).fill_null(0).cast(pa.int32()))
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), ends])
    return pc.binary_join(pa.ListArray.from_arrays(offsets, texts), ", ")


def _escaped(array: pa.Array) -> pa.Array:
    """Strings escaped for JSON, without quotation marks; null stays null."""
    data = _data(array)
    controls = pc.less(pa.Array.from_buffers(pa.uint8(), len(data), [None, pa.py_buffer(data)]), _FIRST_PLAIN)
    count = controls.true_count
    if count and count > sum(map(data.count, _COMMON)):
        written = [None if text is None else _string(text)[1:-1] for text in array.cast(pa.binary()).to_pylist()]
        return pa.array(written, type=pa.binary()).view(pa.string())
    for character, escaped in _ESCAPES if count else _ESCAPES[:2]:
        if character.encode() in data:
            array = pc.replace_substring(array, character, escaped)
    return array


def _string(text: bytes) -> bytes:
    # Invalid UTF-8 is kept, so only its own row is refused.
    return encode_basestring(text.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def _data(array: pa.Array) -> bytes:
    """The bytes of all strings of an array, concatenated."""
    _, offsets, values = array.buffers()
    if values is None or offsets is None:
        return b""
    first, last = (memoryview(offsets).cast("i")[array.offset + place] for place in (0, len(array)))
    return bytes(values.slice(first, last - first))
