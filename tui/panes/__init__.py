"""The five panes: Data, Config, Train, Chat and Runs; each is imported when it is first needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from tui.panes.base import Pane
    from tui.panes.chat.pane import ChatPane
    from tui.panes.config.pane import ConfigPane
    from tui.panes.data.pane import DataPane
    from tui.panes.runs import RunsPane
    from tui.panes.train import TrainPane

PaneT = TypeVar("PaneT", bound="Pane")
PaneT_co = TypeVar("PaneT_co", bound="Pane", covariant=True)


def _data() -> type[DataPane]:
    from tui.panes.data.pane import DataPane

    return DataPane


def _config() -> type[ConfigPane]:
    from tui.panes.config.pane import ConfigPane

    return ConfigPane


def _train() -> type[TrainPane]:
    from tui.panes.train import TrainPane

    return TrainPane


def _chat() -> type[ChatPane]:
    from tui.panes.chat.pane import ChatPane

    return ChatPane


def _runs() -> type[RunsPane]:
    from tui.panes.runs import RunsPane

    return RunsPane


@dataclass(frozen=True)
class PaneSpec(Generic[PaneT_co]):
    """A pane before it is loaded: its place in the table, and a loader of its class."""

    id: str
    number: int
    title: str
    load: Callable[[], type[PaneT_co]]
    """A function that imports the class."""
    at_once: bool = False
    """Whether it is light enough to be loaded for the first paint."""


DATA = PaneSpec("data", 1, "Data", _data)
CONFIG = PaneSpec("config", 2, "Config", _config)
TRAIN = PaneSpec("train", 3, "Train", _train, at_once=True)
CHAT = PaneSpec("chat", 4, "Chat", _chat)
RUNS = PaneSpec("runs", 5, "Runs", _runs)

PANES: tuple[PaneSpec[Pane], ...] = (DATA, CONFIG, TRAIN, CHAT, RUNS)

#: Panes that are tiled on a large terminal, in the order of the grid; Runs takes the whole of it.
TILED = ("data", "train", "config", "chat")


def pane_spec(name: str) -> PaneSpec[Pane]:
    """The pane of an id."""
    return next(spec for spec in PANES if spec.id == name)


class Panes:
    """The panes loaded so far, each by its class; None for one that has not been loaded.

    Args:
        find: Returns the content of the slot of an id.
    """

    def __init__(self, find: Callable[[str], Pane | None]) -> None:
        self.find = find

    def _get(self, spec: PaneSpec[PaneT]) -> PaneT | None:
        pane = self.find(spec.id)
        # Its class is asked for only where there is one, as that imports it.
        return pane if pane is not None and isinstance(pane, spec.load()) else None

    @property
    def data(self) -> DataPane | None:
        """The Data pane."""
        return self._get(DATA)

    @property
    def config(self) -> ConfigPane | None:
        """The Config pane."""
        return self._get(CONFIG)

    @property
    def train(self) -> TrainPane | None:
        """The Train pane."""
        return self._get(TRAIN)

    @property
    def chat(self) -> ChatPane | None:
        """The Chat pane."""
        return self._get(CHAT)

    @property
    def runs(self) -> RunsPane | None:
        """The Runs pane."""
        return self._get(RUNS)
