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
    """A pane before it is there: its place in the table, and how to come by its class."""

    id: str
    number: int
    title: str
    load: Callable[[], type[PaneT_co]]
    """Imports the class."""
    at_once: bool = False
    """Whether it is light enough to be there at the first paint."""


DATA = PaneSpec("data", 1, "Data", _data)
CONFIG = PaneSpec("config", 2, "Config", _config)
TRAIN = PaneSpec("train", 3, "Train", _train, at_once=True)
CHAT = PaneSpec("chat", 4, "Chat", _chat)
RUNS = PaneSpec("runs", 5, "Runs", _runs)

PANES: tuple[PaneSpec[Pane], ...] = (DATA, CONFIG, TRAIN, CHAT, RUNS)

#: The panes that stand side by side on a large terminal, in the order of the grid; Runs takes the whole of it.
TILED = ("data", "train", "config", "chat")


def pane_spec(name: str) -> PaneSpec[Pane]:
    """The pane of that id."""
    return next(spec for spec in PANES if spec.id == name)


class Panes:
    """The panes that there are by now, each by its class; None for one that has not been loaded.

    Args:
        find: Gives what is in the slot of an id.
    """

    def __init__(self, find: Callable[[str], Pane | None]) -> None:
        self.find = find

    def _get(self, spec: PaneSpec[PaneT]) -> PaneT | None:
        pane = self.find(spec.id)
        # Only where there is one may its class be asked for, which imports it.
        return pane if pane is not None and isinstance(pane, spec.load()) else None

    @property
    def data(self) -> DataPane | None:
        """The rows that are trained on."""
        return self._get(DATA)

    @property
    def config(self) -> ConfigPane | None:
        """The configuration."""
        return self._get(CONFIG)

    @property
    def train(self) -> TrainPane | None:
        """The run that is shown."""
        return self._get(TRAIN)

    @property
    def chat(self) -> ChatPane | None:
        """The conversation."""
        return self._get(CHAT)

    @property
    def runs(self) -> RunsPane | None:
        """The list of runs."""
        return self._get(RUNS)
