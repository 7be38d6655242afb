"""Theme loader. Every color is checked before Textual gets it, as an invalid one would crash the app on first use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol, cast

import tomli
from textual.color import Color, ColorParseError
from textual.theme import Theme

from core.small_files import read_small
from core.text import one_line

DEFAULT = "localtune-dark"
#: Maximum bytes of a theme file.
_LIMIT = 1 << 20

#: Colors that a theme may set under ``[colors]``; ``primary`` is required.
COLORS = (
    *("primary", "secondary", "accent", "success", "warning", "error"),
    *("foreground", "background", "surface", "panel", "boost"),
)

#: Theme variables of the app, with defaults for themes that do not set them: (dark, light).
VARIABLES: dict[str, tuple[str, str]] = {
    "muted": ("#8a8a8a", "#626262"),
    "border": ("#444444", "#b2b2b2"),
    "border-focus": ("#5fafd7", "#005faf"),
    "ok": ("#87d787", "#005f00"),
    "near": ("#ffd75f", "#875f00"),
    "limit": ("#ff8787", "#af0000"),
    "chart-smooth": ("#5fafd7", "#005faf"),
    "chart-raw": ("#5f8787", "#5f87af"),
    "chart-eval": ("#d7af5f", "#875f00"),
    "chart-event": ("#d787d7", "#870087"),
    "chart-axis": ("#6c6c6c", "#767676"),
    # Curves of several runs, which are also marked with letters.
    "curve-1": ("#5fafff", "#005faf"),
    "curve-2": ("#ffaf00", "#875f00"),
    "curve-3": ("#87d787", "#005f00"),
    "curve-4": ("#ff87d7", "#870087"),
    "curve-5": ("#ffff87", "#000000"),
    "curve-6": ("#d0d0d0", "#5f5f5f"),
    "meter-track": ("#3a3a3a", "#c6c6c6"),
    "meter-fill": ("#5fafd7", "#005faf"),
    "selected-background": ("#303030", "#d7d7ff"),
    "supervised": ("#afd787", "#005f00"),
    "ignored": ("#6c6c6c", "#767676"),
    "role-user": ("#87d7d7", "#005f87"),
    "role-tuned": ("#87d787", "#005f00"),
    "role-base": ("#d7af87", "#875f00"),
    "role-system": ("#af87d7", "#5f00af"),
}


class _TextFile(Protocol):
    """File on disk or in the wheel: importlib's Traversable, whose module moved in Python 3.11."""

    @property
    def name(self) -> str: ...

    def read_text(self, encoding: str | None = None) -> str: ...


class ThemeError(ValueError):
    """Invalid theme file; the message is the reason."""


@dataclass(frozen=True)
class LoadedThemes:
    """Valid themes, and the invalid files with their errors."""

    themes: list[Theme]
    failures: list[str]


def variable_defaults(dark: bool) -> dict[str, str]:
    """The defaults of the app's theme variables."""
    return {name: pair[0 if dark else 1] for name, pair in VARIABLES.items()}


def parse_theme(text: str) -> Theme:
    """The theme in the text of a theme file.

    Raises:
        ThemeError: If it is not TOML, has an unknown key, lacks a required one, or has an invalid color.
    """
    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise ThemeError(f"not TOML: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ThemeError("not TOML: it is nested too deep, or has a number that is too long") from error
    _refuse_unknown(data, {"name", "dark", "ansi", "colors", "variables"}, "")
    name = data.get("name")
    if not isinstance(name, str) or not name or not all(part.isalnum() for part in name.split("-")):
        raise ThemeError("name must be letters and digits with dashes between them")
    for flag in ("dark", "ansi"):
        if not isinstance(data.get(flag, True), bool):
            raise ThemeError(f"{flag} must be true or false")
    colors, variables = _colors(data, "colors", COLORS), _colors(data, "variables", VARIABLES)
    if "primary" not in colors:
        raise ThemeError("colors.primary is missing")
    primary = colors.pop("primary")
    theme = Theme(name, primary, dark=data.get("dark", True), ansi=data.get("ansi", False), variables=variables)
    return replace(theme, **cast(Any, colors))


def _refuse_unknown(table: Mapping[str, Any], known: Iterable[str], prefix: str) -> None:
    if unknown := sorted(set(table) - set(known)):
        raise ThemeError(f"there is no key {one_line(prefix + unknown[0], 60)}")


def _colors(data: Mapping[str, Any], section: str, known: Iterable[str]) -> dict[str, str]:
    table = data.get(section, {})
    if not isinstance(table, Mapping):
        raise ThemeError(f"{section} must be a section")
    _refuse_unknown(table, known, f"{section}.")
    for key, value in table.items():
        try:
            Color.parse(value if isinstance(value, str) else "")
        except ColorParseError as error:
            raise ThemeError(f"{section}.{key} = {one_line(repr(value), 40)} is no color") from error
    return dict(table)


def load_builtin() -> list[Theme]:
    """The built-in themes.

    Raises:
        ThemeError: If a built-in theme is invalid, which is a bug.
    """
    return [parse_theme(entry.read_text(encoding="utf-8")) for entry in _toml_files(files("themes").iterdir())]


def load_user(directory: Path) -> LoadedThemes:
    """The user's themes; a missing directory has none, and invalid files are skipped and reported."""
    themes: list[Theme] = []
    failures: list[str] = []
    try:
        entries = _toml_files(directory.iterdir())
    except OSError:
        return LoadedThemes([], [])
    for entry in entries:
        try:
            themes.append(parse_theme(read_small(directory / entry.name, _LIMIT).decode("utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            failures.append(f"{one_line(entry.name, 60)}: {one_line(str(error), 100)}")
        except ThemeError as error:
            failures.append(f"{one_line(entry.name, 60)}: {one_line(str(error), 120)}")
    return LoadedThemes(themes, failures)


def _toml_files(entries: Iterable[Any]) -> list[_TextFile]:
    return sorted((entry for entry in entries if entry.name.endswith(".toml")), key=lambda entry: str(entry.name))
