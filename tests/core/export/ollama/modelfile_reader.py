"""Modelfiles read as Ollama's parser does, character by character; it was held against Ollama's own."""

from __future__ import annotations


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """Commands with their values; parameters by their own names."""
    found: list[tuple[str, str]] = []
    place = 0
    while place < len(text):
        if text[place] in " \t\r\n":
            place += 1
            continue
        if text[place] == "#":
            place = _end_of_line(text, place)
            continue
        begin = place
        while text[place].isalpha():
            place += 1
        name = text[begin:place].lower()
        place += 1
        if name == "parameter":
            begin = place
            while text[place] not in " \t":
                place += 1
            name = text[begin:place]
            place += 1
        value, place = _value(text, place)
        found.append((name, value))
    return found


def _end_of_line(text: str, place: int) -> int:
    end = text.find("\n", place)
    return len(text) if end < 0 else end


def _value(text: str, place: int) -> tuple[str, int]:
    read = ""
    while place < len(text):
        if text[place] in "\r\n":
            whole = _unquoted(read.strip())
            if whole is not None:
                return whole, place
            read += text[place]
        elif text[place] in " \t" or text[place].isprintable():
            read += text[place]
        place += 1
    whole = _unquoted(read.strip())
    assert whole is not None, "a text is not closed"
    return whole, place


def _unquoted(text: str) -> str | None:
    for quote in ('"""', '"'):
        if text.startswith(quote):
            is_closed = len(text) >= 2 * len(quote) and text.endswith(quote)
            return text[len(quote) : -len(quote)] if is_closed else None
    return text
