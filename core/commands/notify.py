"""``notify``: a test notice, sent as ``notify.toml`` says."""

from __future__ import annotations

import argparse

from core.commands.common import EXIT_ERROR, add_json_flag, emit, note, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Send it and wait; the exit code is 1 if something went wrong."""
    from core.notify import Notice, load_notify_settings
    from core.notify.send import notify_path, send

    settings = load_notify_settings()
    problems = send(Notice("test", "This is a test of localtune-tui's notices."), settings) if settings.sends else []
    if args.json:
        told = {"command": list(settings.command), "bell": settings.bell, "desktop": settings.desktop}
        emit({"settings": str(notify_path()), **told, "problems": problems})
    elif problems:
        note(*problems)
    elif settings.sends:
        say("The notification was sent.")
    else:
        say(f"Nothing sent: {notify_path()} names neither a command nor the desktop.")
    return EXIT_ERROR if problems else 0
