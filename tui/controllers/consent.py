"""Consent to a run whose wishes for the night cannot be met."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tui.controllers.desktop import Desktop

if TYPE_CHECKING:
    from core.runs.outlook.forecast import Unmet


async def starts_all_the_same(desktop: Desktop, wishes: Sequence[Unmet]) -> bool:
    """Ask whether a run is to start all the same, where an earlier run has shown that it cannot meet a wish; what is
    only estimated is no question.

    Args:
        desktop: Where the question is shown.
        wishes: The wishes that cannot be met.
    """
    from tui.screens.dialogs import YES, unmet_dialog

    measured = [wish for wish in wishes if wish.is_measured]
    if not measured:
        return True
    answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def answered(chosen: str | None) -> None:
        if not answer.done():
            answer.set_result(chosen == YES)

    desktop.open(unmet_dialog(measured), answered)
    return await answer
