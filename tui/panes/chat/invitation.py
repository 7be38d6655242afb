"""The invitation to ask, in an empty conversation: who would answer, and the keys for it."""

from __future__ import annotations

from tui.keys import KeyTable
from tui.panes.chat.partner import Partner
from tui.widgets.start_here import StartHere


def invite(empty: StartHere, partner: Partner, keys: KeyTable) -> None:
    """Show whether there is someone to ask, and what can be done.

    Args:
        empty: The empty state that shows it.
        partner: Who is talked to.
        keys: The key table.
    """
    start = (keys["app.start"].display, "Start a run; its model answers here while it trains")
    runs = keys["app.runs"].display
    if partner.target is None:
        empty.explain("Nothing to talk to yet.", [start, (runs, "Open a run that has ended, and talk to what it made")])
    elif not partner.has_weights:
        empty.explain(
            "This run ended before it saved anything, so there is no model to ask.",
            [start, (runs, "Open another run, and talk to what it made")],
        )
    else:
        write = (keys["chat.write"].display, "Write to the model below; enter sends, esc leaves the prompt")
        named = ("chat.source", "chat.both", "chat.compare") if partner.has_adapter else ()
        empty.explain(partner.invitation, [write, *((keys[name].display, keys[name].help) for name in named)])
