"""Former conversations: those that were kept with a run, to open or to discard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from core.chat.transcripts import remove_transcript
from core.errors import UserError
from tui.screens.pick import Discard, Pick, PickScreen

if TYPE_CHECKING:
    from textual.widget import Widget

    from core.chat.transcripts import Transcript


def offer_former(
    pane: Widget,
    found: Sequence[Transcript],
    present: str,
    take_up: Callable[[Transcript], None],
    say: Callable[[str, str], None],
) -> None:
    """Ask which of the kept conversations to go on with.

    Args:
        pane: Has the app.
        found: The conversations.
        present: The id of the present one, which cannot be discarded: it would be written again.
        take_up: Takes the one that is chosen.
        say: Takes what went wrong, and a style.
    """
    by_id = {one.id: one for one in found}

    def chosen(identity: str | None) -> None:
        if identity in by_id:
            take_up(by_id[identity])

    def discard(identity: str) -> None:
        try:
            remove_transcript(by_id[identity])
        except UserError as error:
            say(str(error), "$error")

    picks = [Pick(one.id, one.title, one.when) for one in found]
    others = frozenset(by_id) - {present}
    screen = PickScreen("Conversations of this run", picks, present, discard=Discard(others, discard))
    pane.app.push_screen(screen, chosen)
