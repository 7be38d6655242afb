"""Facts outside a configuration that its checks need: model, card, disk, rows, the last run and the memory plan."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from core import deepspeed
from core.analysis.division import HELD_OUT
from core.config.facts import Facts, find_missing_trackers, read_shape
from core.errors import UserError
from core.governor.check import unkept_on
from core.memory.plan import RECLAIMABLE
from core.memory.planner import Source, disk_need
from core.models.find import find_model
from core.models.published import find_published
from core.text import one_line
from core.units import format_count
from tui.datasets.plan import plan_data
from tui.datasets.summary import counted
from tui.files import follow_links
from tui.panes.config.model import BaseFinding, ConfigModel, NamedBase, check_base, find_missing

if TYPE_CHECKING:
    from core.analysis.result import Analysis, AnalysisRequest, Lengths
    from core.config.document import ConfigDocument
    from core.hardware.card import Card
    from core.hardware.snapshot import Device
    from core.models.advice import Advice
    from core.models.architecture.architecture import Architecture
    from core.runs.catalog.earlier import ModelCatalog, Origin
    from core.runs.outlook.estimate import Estimate, PaceBook
    from tui.widgets.charts.plan_bar import PlanView


class FactsFinder:
    """Cache of the facts that rules and comparisons need; slow lookups run in threads."""

    def __init__(self) -> None:
        self.facts = Facts(missing_trackers=find_missing_trackers(), has_deepspeed=deepspeed.is_installed())
        self.card: Card | None = None
        self.last_run: Origin | None = None
        self.advice: tuple[Advice, ...] = ()
        """The advice for the base model."""
        self._base: BaseFinding | None = None
        self.rows: dict[Path, int] = {}
        """Known row counts of data files."""
        self._paces: PaceBook | None = None
        self._planned_rows: int | None = None
        self._analyses: dict[Path, tuple[AnalysisRequest | None, Analysis]] = {}
        """Analyses of training files, each with its request."""
        self.lengths: Lengths | None = None
        """The row lengths of the last :meth:`facts_for`; None if unknown."""

    @cached_property
    def models(self) -> ModelCatalog:
        """The base models on this machine."""
        from core.runs.catalog.earlier import ModelCatalog

        return ModelCatalog()

    def facts_for(self, model: ConfigModel) -> Facts:
        """The facts for a configuration; the row count is None unless a run would use exactly these rows."""
        known = None if model.document.get("data.weights") else self.rows_of(model)
        self._planned_rows = known[0] if known is not None else None
        self.lengths = None
        if known is not None and (analysis := self.analysis_of(model)) is not None:
            # Steps are counted by the order, gaps included.
            self._planned_rows, self.lengths = analysis.ordered, analysis.lengths
        return replace(self.facts, rows=self._planned_rows)

    def rows_of(self, model: ConfigModel) -> tuple[int, int] | None:
        """The rows of a configuration that are trained on, and held out of its files; None while they are unknown."""
        if (analysis := self.analysis_of(model)) is not None:
            return analysis.used, analysis.dropped.get(HELD_OUT, 0)
        files = model.train_paths()
        if not files or any(path not in self.rows for path in files):
            return None
        total = sum(self.rows[path] for path in files)
        held_out = model.held_out(total)
        return total - held_out, held_out

    def analysis_of(self, model: ConfigModel) -> Analysis | None:
        """The analysis of the only training file, if the file is still read in the same way."""
        files = model.train_paths()
        reading, analysis = self._analyses.get(files[0], (None, None)) if len(files) == 1 else (None, None)
        return analysis if analysis is not None and reading == _reading(model.document, files[0], analysis) else None

    def take_analysis(self, model: ConfigModel, path: Path, analysis: Analysis | None) -> bool:
        """Take the analysis of a file, None if it is unknown; returns False if the configuration does not use it."""
        mine = next((file for file in model.train_paths() if follow_links(file) == follow_links(path)), None)
        if mine is None:
            return False
        self._analyses.pop(mine, None)
        if analysis is not None:
            self._analyses[mine] = _reading(model.document, mine, analysis), analysis
        return True

    async def find_card(self, device: str, gpu: str | None) -> None:
        """Query the driver for the card and for the run's device, whose sensors the limits need.

        Args:
            device: ``hardware.device``.
            gpu: ``hardware.gpu``, as in :func:`core.hardware.card.find_card`.
        """
        self.card, metered = await asyncio.to_thread(_find_card, device, gpu)
        card = self.card
        unknown = Facts()
        self.facts = replace(
            self.facts,
            device=unknown.device if card is None else "cuda",
            bf16=unknown.bf16 if card is None else card.has_bf16,
            device_bytes=unknown.device_bytes if card is None else card.memory_total,
            unkept=partial(unkept_on, metered),
        )

    async def check_base(self, base: NamedBase, key: str) -> None:
        """Look up the base model, and check its ``config.json``.

        Args:
            base: The model.
            key: The key that opens the list of models, for the message.
        """
        self._base = await asyncio.to_thread(check_base, base, key)

    def miss_base(self, base: NamedBase, key: str) -> None:
        """Check now whether the base model is on this machine; other findings about it are kept."""
        missing = find_missing(base, key)
        if missing is not None:
            self._base = missing
        elif self._base is not None and self._base.base == base and self._base.is_missing:
            self._base = None

    def base_problem(self, base: NamedBase) -> str:
        """The problem of a base model; empty if there is none, or it has not been checked yet."""
        return self._base.sentence if self._base is not None and self._base.base == base else ""

    async def look_around(self, base: str, name: str, directory: Path) -> None:
        """Look up the model, the advice for it, the disk and the last run.

        Args:
            base: ``model.base`` of the configuration.
            name: The name of its runs.
            directory: The base directory of relative paths.
        """
        shape, self.advice, free, self.last_run = await asyncio.to_thread(_look, base, name, directory)
        self.facts = replace(self.facts, model=shape, free_bytes=free, disk_need=partial(disk_need, shape))

    async def read_paces(self) -> None:
        """Read the paces of earlier runs once, for the time estimates of all plans."""
        self._paces = await asyncio.to_thread(_read_paces)

    async def count_rows(self, path: Path) -> None:
        """Count the rows of a data file."""
        # The Data pane shows errors of the file; here its row count stays unknown.
        with suppress(UserError):
            self.rows[path] = await asyncio.to_thread(_count_rows, path)

    def plan(self, document: ConfigDocument, measures: bool) -> PlanView | None:
        """The memory plan of a configuration, for the rows of the last :meth:`facts_for`; blocks.

        Args:
            document: The configuration.
            measures: True to measure a model that has not been measured, which takes seconds; else the plan is a rough
                bound for such a model.

        Raises:
            UserError: If the memory of its model cannot be estimated.
        """
        source: Source = "measured" if measures else "known"
        return plan_document(document, self._paces, self._planned_rows, self.lengths, source)


def _reading(document: ConfigDocument, path: Path, analysis: Analysis) -> AnalysisRequest | None:
    """The request by which a configuration's analysis of a file is made; None if its model is not there any more."""
    with suppress(UserError):
        return plan_data(document).request(path, with_tokens=analysis.lengths is not None)
    return None


# In threads, with their slow imports.


def plan_document(
    document: ConfigDocument,
    paces: PaceBook | None = None,
    count: int | None = None,
    lengths: Lengths | None = None,
    source: Source = "measured",
) -> PlanView | None:
    """Plan the memory of a configuration; blocks, as it queries the driver and reads file headers.

    Args:
        document: The configuration.
        paces: The pace of earlier runs, for the time estimate; without it, the plan gives the estimate.
        count: The number of rows, if known.
        lengths: The row lengths, if an analysis has measured them.
        source: As in :func:`core.memory.planner.make_plan`.

    Returns:
        None if the configuration has problems, or its model has no ``config.json`` and no published shape.

    Raises:
        UserError: If the memory of its model cannot be estimated.
    """
    from core.quantization.job import known_sentence
    from core.runs.outlook.estimate import PaceBook
    from core.runs.outlook.forecast import forecast_here, likely
    from tui.widgets.charts.plan_bar import PlanView

    try:
        config = document.validate()
    except UserError:
        return None
    base = find_model(config.model.base)
    is_unknown = find_published(config.model.base) is None
    if is_unknown if base is None else base.is_dir() and not (base / "config.json").is_file():
        return None
    found = forecast_here(config, lengths, count, PaceBook(()) if paces is None else paces, source)
    batch = found.plan.micro_batch
    each = (f", {found.each}" if found.each else "") + (", by its published shape" if base is None else "")
    return PlanView(
        [(part.name, part.bytes) for part in found.plan.parts if part.bytes and part.name not in RECLAIMABLE],
        found.plan.needed_bytes,
        found.plan.limit_bytes,
        found.fits,
        [advice.text for advice in found.advice],
        _time(likely(config, found, count)),
        f"{counted(batch.rows, 'row')} of {format_count(batch.length)} tokens at once{each}"
        if found.rows is not None
        else f"for rows of {format_count(config.train.max_length)} tokens{each}",
        known_sentence(config),
        found.is_rough,
        found.rows is None,
    )


def _time(guess: Estimate | None) -> str:
    """Time estimate: ``about 14m 00s · 41 Wh · at the pace of 20261124-143601-tickets``; empty if unknown."""
    from core.runs.outlook.estimate import estimate_words

    if guess is None:
        return ""
    words = estimate_words(guess)
    return " · ".join(filter(None, (words.duration, words.energy, words.end, one_line(words.basis, 120))))


def _find_card(device: str, gpu: str | None) -> tuple[Card | None, Device | None]:
    from core.hardware.card import find_card
    from core.hardware.sampler import read_device

    return find_card(gpu=gpu), read_device(device, gpu)


def _read_paces() -> PaceBook:
    from core.runs.outlook.estimate import PaceBook

    return PaceBook()


def _look(
    base: str, name: str, directory: Path
) -> tuple[Architecture | None, tuple[Advice, ...], int | None, Origin | None]:
    from core import paths
    from core.directories import free_bytes
    from core.hub_uri import absolute
    from core.models.advice import advice_for
    from core.runs.catalog.earlier import newest_like

    free, last = None, None
    # A lookup that fails leaves the fact unknown; rules that need it stay silent.
    with suppress(UserError):
        free = free_bytes(paths.runs_dir())
    with suppress(OSError, ValueError, UserError):
        resolved = absolute(base, directory)
        last = newest_like(name, resolved if Path(resolved).exists() else base)
    return read_shape(base, directory), advice_for(base, directory), free, last


def _count_rows(path: Path) -> int:
    from core.analysis.row_samples import count_rows

    return count_rows([str(path)]).rows
