"""Theme files: valid ones, and errors of the others."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from pathlib import Path

import pytest
import tomli
from textual.color import Color
from textual.theme import Theme

from tests.cases import cases
from themes import loader

ROOT = Path(loader.__file__).parent
THEMES = loader.load_builtin()
_LEVELS = (0x00, 0x5F, 0x87, 0xAF, 0xD7, 0xFF)
CUBE = {(r, g, b) for r in _LEVELS for g in _LEVELS for b in _LEVELS} | {
    (level, level, level) for level in range(0x08, 0xEF, 10)
}

#: Weights of red, green and blue in the luminance.
_LUMINANCE = (0.2126, 0.7152, 0.0722)
#: Colors of text, and colors with a meaning.
TEXT = (
    *("foreground", "muted", "ok", "near", "limit", "chart-smooth", "chart-eval", "chart-event", "role-user"),
    *(f"curve-{n}" for n in range(1, 7)),
)


@cases("theme", THEMES, ids=lambda theme: theme.name)
def test_colors_are_on_the_256_color_cube(theme: Theme) -> None:
    data = tomli.loads((ROOT / f"{theme.name}.toml").read_text(encoding="utf-8"))
    for section in ("colors", "variables"):
        for name, value in data[section].items():
            color = Color.parse(value)
            assert color.rgb in CUBE, f"{theme.name}: {name} = {value}"


@cases("theme", THEMES, ids=lambda theme: theme.name)
def test_text_can_be_read(theme: Theme) -> None:
    """WCAG's 4.5 to 1 for text and colors with a meaning, 3 to 1 for secondary ones."""
    background = Color.parse(theme.background or "")
    values = {"foreground": theme.foreground, **loader.variable_defaults(theme.dark), **theme.variables}
    for name in TEXT:
        ratio = _contrast(background, values[name])
        assert ratio >= 4.5, f"{theme.name}: {name} has {ratio:.1f}"
    for name in ("chart-raw", "chart-axis", "ignored"):
        assert _contrast(background, values[name]) >= 3.0, f"{theme.name}: {name}"
    assert values["supervised"] != values["muted"], "tokens that are learned, and others"


def test_high_contrast_is_high() -> None:
    """WCAG's level AAA: 7 to 1 for all text, on the background and under the cursor; 3 to 1 for frames."""
    theme = next(theme for theme in THEMES if theme.name == "localtune-high-contrast")
    values = {"foreground": theme.foreground, **theme.variables}
    for ground in (theme.background or "", theme.surface or "", theme.variables["selected-background"]):
        for value in (values[name] for name in (*TEXT, "supervised", "role-base")):
            assert _contrast(Color.parse(ground), value) >= 7.0, (value, ground)
    assert _contrast(Color.parse(theme.background or ""), theme.variables["border"]) >= 3.0


#: Pairs that differ by color.
APART = (
    ("ok", "near"),
    ("ok", "limit"),
    ("near", "limit"),
    ("role-tuned", "role-base"),
    ("role-user", "role-base"),
    ("supervised", "ignored"),
    ("chart-smooth", "chart-eval"),
    ("chart-smooth", "chart-event"),
    ("border", "border-focus"),
    *itertools.combinations([f"curve-{number}" for number in range(1, 7)], 2),
)
#: Linear RGB as people without red or green cones see it (Machado, Oliveira, Fernandes 2009, severity 1).
BLINDNESS = {
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
}


@cases("kind", BLINDNESS)
@cases("pair", APART, ids="-".join)
def test_red_green_blind_eyes_tell_apart_what_colors_mean(kind: str, pair: tuple[str, str]) -> None:
    """At least 20 in CIELAB (CIE 1976), where 2.3 is just noticeable."""
    theme = next(theme for theme in THEMES if theme.name == "localtune-color-blind")
    first, second = (_lab(theme.variables[name], BLINDNESS[kind]) for name in pair)
    assert math.dist(first, second) >= 20, math.dist(first, second)


def _linear(color: Color) -> list[float]:
    parts = [part / 255 for part in color.rgb]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def _lab(value: str, eyes: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """CIELAB (D65) of a color as it is seen."""
    linear = _linear(Color.parse(value))
    seen = [min(max(sum(map(operator.mul, row, linear)), 0.0), 1.0) for row in eyes]
    to_xyz = ((0.4124, 0.3576, 0.1805), _LUMINANCE, (0.0193, 0.1192, 0.9505))
    x, y, z = (
        sum(map(operator.mul, row, seen)) / white for row, white in zip(to_xyz, (0.9505, 1.0, 1.089), strict=True)
    )
    x, y, z = (part ** (1 / 3) if part > 0.008856 else 7.787 * part + 16 / 116 for part in (x, y, z))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def _contrast(background: Color, value: str | None) -> float:
    colors = (background, Color.parse(value or ""))
    second, first = sorted(float(sum(map(operator.mul, _LUMINANCE, _linear(color)))) for color in colors)
    return (first + 0.05) / (second + 0.05)


@pytest.mark.parametrize("dark", [True, False])
def test_every_variable_has_a_default(dark: bool) -> None:
    defaults = loader.variable_defaults(dark)
    for theme in THEMES:
        assert set(theme.variables) == set(defaults)
    for value in defaults.values():
        Color.parse(value)


@cases(
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
    assert loader.load_user(tmp_path / "none") == loader.LoadedThemes([], [])
    loaded = loader.load_user(tmp_path)
    assert [theme.name for theme in loaded.themes] == ["good"]
    assert [failure.partition(":")[0] for failure in loaded.failures] == ["bad.toml", "raw.toml"]
