"""Conversion between option values and their text."""

from __future__ import annotations

from typing import Any

import tomlkit
import tomlkit.exceptions

from core.config.schema import Option
from core.errors import UserError
from core.text import one_line

_BOOLEANS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)


def parse_value(option: Option, raw: str) -> Any:
    """A value typed by a person, converted to the option's type.

    Raises:
        UserError: If it is not valid for the option.
    """
    text = raw.strip()
    if text == "" and option.optional:
        return None
    try:
        if option.type == "boolean":
            return _BOOLEANS[text.lower()]
        if option.type == "integer":
            return int(text.replace("_", ""))
        if option.type == "number":
            return float(text.replace("_", ""))
    except (KeyError, ValueError) as error:
        wanted = {"boolean": "true or false", "integer": "a whole number", "number": "a number"}[option.type]
        raise UserError(f"{option.name} must be {wanted}, not '{one_line(text, 80)}'.", option.help) from error
    if option.type == "table":
        return _parse_toml(option, text if text.startswith("{") else f"{{{text}}}", 'table. Write it as {a = "b"}')
    if option.type == "numbers":
        return _parse_toml(option, text if text.startswith("[") else f"[{text}]", "list. Write it as [1, 0.5]")
    if option.type in ("paths", "list"):
        if text.startswith("["):
            return _parse_toml(option, text, 'list. Write it as ["a", "b"]')
        if text in option.choices or "," not in text:
            return [text] if option.choices and text not in option.choices else text
        return [part.strip() for part in text.split(",")]
    return text


def unquoted(raw: str) -> str:
    """A typed value without the quotes of a TOML string; any other text unchanged."""
    text = raw.strip()
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "\"'":
        return raw
    try:
        found = tomlkit.parse(f"x = {text}").unwrap()
    except (tomlkit.exceptions.TOMLKitError, ValueError):
        return raw
    return found["x"] if len(found) == 1 and isinstance(found["x"], str) else raw


def _parse_toml(option: Option, text: str, wanted: str) -> Any:
    noun, _, how = wanted.partition(". ")
    refusal = UserError(f"{option.name}: {one_line(text, 80)} is not a TOML {noun}.", f"{how}.")
    try:
        found = tomlkit.parse(f"x = {text}").unwrap()
        # Python writes no number of more than 4,300 digits, so it could not be saved.
        str(found)
    except (tomlkit.exceptions.TOMLKitError, ValueError, RecursionError) as error:
        raise refusal from error
    if len(found) > 1:
        # A suffix after the value, on a line of its own.
        raise refusal
    return found["x"]


def describe_type(option: Option) -> str:
    """The accepted values of an option, in words: ``a whole number from 1 to 1024``."""
    if option.type == "choice":
        return f"one of {', '.join(option.choices)}"
    if option.type == "boolean":
        return "true or false"
    if option.type in ("paths", "list"):
        return (
            "a text or a list of texts"
            if not option.choices
            else f"{' or '.join(option.choices)}, or a list of {'them' if option.closed else 'names'}"
        )
    if option.type == "table" and not option.choices:
        return "a table of texts, numbers, true and false"
    if option.type == "table":
        return f"a table of texts with keys from {', '.join(option.choices)}"
    if option.type == "numbers":
        return "a list of numbers above 0"
    if option.type == "text":
        return "a text"
    noun = "a whole number" if option.type == "integer" else "a number"
    low, high = option.minimum, option.maximum
    if low is None:
        return noun
    if option.above:
        return f"{noun} above {low:.15g}" + (f", at most {high:.15g}" if high is not None else "")
    if high is None:
        return f"{noun} from {low:.15g} up"
    return f"{noun} from {low:.15g} to {'below ' if option.below else ''}{high:.15g}"
