"""Validation errors of a configuration, as sentences with a hint."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import tomlkit
import tomlkit.exceptions
from pydantic import ValidationError

from core.config.schema import find_option, options, sections
from core.config.values import describe_type
from core.errors import UserError
from core.redact import is_secret_name, redact
from core.text import one_line
from core.units import exact_number

#: The most characters of a value that are shown.
_SHOWN = 80
#: Order of Pydantic's error types where one key has several: the error about a text comes before "not a list", and
#: "missing" comes last, since the option may be there under a misspelled name, which is then reported.
_ORDER = {"string_unicode": 0, "string_pattern_mismatch": 0, "missing": 2}
#: Similarity from which on a word counts as a typing error: for a name in its place, and for a key of another section.
_ALIKE, _VERY_ALIKE = 0.6, 0.75
#: Names that other programs and papers have for options.
_SHORT = {
    "lr": "train.learning_rate",
    "bs": "train.batch_size",
    "wd": "train.weight_decay",
    "r": "method.rank",
    "num_train_epochs": "train.epochs",
}
#: The hint for a secret in a file.
SECRET_HINT = "Keys and tokens are read from the environment (HF_TOKEN, WANDB_API_KEY), never from a file; remove it."  # noqa: S105


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The known word most similar to a mistyped word; None if none has the share ``cutoff`` of its letters."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


def shown(value: Any) -> str:
    """A value as it is written in TOML, on one line, shortened where it is long, and without secrets."""
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        return exact_number(value)
    try:
        text = tomlkit.item(value).as_string()
    except (TypeError, ValueError, RecursionError, tomlkit.exceptions.TOMLKitError):
        try:
            text = repr(value)
        except (ValueError, RecursionError):
            # Python writes no number of more than 4,300 digits.
            text = "a number of thousands of digits" if isinstance(value, int) else "what is there"
    return one_line(redact(text), _SHOWN)


def unknown_option(name: str) -> UserError:
    """The error for an unknown option, with the nearest known option."""
    section, _, key = name.partition(".")
    if is_secret_name(key):
        return UserError(f"There is no option {name}.", SECRET_HINT)
    guess = _nearest_option(section, key)
    hint = f"Did you mean {guess}?" if guess else _known_names(section)
    return UserError(f"There is no option {name}.", hint)


def _nearest_option(section: str, key: str) -> str | None:
    """The option that was most likely meant, in the named section or else by its key in another section."""
    if meant := _SHORT.get(key or section):
        return meant
    every = [option.name for option in options()]
    if not key and section in sections():
        return None
    if not key:  # a key without its section, or a section without a key
        section, key = nearest(section, sections(), _ALIKE) or "", section
    own = section if section in sections() else nearest(section, sections(), _ALIKE)
    keys = {known.partition(".")[2]: known for known in every if known.startswith(f"{own}.")}
    if guess := nearest(key, keys, _ALIKE):
        return keys[guess]
    by_key = {known.partition(".")[2]: known for known in reversed(every)}  # of several, the first counts
    return by_key.get(nearest(key, by_key, _VERY_ALIKE) or "")


def _known_names(section: str) -> str:
    """The known names: the options of a section, or the sections if it does not exist."""
    keys = [option.key for option in options() if option.section == section]
    if not keys:
        return f"The sections are {', '.join(sections())}."
    return f"The options of {section} are {', '.join(keys)}."


def explain(error: ValidationError) -> dict[str, tuple[str, str]]:
    """Pydantic's errors as a sentence and a hint per ``section.key`` (or ``section``)."""
    found: dict[str, tuple[str, str]] = {}
    for item in sorted(error.errors(include_url=False), key=lambda item: _ORDER.get(item["type"], 1)):
        location = [str(part) for part in item["loc"]]
        name = ".".join(location[:2])
        if name in found:
            continue
        option = find_option(name)
        if item["type"] == "extra_forbidden":
            unknown = unknown_option(name) if len(location) > 1 else _unknown_section(location[0], item["input"])
            found[name] = (unknown.message, unknown.hint)
        elif item["type"] == "string_unicode":
            found[name] = (
                f"{name} is {shown(item['input'])}, which is not UTF-8, as everything in a configuration is.",
                "Rename the file, or name it by a link.",
            )
        elif item["type"] == "string_pattern_mismatch" and location[-1] == "[key]":
            found[name] = (
                f"{name} has {shown(item['input'])}, which is not the name of a variable.",
                "Names are letters, digits and underscores, and begin with none of the digits.",
            )
        elif item["type"] == "string_pattern_mismatch" and name == "data.exclude":
            found[name] = (
                f"{name} has {shown(item['input'])}, which names no row.",
                "Write FILE:LINE or FILE:FROM-TO.",
            )
        elif item["type"] == "string_pattern_mismatch":
            found[name] = (f"{name} is {shown(item['input'])}, and has a NUL in it.", "Leave it out.")
        elif item["type"] == "missing":
            name = name if "." in name else f"{name}.train"
            missing = find_option(name)
            found[name] = (f"{name} is missing.", missing.help if missing else "")
        elif option is not None:
            found[name] = (f"{name} must be {describe_type(option)}, not {shown(item['input'])}.", option.help)
        else:
            given = "and is a list" if isinstance(item["input"], list) else f"not {shown(item['input'])}"
            found[name] = (f"{name} must be a section with keys, {given}.", f"Write [{name}].")
    return found


def _unknown_section(name: str, value: Any) -> UserError:
    if isinstance(value, Mapping):
        guess = nearest(name, sections())
        hint = f"Did you mean [{guess}]?" if guess else f"The sections are {', '.join(sections())}."
        return UserError(f"There is no section [{name}].", hint)
    return unknown_option(name)
