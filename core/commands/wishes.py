"""Consent to a run that cannot meet its deadline or energy of ``[night]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from core.commands.common import agrees, note

if TYPE_CHECKING:
    from core.config.schema import Config
    from core.queue.estimate import Estimator
    from core.runs.outlook.forecast import Unmet


def add_consent(parser: argparse.ArgumentParser) -> None:
    """Declare ``--yes``."""
    parser.add_argument(
        "--yes",
        action="store_true",
        help="do not ask where a deadline or an energy of [night] cannot be met; needed where there is no terminal",
    )


def starts_all_the_same(found: Iterable[Unmet], *, yes: bool) -> bool:
    """Print the wishes that cannot be met; where an earlier run has shown it, ask whether to start all the same. An
    estimate without such a run is only a warning.

    Args:
        found: The wishes.
        yes: Whether the user has agreed beforehand.
    """
    wishes = list(found)
    for wish in wishes:
        note(f"{'' if wish.is_measured else 'warning: '}{wish}")
    if yes or not any(wish.is_measured for wish in wishes):
        return True
    if sys.stdin.isatty() and agrees("Go on all the same, as near to that as it gets?", ""):
        return True
    note("Nothing is done. Add --yes to go on all the same, as near to the wish as it gets.")
    return False


def unmet_now(config: Config) -> list[Unmet]:
    """The wishes that a run cannot meet if it starts now; earlier runs are read only if it has wishes."""
    import time

    from core.queue.estimate import Estimator
    from core.runs.outlook.forecast import unmet, wants_plan

    return list(unmet(config, Estimator().estimate(config), time.time())) if wants_plan(config) else []


def unmet_in_queue(config: Config, estimator: Estimator, *, held: bool = False) -> list[Unmet]:
    """The wishes that a run at the end of the queue cannot meet; its deadline only if its start can be estimated.

    Args:
        config: Its configuration.
        estimator: Estimates it, and the runs before it.
        held: Whether it is to wait until it is released.

    Raises:
        UserError: If the queue cannot be read.
    """
    from core.queue.view import next_begin
    from core.runs.outlook.forecast import unmet, wants_plan

    if not wants_plan(config):
        return []
    return list(unmet(config, estimator.estimate(config), None if held else next_begin(estimator)))
