"""Check of the waits: how often the CPU waits for the card within an optimizer step, by torch's own warnings.

A wait costs little by itself. But until the CPU launches the next kernels, the card has nothing to do, so that one in
each layer slows a run by a quarter and more.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from core.atomic import write_atomic
from core.config.derived import updates_in_backward
from core.config.schema import Config
from core.worker.selftest.check import Bench, Outcome
from core.worker.selftest.worker_run import WorkerRun, shape_config
from core.worker.train import FinetuneRecipe

#: File in a run directory with the places of the waits, one entry for each wait.
WAITS = "waits.json"
#: Waits of a step: for transformers' test for packed rows, the loss and the gradient norm.
ALLOWED = 3
#: The step whose waits are counted, from 1; earlier ones choose kernels and make states.
_STEP = 3
#: The beginning of torch's warning about a wait.
_WARNING = "called a synchronizing"


class WaitCounter:
    """Counts the waits of one step of a run in this process.

    Args:
        run: The run directory, for the record.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._steps = 0

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Inside, the steps of this process are counted, and the waits of one are recorded."""
        step = FinetuneRecipe.step

        def counted(recipe: FinetuneRecipe) -> None:
            self._steps += 1
            if self._steps != _STEP:
                return step(recipe)
            places = waits_of(lambda: step(recipe))
            return write_atomic(self._run / WAITS, json.dumps(places))

        FinetuneRecipe.step = counted  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            FinetuneRecipe.step = step  # type: ignore[method-assign]


def waits_of(work: Callable[[], Any]) -> list[str]:
    """The places in which the CPU waits for the card, in their order: ``worker/train.py:231``.

    Waits of torch's own operations within backward are at the line that calls it, as autograd passes their warnings on.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in caught if str(warning.message).startswith(_WARNING)]
    return [f"{'/'.join(Path(warning.filename).parts[-2:])}:{warning.lineno}" for warning in found]


def check(bench: Bench) -> Outcome:
    """Count the waits of a step of adapters, and of a step of all weights with updates in backward."""
    if not bench.is_cuda:
        return Outcome("not applicable", "A CPU waits for no card.")
    said, failed = [], False
    for name, config in configs(bench).items():
        run = WorkerRun(bench, name, config, "counted")
        run.train()
        places = json.loads((run.run.path / WAITS).read_text(encoding="utf-8"))
        if not places:
            # Reading the loss is a wait: torch does not report them here.
            return Outcome("not applicable", "torch reports no waits on this device.")
        allowed = allowed_waits(config)
        failed = failed or len(places) > allowed
        said.append(f"{describe(places)} in a step of {name}, of {allowed} allowed")
    return Outcome("fail" if failed else "pass", f"The CPU waits for the card {'; '.join(said)}.")


def configs(bench: Bench) -> dict[str, Config]:
    """The configurations of the counted runs, by what they train."""
    adapters = shape_config(bench, bench.sizes.shortage, _STEP)
    weights = adapters.with_options(method={"name": "full"}, train={"optimizer": "adamw_8bit"})
    return {"adapters": adapters, "all weights": weights}


def allowed_waits(config: Config) -> int:
    """The allowed waits of a step; updates in backward need the loss of each micro-batch before it."""
    return ALLOWED + updates_in_backward(config)


def describe(places: Sequence[str]) -> str:
    """The number of waits and their places: ``3 times (worker/train.py:231, optim/update.py:39 2 times)``."""
    counts = Counter(places)
    listed = [place if count == 1 else f"{place} {count} times" for place, count in counts.most_common()]
    return f"{'once' if len(places) == 1 else f'{len(places)} times'} ({', '.join(listed)})"
