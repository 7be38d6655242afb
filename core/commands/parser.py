"""Command-line parser whose output is safe for a terminal, whatever the arguments hold."""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from core.commands.common import flush, put
from core.text import one_line, sanitize

#: The most characters of an error message; an argument may have millions.
_SHOWN = 400
#: The longest wait in seconds: eleven days.
_LONGEST = 1_000_000


class HelpFormatter(argparse.HelpFormatter):
    """A formatter that wraps a paragraph, and leaves a text of several lines as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose help and errors pass through :func:`core.text.sanitize`; an error is one line.

    Options must be written out, as an abbreviation would change its meaning once there are more of them. Parsers of
    subcommands are of the same kind.

    Args:
        **options: As :class:`argparse.ArgumentParser` takes them.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "allow_abbrev": False})
        self._conflicts: list[tuple[str, str, str]] = []

    def add_conflict(self, first: str, second: str, why: str) -> None:
        """Refuse two arguments that contradict each other.

        Args:
            first: An argument as it is typed: ``--detach``, ``--out -`` for one value of an option, or the metavar of a
                positional argument.
            second: The other argument.
            why: The reason, as the end of a sentence.
        """
        self._conflicts.append((first, second, why))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As :class:`argparse.ArgumentParser`, and with exit code 2 for arguments that contradict each other."""
        found, rest = super().parse_known_args(args, namespace)
        for first, second, why in self._conflicts:
            if self._is_given(first, found) and self._is_given(second, found):
                self.error(f"{first} and {second} do not go together: {why}")
        return found, rest

    def _is_given(self, words: str, found: argparse.Namespace) -> bool:
        name, _, value = words.partition(" ")
        action = next(action for action in self._actions if name in (*action.option_strings, action.metavar))
        given = getattr(found, action.dest)
        if value:
            return str(given) == value
        return given is not None and given != [] and given != self.get_default(action.dest)

    def format_help(self) -> str:
        """The help, with the texts of ``arguments.toml`` for the arguments that are declared without."""
        texts = _texts().get(self.prog.partition(" ")[2], {})
        for action in self._actions:
            if action.help is None:
                action.help = texts.get((action.option_strings or [action.dest])[-1].lstrip("-"))
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error, and exit with 2."""
        super().error(one_line(message, _SHOWN))

    def _print_message(self, message: str, file: Any = None) -> None:
        """Sanitized output: everything that argparse prints goes through here."""
        if file is sys.stdout:
            put(sanitize(message))
            flush()
        else:
            (file or sys.stderr).write(sanitize(message))


@functools.cache
def _texts() -> Mapping[str, Mapping[str, str]]:
    """By command, the help of its arguments."""
    import tomli

    return tomli.loads(Path(__file__).with_name("arguments.toml").read_text(encoding="utf-8"))


def seconds(text: str) -> float:
    """A number of seconds to wait, above 0; the type of an argument.

    Raises:
        argparse.ArgumentTypeError: If the text is not one, or too large for a clock.
    """
    return _number(text, float, lambda value: 0 < value <= _LONGEST, f"a number above 0, at most {_LONGEST}")


def whole_number(text: str) -> int:
    """A whole number from 1 up, of 18 digits at most; the type of an argument.

    Raises:
        argparse.ArgumentTypeError: If the text is not one.
    """
    return int(_number(text, int, lambda value: 1 <= value < 10**18, "a whole number from 1 up, of 18 digits at most"))


def whole_or_none(text: str) -> int:
    """A whole number from 0 up, of 18 digits at most; the type of an argument.

    Raises:
        argparse.ArgumentTypeError: If the text is not one.
    """
    return int(_number(text, int, lambda value: 0 <= value < 10**18, "a whole number from 0 up, of 18 digits at most"))


def column_parts(text: str) -> dict[str, str]:
    """Parts of a row and their columns, ``user=question,assistant=answer``; the type of an argument.

    Raises:
        argparse.ArgumentTypeError: If the text is not of this form.
    """
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(part.strip() and column.strip() for part, _, column in pairs):
        raise argparse.ArgumentTypeError(
            f"must be of the form user=question,assistant=answer, not '{one_line(text, 40)}'"
        )
    return {part.strip(): column.strip() for part, _, column in pairs}


def _number(text: str, kind: Callable[[str], float], is_meant: Callable[[float], bool], wanted: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not is_meant(value):
        raise argparse.ArgumentTypeError(f"must be {wanted}, not '{one_line(text, 40)}'")
    return value
