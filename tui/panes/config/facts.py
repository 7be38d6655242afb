"""What the config pane knows beside the configuration: model, card, disk, rows, the last run and the memory plan."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from textual import on, work
from textual.message import Message
from textual.worker import get_current_worker

from core.config.document import ConfigDocument
from core.config.facts import Facts, find_missing_trackers, read_shape
from core.errors import UserError
from core.memory.disk import disk_need
from core.text import one_line
from tui.panes.config.files import ConfigFiles
from tui.widgets.charts.plan_bar import PlanBar, Planner, PlanView

if TYPE_CHECKING:
    from core.hardware.card import Card
    from core.models.architecture.architecture import Architecture
    from core.runs.latest import LikeRun
    from core.runs.pace import PaceBook


@dataclass
class _RowsCounted(Message):
    path: Path
    count: int


@dataclass
class _CardFound(Message):
    card: Card | None


@dataclass
class _LookedAround(Message):
    model: Architecture | None
    free_bytes: int | None
    last_run: LikeRun | None


@dataclass
class _PacesRead(Message):
    paces: PaceBook


@dataclass
class _Planned(Message):
    plan: PlanView | None


class ConfigFacts(ConfigFiles):
    """A pane that gathers, in threads, what rules and comparisons need, and keeps it."""

    planner: Planner | None = None
    """Makes the memory plan; without one there is no bar."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.facts = Facts(missing_trackers=find_missing_trackers())
        self.card: Card | None = None
        self.last_run: LikeRun | None = None
        self.rows: dict[Path, int] = {}
        self.paces: PaceBook | None = None
        """Earlier runs, for how long this one takes."""
        self.planned_rows: int | None = None
        """How many rows the plan is made for, where that is known."""
        self._looked_at: tuple[str, str] | None = None

    def look_for_card(self) -> None:
        """Ask the driver, once; it may take its time."""
        self._find_card()

    def look_around(self, *, anew: bool = False) -> None:
        """Look at the model, the disk and the last run, where they may be others than before."""
        base = self.model.effective("model.base")
        wanted = (base if isinstance(base, str) else "", self.model.run_name)
        if anew or wanted != self._looked_at:
            self._looked_at = wanted
            self._look(*wanted, self.model.base)

    def run_ended(self) -> None:
        """A run that has ended tells more than those before it."""
        self.look_around(anew=True)
        self.read_paces()

    def refresh_plan(self) -> None:
        """Plan the configuration as it is now."""
        if self.planner is None:
            return
        self.planned_rows = self.facts_now().rows
        # A document of its own: this one may be edited while it is planned.
        document = ConfigDocument(self.document.dumps(), self.document.path)
        self._plan(self.planner, document)

    def facts_now(self) -> Facts:
        """What is known; the rows only while they are what a run will see of them."""
        files = self.model.train_paths()
        plain = not self.document.get("data.weights") and not self.document.get("data.eval_share")
        known = bool(files) and plain and all(path in self.rows for path in files)
        return replace(self.facts, rows=sum(self.rows[path] for path in files) if known else None)

    # In threads.

    @work(thread=True, exclusive=True, group="config-card")
    def _find_card(self) -> None:
        from core.hardware.card import find_card

        self.post_message(_CardFound(find_card()))

    @work(thread=True, exclusive=True, group="config-around")
    def _look(self, base: str, name: str, directory: Path) -> None:
        from core import paths
        from core.hub_uri import absolute
        from core.runs.latest import newest_like

        free, last = None, None
        # What cannot be told is not known; no rule that needs it speaks.
        with suppress(OSError, ValueError, UserError):
            free = shutil.disk_usage(paths.existing_parent(paths.runs_dir())).free
        with suppress(OSError, ValueError, UserError):
            resolved = absolute(base, directory)
            last = newest_like(name, resolved if Path(resolved).exists() else base)
        shape = read_shape(base, directory)
        if not get_current_worker().is_cancelled:
            self.post_message(_LookedAround(shape, free, last))

    @work(thread=True, exclusive=True, group="config-paces")
    def read_paces(self) -> None:
        """Read which runs there are; a plan asks for none of their directories again."""
        from core.runs.pace import PaceBook

        paces = PaceBook()
        if not get_current_worker().is_cancelled:
            self.post_message(_PacesRead(paces))

    @work(thread=True, exclusive=True, group="config-plan")
    def _plan(self, planner: Planner, document: ConfigDocument) -> None:
        try:
            plan = planner(document)
        except UserError as error:
            plan = PlanView((), 0, advice=(one_line(str(error), 200),))
        if not get_current_worker().is_cancelled:
            self.post_message(_Planned(plan))

    @work(thread=True, exclusive=True, group="config-rows")
    def count_rows(self, paths: Sequence[Path]) -> None:
        """Count the rows of data files."""
        from core.data.registries.resolve import resolve_source

        worker = get_current_worker()
        for path in paths:
            if worker.is_cancelled:
                return
            try:
                count = 0
                for source in resolve_source(str(path)):
                    with source.open_shared() as file:
                        file.index()
                        count += file.count_known
                self.post_message(_RowsCounted(path, count))
            except UserError:
                # The data pane says what is wrong with the file; here its rows only stay unknown.
                continue

    # What they found.

    @on(_CardFound)
    def _card_found(self, message: _CardFound) -> None:
        self.card = card = message.card
        if card is not None:
            self.facts = replace(self.facts, device="cuda", bf16=card.has_bf16, device_bytes=card.memory_total)
            self.refresh_fields()

    @on(_LookedAround)
    def _looked_around(self, message: _LookedAround) -> None:
        self.facts = replace(
            self.facts,
            model=message.model,
            free_bytes=message.free_bytes,
            disk_need=partial(disk_need, message.model),
        )
        self.last_run = message.last_run
        self.refresh_fields()

    @on(_RowsCounted)
    def _rows_counted(self, message: _RowsCounted) -> None:
        self.rows[message.path] = message.count
        self.refresh_fields()

    @on(_PacesRead)
    def _paces_read(self, message: _PacesRead) -> None:
        self.paces = message.paces
        self.refresh_plan()

    @on(_Planned)
    def _planned(self, message: _Planned) -> None:
        self.query_one("#config-plan", PlanBar).show(message.plan)
