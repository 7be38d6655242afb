"""The five panes: Data, Config, Train, Chat and Runs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from textual.widget import Widget


@dataclass(frozen=True)
class PaneSpec:
    """Where a pane comes from; its module is imported when it is first needed."""

    id: str
    number: int
    title: str
    module: str
    class_name: str
    at_once: bool = False
    """Whether it is light enough to be there at the first paint."""

    def create(self) -> Widget:
        """Import the module and make the pane."""
        pane = getattr(import_module(self.module), self.class_name)()
        if not isinstance(pane, Widget):
            raise TypeError(f"{self.class_name} is not a widget")
        return pane


PANES: tuple[PaneSpec, ...] = (
    PaneSpec("data", 1, "Data", "tui.panes.data.pane", "DataPane"),
    PaneSpec("config", 2, "Config", "tui.panes.config.pane", "ConfigPane"),
    PaneSpec("train", 3, "Train", "tui.panes.train", "TrainPane", at_once=True),
    PaneSpec("chat", 4, "Chat", "tui.panes.chat.pane", "ChatPane"),
    PaneSpec("runs", 5, "Runs", "tui.panes.runs", "RunsPane"),
)

#: The panes that stand side by side on a large terminal, in the order of the grid; Runs takes the whole of it.
TILED = ("data", "train", "config", "chat")


def pane_spec(name: str) -> PaneSpec:
    """The pane of that id."""
    return next(spec for spec in PANES if spec.id == name)
