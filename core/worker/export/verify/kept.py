"""Answers of trained models, kept between exports: measuring them takes most of the time of an export."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from core import __version__, paths
from core.directories import free_bytes, new_directory, remove_tree
from core.errors import UserError
from core.models.installed import version_of
from core.runs.catalog.trained import TrainedModel
from core.small_files import hash_file

#: Packages whose versions may change the answers.
_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
#: Most sets of answers kept: those for an adapter and for a whole model have different figures.
_MOST = 2
#: Least free space, as a multiple of the size of the answers.
_ROOM = 10


class KeptAnswers:
    """The place of a trained model's answers in the cache, by all that decides them.

    Args:
        trained: The trained model.
        base_sha256: The fingerprint of its base.
        asked: Rows and options of the measurement, as JSON.
    """

    def __init__(self, trained: TrainedModel, base_sha256: str, asked: dict[str, Any]) -> None:
        files = sorted(trained.adapter.glob("adapter_*")) if trained.adapter is not None else []
        files += [trained.weights] if trained.weights is not None else []
        every = [
            [__version__, *map(version_of, _PACKAGES)],
            [base_sha256, *((path.name, hash_file(path)) for path in files)],
            trained.config.model_dump(mode="json"),
            asked,
        ]
        key = hashlib.sha256(json.dumps(every, sort_keys=True).encode()).hexdigest()[:32]
        self._place = paths.answers_dir() / f"{trained.run.id}-{key}"

    def take(self, directory: Path) -> bool:
        """Put the kept answers into an empty directory; returns False where there are none."""
        try:
            os.utime(self._place)
            _link(self._place, directory)
        except OSError:
            # None, or not whole; both begin anew.
            shutil.rmtree(self._place, ignore_errors=True)
            for path in directory.iterdir():
                path.unlink()
            return False
        return True

    def keep(self, directory: Path) -> None:
        """Keep the answers in a directory, and remove the oldest ones; without room, none are kept."""
        size = sum(path.stat().st_size for path in directory.iterdir())
        with contextlib.suppress(OSError, UserError):
            place = paths.make_private_dir(self._place.parent)
            if (free := free_bytes(place)) is None or free < _ROOM * size:
                return
            with new_directory(self._place) as made:
                _link(directory, made)
            kept = sorted((path for path in place.iterdir() if path.name[0] != "."), key=os.path.getmtime)
            for old in kept[:-_MOST]:
                remove_tree(old)


def _link(source: Path, target: Path) -> None:
    """Link the files of a directory into another one; copy them where that is on another disk."""
    for path in sorted(source.iterdir()):
        try:
            os.link(path, target / path.name)
        except OSError:
            shutil.copyfile(path, target / path.name)
