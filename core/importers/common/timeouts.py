"""Timeouts: how long processes wait for each other."""

from __future__ import annotations

from core.config.schema import find_option
from core.importers.translation import Translation

TIMEOUT_OPTION = "distributed.timeout"


def ddp_timeout(work: Translation) -> None:
    """Convert ``ddp_timeout``, in seconds; examples have years, to say never."""
    key = "ddp_timeout"
    seconds = work.number(key)
    if seconds is None:
        return
    option = find_option(TIMEOUT_OPTION)
    most = option.maximum if option is not None else None
    if most is not None and seconds > most:
        work.change(key, TIMEOUT_OPTION, float(most), "The longest that is possible: a day.")
    else:
        work.carry(key, TIMEOUT_OPTION, seconds)
