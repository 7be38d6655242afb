"""The queue's runner, as the commands that add entries tell of it."""

from __future__ import annotations

from core.commands.common import PROGRAM, note

#: Said where entries wait and nobody starts them.
NOBODY_STARTS = f"No runner is on, so nothing starts. Start it with: {PROGRAM} queue start"


def tell_runner(*, start: bool) -> bool:
    """Start the runner where that is asked for, and say whether anything will start by itself.

    Args:
        start: Whether it is to be started.

    Returns:
        Whether one is on.

    Raises:
        UserError: If it does not begin.
    """
    from core.queue.status import read_status, start_runner

    if start:
        status, is_new = start_runner()
        note(f"The runner {'is started' if is_new else 'is on already'}: process {status.pid}.")
        return True
    if read_status() is not None:
        return True
    note(NOBODY_STARTS)
    return False
