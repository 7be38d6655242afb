"""Row parsers: the bytes of one row to its columns. A parser never raises; a defect becomes the row's error."""

from __future__ import annotations

import csv
import io
import json
import threading

from core.data.files.rows import Row

#: Characters of an unparsable row that are kept for display.
RAW_LIMIT = 4000

_csv_limit = threading.Lock()


def parse_json(index: int, line: int, raw: bytes) -> Row:
    """Parse a row of JSON; never raises."""
    try:
        data = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _not_utf8(index, line, raw, error)
    except json.JSONDecodeError as error:
        reason = f"The row is not JSON: {error.msg} at character {error.pos + 1}."
        if not raw:
            reason = "The file ends before the array does: its closing ] is missing."
        return Row(index, line, None, reason, "not_json", preview(raw))
    except (ValueError, RecursionError):
        # A number of thousands of digits, or thousands of brackets.
        return Row(index, line, None, "The row is JSON that goes beyond all bounds.", "not_json", preview(raw))
    if not isinstance(data, dict):
        return Row(index, line, None, "The row is JSON but no object with keys.", "not_an_object", preview(raw))
    return Row(index, line, data)


def parse_csv(index: int, line: int, raw: bytes, header: list[str], delimiter: str) -> Row:
    """Parse a record of a CSV file; never raises."""
    try:
        cells = split_csv(raw.decode("utf-8"), delimiter)
    except UnicodeDecodeError as error:
        return _not_utf8(index, line, raw, error)
    except csv.Error as error:
        return Row(index, line, None, f"The row is not CSV: {error}.", "bad_csv", preview(raw))
    if len(cells) != len(header):
        reason = f"The row has {len(cells)} cells, the header has {len(header)}."
        return Row(index, line, None, reason, "bad_csv", preview(raw))
    return Row(index, line, dict(zip(header, cells, strict=True)))


def parse_text(index: int, line: int, raw: bytes) -> Row:
    """Parse a line of plain text into a row with the column ``text``; never raises."""
    try:
        return Row(index, line, {"text": raw.decode("utf-8").rstrip("\r")})
    except UnicodeDecodeError as error:
        return _not_utf8(index, line, raw, error)


def split_csv(text: str, delimiter: str) -> list[str]:
    """The cells of one record.

    Raises:
        csv.Error: If the text is not exactly one record.
    """
    # The module's own limit of 128 kB a cell is global to the process; rows are bounded before they come here.
    with _csv_limit:
        if csv.field_size_limit() < len(text):
            csv.field_size_limit(len(text))
    records = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    if len(records) != 1:
        raise csv.Error("a carriage return stands in the middle")
    return records[0]


def preview(raw: bytes) -> str:
    """The beginning of a row as text, undecodable bytes replaced."""
    return raw[: RAW_LIMIT * 4].decode("utf-8", "replace")[:RAW_LIMIT]


def _not_utf8(index: int, line: int, raw: bytes, error: UnicodeDecodeError) -> Row:
    return Row(index, line, None, f"The row is not UTF-8 at byte {error.start}.", "not_utf8", preview(raw))
