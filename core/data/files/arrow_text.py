"""Arrow tables as JSON Lines, column by column: what ``json.dumps`` would write of each row, without the rows.

Only in the helper process that unpacks files: pyarrow is not loaded elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from json.encoder import encode_basestring
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

#: Below it are the bytes that no JSON string holds, and the commonest of those.
_FIRST_PLAIN, _COMMON = pa.scalar(0x20, pa.uint8()), (b"\n", b"\t")
#: The commonest ones and how they are written; the first is in what is written for the others.
_ESCAPES = (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\t", "\\t"))

Plain = Callable[[Any], Any]
#: The text of each value in parts, which follow one another: the same for all values, or one for each.
_Parts = list["str | pa.Array"]


def json_lines(batch: pa.RecordBatch, plain: Plain) -> bytes:
    """The rows of a batch, a line each, the names of its columns all different.

    Args:
        batch: The rows.
        plain: What to write for values that JSON has no notion of.

    Raises:
        pyarrow.ArrowException: If they cannot be written.
    """
    columns = [_parts(column, plain) for column in batch.columns]
    return _data(_joined([*_object(batch.schema.names, columns), "\n"], batch.num_rows))


def _parts(array: pa.Array, plain: Plain) -> _Parts:
    """The JSON text of each value."""
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
    """Parts put together, which copies the text: done once for as many as possible."""
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
    """What stands between the brackets of each list."""
    values = array.flatten()
    texts = _joined(_parts(values, plain), len(values))
    ends = pc.cumulative_sum(pc.list_value_length(array).fill_null(0).cast(pa.int32()))
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), ends])
    return pc.binary_join(pa.ListArray.from_arrays(offsets, texts), ", ")


def _escaped(array: pa.Array) -> pa.Array:
    """Strings as they stand between quotation marks; null stays null."""
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
    # What is no UTF-8 stays as it is: its row is reported, and no other.
    return encode_basestring(text.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def _data(array: pa.Array) -> bytes:
    """The bytes of all strings of an array, one after the other."""
    _, offsets, values = array.buffers()
    if values is None or offsets is None:
        return b""
    first, last = (memoryview(offsets).cast("i")[array.offset + place] for place in (0, len(array)))
    return bytes(values.slice(first, last - first))
