"""Steps of a run and of an epoch, where the rows of the data can be counted."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from core.config.schema import TrainSection
from core.data.registries.resolve import resolve_source
from core.errors import UserError
from core.hub_uri import absolute
from core.importers.rules import is_one_of
from core.importers.translation import Translation

#: Most bytes of data files that are counted; larger ones would keep the user waiting.
COUNTED_BYTES = 256 << 20
# Compressed files, and the cost of one of their bytes in bytes of text.
_PACKED, _UNPACKING = (".gz", ".zst", ".parquet", ".arrow", ".feather"), 8

_NOT_KNOWN = "The rows cannot be counted before the data is here (import again then)"


def count_entries(work: Translation) -> list[int] | None:
    """Rows of each entry of ``data.train``, counted in the files; None where one cannot be counted.

    Files that are missing, damaged, not downloaded yet or large are not counted. ``data.train`` must be set already.
    """
    setting = work.settings.get("data.train")
    if setting is None:
        return None
    entries = setting.value if isinstance(setting.value, list) else [setting.value]
    names = tuple(absolute(entry, work.places.home or Path.cwd()) for entry in entries)
    if names not in work.counted:
        work.counted[names] = _count(names)
    return work.counted[names]


def _count(names: Sequence[str]) -> list[int] | None:
    found, room = [], COUNTED_BYTES
    try:
        for name in names:
            rows = 0
            for source in resolve_source(name):
                files = source.files or (source.path,)
                factor = _UNPACKING if files[0].suffix.lower() in _PACKED else 1
                if sum(os.path.getsize(file) for file in files if os.path.isfile(file)) * factor > room:
                    return None
                with source.open() as file:
                    room -= file.size * factor
                    if room < 0:
                        return None
                    file.index()
                    rows += file.count_known if source.limit is None else min(file.count_known, source.limit)
            found.append(rows)
    except (UserError, OSError, ValueError):
        # The run itself reports errors in the files.
        return None
    return found if sum(found) else None


def count_rows(work: Translation) -> int | None:
    """Rows of an epoch, without the held-out ones, each entry's weighted by ``data.weights``.

    Returns:
        An estimate; None where they cannot be counted.
    """
    entries = count_entries(work)
    if entries is None:
        return None
    total = sum(entries)
    share = work.settings["data.eval_share"].value if "data.eval_share" in work.settings else 0.0
    weights = work.settings["data.weights"].value if "data.weights" in work.settings else [1.0] * len(entries)
    left = 1 - (max(round(share * total), 1) if share else 0) / total
    used: int = sum(round(count * left * weight) for count, weight in zip(entries, weights, strict=True))
    return max(used, 1)


def steps_of_epoch(work: Translation) -> tuple[int, str] | None:
    """Steps of an epoch, and how they were found; ``train.batch_size`` must be set already."""
    rows = count_rows(work)
    if rows is None:
        return None
    batch = (
        work.settings["train.batch_size"].value if "train.batch_size" in work.settings else TrainSection().batch_size
    )
    return math.ceil(rows / batch), f"{rows} rows / batch size {batch}"


def every(work: Translation, key: str, option: str, instead: str, epochs: float | None = None) -> None:
    """An interval in steps; a value below 1 is a share of all steps.

    Args:
        work: The translation.
        key: The key of the number.
        option: Our option.
        instead: The consequence where the number is unknown.
        epochs: The epochs of the run, where ``max_steps`` does not apply.
    """
    steps = work.number(key)
    if steps is None:
        return
    if steps <= 0:
        work.carry(key, None, reason="It says nothing here either.")
        return
    if steps >= 1:
        work.carry(key, option, int(steps))
        return
    total = _most_steps(work)
    if total is not None:
        work.change(key, option, _whole(steps * total), f"{steps:g} of {total} steps.")
    elif epochs is not None and (found := steps_of_epoch(work)) is not None:
        total, reason = _whole(found[0] * epochs), found[1]
        work.change(key, option, _whole(steps * total), f"{steps:g} of {total} steps: {epochs:g} epochs of {reason}.")
    else:
        work.drop(key, f"A share of a number of steps. {_NOT_KNOWN}: {instead}")


def per_epoch(
    work: Translation, key: str, option: str, times: float, instead: str, epochs: float | None = None
) -> None:
    """An interval from a number of times per epoch.

    Args:
        work: The translation.
        key: The key that asks for it.
        option: Our option, in steps.
        times: Times per epoch.
        instead: The consequence where the number is unknown.
        epochs: The epochs that a run of ``max_steps`` counts as, where the tool does so.
    """
    total = _most_steps(work)
    if total is not None and epochs:
        # As Axolotl does: a share of the steps, whatever their number.
        number = _whole(total / times / epochs)
        work.change(key, option, number, f"{total} steps / {times:g} times in each of {epochs:g} epochs.")
    elif (found := steps_of_epoch(work)) is not None:
        number = _whole(found[0] / times)
        often = "Once" if times == 1 else f"{times:g} times"
        work.change(key, option, number, f"{often} in an epoch of {found[1]} = {found[0]} steps.")
    else:
        work.drop(key, f"{_NOT_KNOWN}: {instead}")


def save_strategy(work: Translation, instead: str) -> None:
    """Checkpoint interval from the save strategy; called before ``save_steps``, which applies only with ``steps``.

    Args:
        work: The translation.
        instead: The consequence where the steps of an epoch are unknown.
    """
    key, option = "save_strategy", "checkpoint.every_steps"
    value = work.values.get(key)
    if value is None:
        return
    if is_one_of(value, ("steps",)):
        work.carry(key, None, reason="As it is here.")
    elif is_one_of(value, ("epoch",)):
        if option in work.settings:
            work.drop(key, "Steps are given too, and count.")
            return
        per_epoch(work, key, option, 1, instead)
        if work.has("save_steps"):
            work.drop("save_steps", "It counts only with save_strategy: steps.")
    elif is_one_of(value, ("no", False)):
        work.drop(key, "A run can always go on: ten checkpoints, or as save_steps says.")
    elif is_one_of(value, ("best",)):
        work.carry(key, None, reason="The best checkpoint is kept in any case, beside the newest ones.")
    else:
        work.drop(key, f"It may be no, steps or epoch: {instead}")


def _whole(number: float) -> int:
    """A finite number of steps, at least one."""
    return max(math.ceil(min(number, 1e12)), 1)


def _most_steps(work: Translation) -> int | None:
    total = work.values.get("max_steps")
    return total if isinstance(total, int) and not isinstance(total, bool) and total > 0 else None
