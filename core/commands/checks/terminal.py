"""Checks of the terminal's abilities, and of tmux between it and the app."""

from __future__ import annotations

import locale
import os
import shutil
import sys
from collections.abc import Callable, Mapping

from core.commands.checks import Finding
from core.commands.checks.system import output

_SMALLEST_SCREEN = (60, 20)
_TRUE_COLOR = ("truecolor", "24bit")
#: The longest wait in milliseconds of tmux for the rest of a key, before escape feels dead.
_LONGEST_ESCAPE_MS = 100


def check_terminal(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Check the terminal's abilities."""
    found = [_check_locale(), _check_colors(environment)]
    if environment.get("TMUX"):
        found += check_tmux(environment)
    if sys.stdout.isatty():
        columns, lines = shutil.get_terminal_size()
        wide, high = _SMALLEST_SCREEN
        if columns < wide or lines < high:
            what = f"{columns}×{lines} is too small for the app."
            found.append(Finding("screen", "warn", what, f"Make the window at least {wide}×{high}."))
        else:
            found.append(Finding("screen", "ok", f"{columns}×{lines}"))
    return found


def check_tmux(environment: Mapping[str, str], ask: Callable[[list[str]], str] = output) -> list[Finding]:
    """Check tmux: whether it passes on true color, and how long it delays the escape key.

    Args:
        environment: Environment variables, for ``COLORTERM``.
        ask: Runs a command and returns its output; empty where it fails.
    """
    problems = []
    features = ask(["tmux", "display-message", "-p", "#{client_termfeatures}"])
    if features and "RGB" not in features.split(",") and environment.get("COLORTERM", "").lower() in _TRUE_COLOR:
        problems.append(("16 million colors are cut down to 256", "set -as terminal-features ',*:RGB'"))
    delay = ask(["tmux", "show-options", "-sv", "escape-time"])
    if delay.isdecimal() and int(delay) > _LONGEST_ESCAPE_MS:
        problems.append((f"the escape key takes {delay} ms", "set -sg escape-time 10"))
    if not problems:
        return []
    settings = "; ".join(f"'{setting}'" for _, setting in problems)
    return [Finding("tmux", "warn", " and ".join(what for what, _ in problems), f"In ~/.tmux.conf: {settings}")]


def _check_locale() -> Finding:
    encoding = locale.getpreferredencoding(False)
    name = os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE") or os.environ.get("LANG") or "unset"
    if encoding.lower().replace("-", "") != "utf8":
        hint = "Set LANG to a UTF-8 locale, for example 'export LANG=C.UTF-8'."
        return Finding("locale", "warn", f"{name}: the encoding is {encoding}; charts need UTF-8", hint)
    return Finding("locale", "ok", f"UTF-8 ({name})")


def _check_colors(environment: Mapping[str, str]) -> Finding:
    term, colors = environment.get("TERM", ""), environment.get("COLORTERM", "")
    inside = "tmux" if environment.get("TMUX") else "screen" if environment.get("STY") else ""
    what = f"TERM={term or 'unset'}" + (f" inside {inside}" if inside else "")
    if term in ("", "dumb", "unknown"):
        hint = "Commands work; for the app, log in from a real terminal ('ssh -t')."
        return Finding("terminal", "warn", f"{what}: no full-screen app can run here", hint)
    if environment.get("NO_COLOR"):
        return Finding("terminal", "ok", f"{what}, colors off (NO_COLOR)")
    if colors.lower() in _TRUE_COLOR:
        return Finding("terminal", "ok", f"{what}, 16 million colors")
    if "256" in term or "direct" in term or term in ("xterm-kitty", "alacritty", "wezterm", "foot"):
        return Finding("terminal", "ok", f"{what}, 256 colors; themes look better with COLORTERM=truecolor")
    hint = "export COLORTERM=truecolor if your terminal has it"
    if inside == "tmux":
        hint = "In ~/.tmux.conf: set -g default-terminal tmux-256color"
    return Finding("terminal", "warn", f"{what}: few colors", hint)
