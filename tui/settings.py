"""Settings of the app, in ``settings.toml`` next to the keymap."""

from __future__ import annotations

import locale
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli

from core.small_files import read_small
from core.text import one_line

#: Maximum bytes of a settings file.
LIMIT = 1 << 20
#: Refresh rates, each with a factor for the time between two updates of the screen.
REFRESH_RATES = {"full": 1.0, "half": 2.0}
GLYPH_SETS = ("auto", "braille", "block", "ascii")
_CHOICES = {"glyphs": GLYPH_SETS, "panes": ("auto", "beside", "over"), "refresh": tuple(REFRESH_RATES)}


@dataclass(frozen=True)
class Settings:
    """The user's settings, with defaults for a terminal over SSH."""

    theme: str = ""
    """A theme's name; empty for the default."""
    glyphs: str = "auto"
    """Glyphs of charts and bars; ``auto`` is braille in a UTF-8 locale and ASCII otherwise."""
    animations: bool = False
    """True for smooth scrolling and toasts, which cost bytes."""
    panes: str = "auto"
    """The layout of two panes: ``beside`` or ``over`` each other; ``auto`` chooses by the terminal's shape."""
    refresh: str = "full"
    """Refresh rate of meters, chart, log, lists and answers: ``half`` updates them half as often."""
    remember: bool = True
    """True to restore the last session, and to keep conversations."""

    @property
    def way(self) -> Literal["beside", "over"] | None:
        """The layout of two panes; None to choose it by the terminal's shape."""
        return "beside" if self.panes == "beside" else "over" if self.panes == "over" else None

    @property
    def pace(self) -> float:
        """Factor for the seconds between two updates of the screen."""
        return REFRESH_RATES[self.refresh]


def read_table(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The content of a TOML file of the user, and the reason why it cannot be read; a missing file is empty."""
    try:
        return tomli.loads(read_small(path, LIMIT).decode("utf-8")), []
    except FileNotFoundError:
        return {}, []
    except (OSError, ValueError, RecursionError) as error:
        return {}, [f"it cannot be read: {one_line(str(error), 120)}"]


def load_settings(path: Path) -> tuple[Settings, list[str]]:
    """Read the settings; invalid values are reported and replaced by defaults, as is a missing file."""
    data, problems = read_table(path)
    given: dict[str, Any] = {}
    for name, value in data.items():
        default = getattr(Settings, name, None) if name in Settings.__dataclass_fields__ else None
        if default is None:
            problems.append(f"there is no setting {one_line(name, 40)}")
        elif name in _CHOICES and value not in _CHOICES[name]:
            problems.append(f"{name} must be one of {', '.join(_CHOICES[name])}")
        elif type(value) is not type(default):
            problems.append(f"{name} must be {'true or false' if default in (True, False) else 'a name'}")
        else:
            given[name] = value
    return Settings(**given), problems


def save_setting(path: Path, name: str, value: str) -> None:
    """Save a setting, leaving the rest of the file and its comments alone.

    Raises:
        UserError: If the directory cannot be made.
        OSError: If the file cannot be written.
    """
    import tomlkit

    from core.atomic import write_atomic
    from core.paths import make_private_dir

    make_private_dir(path.parent)
    try:
        document = tomlkit.parse(read_small(path, LIMIT).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        # A file that is no TOML was reported at the start; it is replaced.
        document = tomlkit.document()
    document[name] = value
    write_atomic(path, tomlkit.dumps(document))


def resolve_glyphs(setting: str) -> str:
    """The glyph set of a setting; ``auto`` is braille in a UTF-8 locale, else ASCII."""
    if setting != "auto":
        return setting
    # Unlike getpreferredencoding(), right in Python's UTF-8 mode too.
    encoding = locale.nl_langinfo(locale.CODESET).replace("-", "").lower()
    return "braille" if encoding == "utf8" else "ascii"
