"""Notices to the user outside the app: a command, the desktop, the terminal's bell."""

from core.notify.send import Notice, NotifySettings, load_notify_settings, notify

__all__ = ["Notice", "NotifySettings", "load_notify_settings", "notify"]
