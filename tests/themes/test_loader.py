"""Theme files: what is accepted, and what is said about the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli
from textual.color import Color
from textual.theme import Theme

from themes import loader

ROOT = Path(loader.__file__).parent
THEMES = loader.load_builtin()
_LEVELS = (0x00, 0x5F, 0x87, 0xAF, 0xD7, 0xFF)
CUBE = {(r, g, b) for r in _LEVELS for g in _LEVELS for b in _LEVELS} | {
    (level, level, level) for level in range(0x08, 0xEF, 10)
}

#: What is read, or means something by its color.
TEXT = ("foreground", "muted", "ok", "near", "limit", "chart-smooth", "chart-eval", "chart-event", "role-user")


def test_there_is_a_dark_and_a_light_one() -> None:
    assert {(theme.name, theme.dark) for theme in THEMES} >= {("localtune-dark", True), ("localtune-light", False)}
    assert loader.DEFAULT in {theme.name for theme in THEMES}


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_colors_are_on_the_256_color_cube(theme: Theme) -> None:
    data = tomli.loads((ROOT / f"{theme.name}.toml").read_text(encoding="utf-8"))
    for section in ("colors", "variables"):
        for name, value in data[section].items():
            color = Color.parse(value)
            assert color.rgb in CUBE, f"{theme.name}: {name} = {value}"


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_text_can_be_read(theme: Theme) -> None:
    """WCAG's 4.5 to 1 for text and what is meant by a color, 3 to 1 for what only accompanies."""
    background = Color.parse(theme.background or "")
    values = {"foreground": theme.foreground, **loader.variable_defaults(theme.dark), **theme.variables}
    for name in TEXT:
        ratio = _contrast(background, values[name])
        assert ratio >= 4.5, f"{theme.name}: {name} has {ratio:.1f}"
    for name in ("chart-raw", "chart-axis", "ignored"):
        assert _contrast(background, values[name]) >= 3.0, f"{theme.name}: {name}"


def _contrast(background: Color, value: str | None) -> float:
    def luminance(color: Color) -> float:
        parts = [part / 255 for part in color.rgb]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    first, second = sorted((luminance(background), luminance(Color.parse(value or ""))), reverse=True)
    return (first + 0.05) / (second + 0.05)


@pytest.mark.parametrize("dark", [True, False])
def test_every_variable_has_a_default(dark: bool) -> None:
    defaults = loader.variable_defaults(dark)
    for theme in THEMES:
        assert set(theme.variables) == set(defaults)
    for value in defaults.values():
        Color.parse(value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name = [", "not TOML"),
        ('name = "a"', "colors.primary is missing"),
        ('name = "a b"\n[colors]\nprimary = "red"', "letters and digits"),
        ('name = "a"\ndark = 1\n[colors]\nprimary = "red"', "dark must be true or false"),
        ('name = "a"\n[colors]\nprimary = "bluish"', "colors.primary = 'bluish' is no color"),
        ('name = "a"\n[colors]\nprimary = 3', "colors.primary = 3 is no color"),
        ('name = "a"\n[colors]\nprimary = "red"\nprimry = "red"', "there is no key colors.primry"),
        ('name = "a"\nfont = "x"\n[colors]\nprimary = "red"', "there is no key font"),
        ('name = "a"\n[colors]\nprimary = "red"\n[variables]\nmuted = "\\u001b[31m"', "is no color"),
        ('name = "a"\ncolors = 3', "colors must be a section"),
    ],
)
def test_a_broken_theme_is_refused_with_a_reason(text: str, complaint: str) -> None:
    with pytest.raises(loader.ThemeError) as caught:
        loader.parse_theme(text)
    assert complaint in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_user_themes_are_loaded_and_failures_named(tmp_path: Path) -> None:
    (tmp_path / "good.toml").write_text('name = "good"\n[colors]\nprimary = "#5fafd7"\n', encoding="utf-8")
    (tmp_path / "bad.toml").write_text('name = "bad"\n', encoding="utf-8")
    (tmp_path / "raw.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "notes.txt").write_text("not a theme", encoding="utf-8")
    loaded = loader.load_user(tmp_path)
    assert [theme.name for theme in loaded.themes] == ["good"]
    assert [failure.partition(":")[0] for failure in loaded.failures] == ["bad.toml", "raw.toml"]


def test_no_directory_is_no_themes(tmp_path: Path) -> None:
    assert loader.load_user(tmp_path / "none") == loader.LoadedThemes([], [])
