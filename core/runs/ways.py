"""Ways to an action that helps after a refusal: a command for who reads a terminal, a key for who sits at the app."""

from __future__ import annotations

from collections.abc import Callable

from core.errors import UserError

#: Actions that a worker's refusal may name; each is a command of its own.
ACTIONS = ("resume", "set", "stop")
#: The words for an action, in which they are told to its reader; it gets one of :data:`ACTIONS` and the run's id.
Ways = Callable[[str, str], str]


class ActionError(UserError):
    """A refusal after which an action of the user's helps. Who shows it says how that is done there.

    Args:
        message: As for :class:`~core.errors.UserError`.
        hint: The same, without the way to the action, which is put at its end: ``Let it go on first.``
        action: One of :data:`ACTIONS`.
    """

    def __init__(self, message: str, hint: str, action: str) -> None:
        super().__init__(message, hint)
        self.action = action


def by_command(action: str, run: str) -> str:
    """The command that does an action, in quotes."""
    return f"'localtune-tui {action} {run}'"


def with_way(hint: str, way: str) -> str:
    """A hint that ends with the way to its action: ``Let it go on first: 'localtune-tui resume tickets'.``"""
    return f"{hint.rstrip('.')}: {way}."
