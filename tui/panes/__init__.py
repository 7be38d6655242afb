"""The five panes Data, Config, Train, Chat and Runs, imported on first use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
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


@dataclass(frozen=True)
class PaneSpec(Generic[PaneT_co]):
    """Declaration of a pane, with a loader of its class."""

    id: str
    number: int
    title: str
    place: str
    """The module of its class, and the class."""
    at_once: bool = False
    """True if it is light enough to load before the first paint."""

    def load(self) -> type[PaneT_co]:
        """Import the class."""
        module, _, name = self.place.rpartition(".")
        found: type[PaneT_co] = getattr(import_module(module), name)
        return found


DATA: PaneSpec[DataPane] = PaneSpec("data", 1, "Data", "tui.panes.data.pane.DataPane")
CONFIG: PaneSpec[ConfigPane] = PaneSpec("config", 2, "Config", "tui.panes.config.pane.ConfigPane")
TRAIN: PaneSpec[TrainPane] = PaneSpec("train", 3, "Train", "tui.panes.train.TrainPane", at_once=True)
CHAT: PaneSpec[ChatPane] = PaneSpec("chat", 4, "Chat", "tui.panes.chat.pane.ChatPane")
RUNS: PaneSpec[RunsPane] = PaneSpec("runs", 5, "Runs", "tui.panes.runs.RunsPane")

PANES: tuple[PaneSpec[Pane], ...] = (DATA, CONFIG, TRAIN, CHAT, RUNS)

#: Panes that are tiled on a large terminal, in the order of the grid.
TILED = ("data", "train", "config", "chat")


def pane_spec(name: str) -> PaneSpec[Pane]:
    """The declaration of a pane by its id."""
    return next(spec for spec in PANES if spec.id == name)


class _Loaded(Generic[PaneT]):
    """Attribute of :class:`Panes`: the pane of a declaration."""

    def __init__(self, spec: PaneSpec[PaneT]) -> None:
        self._spec = spec

    def __get__(self, panes: Panes, _: object) -> PaneT | None:
        pane = panes.find(self._spec.id)
        # Check for a pane first, as loading the class imports it.
        return pane if pane is not None and isinstance(pane, self._spec.load()) else None


class Panes:
    """Typed access to the loaded panes; None for a pane that is not loaded yet.

    Args:
        find: Returns the pane of an id, if it is loaded.
    """

    data, config, train, chat, runs = _Loaded(DATA), _Loaded(CONFIG), _Loaded(TRAIN), _Loaded(CHAT), _Loaded(RUNS)

    def __init__(self, find: Callable[[str], Pane | None]) -> None:
        self.find = find
