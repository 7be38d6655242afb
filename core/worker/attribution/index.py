"""The index of a run: sketches of all rows at its compared checkpoints, in ``trace/step-N`` of the run directory.

An index is made in chunks, each written atomically into a hidden directory beside it, so that an interrupted attempt is
continued. The finished index has a manifest with the hash of its file and the facts that it depends on; a damaged
one counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.atomic import write_atomic
from core.beneath import directory_beneath
from core.directories import disk_error, remove_tree, require_space, whole_directory
from core.errors import UserError
from core.runs.record.store import TRACE, Run
from core.small_files import hash_file, read_json, read_small
from core.worker.attribution.gradients import SEED, SIZE
from core.worker.attribution.scores import FloatRows
from core.worker.attribution.subject import Subject
from core.worker.checkpoint.checkpoint import Checkpoint, checkpoint_name
from core.worker.data.dataset import TrainedExample

VERSION = 1
MANIFEST, SKETCHES = "manifest.json", "sketch.f16"
#: Examples of a chunk.
CHUNK = 64
#: Most bytes of a chunk or a manifest.
_LIMIT = 1 << 20


def trace_path(run: Run, step: int) -> Path:
    """The directory of a checkpoint's index."""
    return run.path / TRACE / checkpoint_name(step)


def index_facts(checkpoint: Checkpoint, examples: Sequence[TrainedExample]) -> dict[str, Any]:
    """The facts that an index depends on: rows, base, adapter, optimizer states, options and projection.

    Args:
        checkpoint: The checkpoint.
        examples: The examples, in the order of the index.
    """
    manifest = checkpoint.manifest
    files = {name: facts["sha256"] for name, facts in manifest["files"].items()}
    return {
        "version": VERSION,
        "step": checkpoint.step,
        "rows": manifest["data_sha256"],
        "base": manifest["base_sha256"],
        "config": manifest["config_sha256"],
        "adapter": files["adapter/adapter_model.safetensors"],
        "optimizer": files["optimizer.pt"],
        "examples": len(examples),
        "size": SIZE,
        "seed": SEED,
    }


def read_index(run: Run, facts: Mapping[str, Any]) -> FloatRows | None:
    """The finished index of a checkpoint, unit sketches ``(examples, size)``; None if there is none, it is damaged, or
    any of its facts has changed.

    Args:
        run: The run.
        facts: The facts of now.
    """
    directory = trace_path(run, facts["step"])
    try:
        manifest = read_json(directory / MANIFEST, _LIMIT)
        if manifest["facts"] != dict(facts) or manifest["sha256"] != hash_file(directory / SKETCHES):
            return None
        found = np.fromfile(directory / SKETCHES, dtype="<f2").reshape(facts["examples"], facts["size"])
        return found.astype(np.float32)
    except (OSError, ValueError, KeyError, TypeError, UserError, RecursionError):
        return None


class IndexMaker:
    """Makes the index of a checkpoint, chunk by chunk.

    Args:
        subject: The run's model.
        step: Step of the checkpoint.
    """

    def __init__(self, subject: Subject, step: int) -> None:
        self.subject, self.step = subject, step
        self.made = 0
        """Examples whose gradients were computed now."""
        self._progress: Callable[[int], None] = lambda _: None

    def make(self, progress: Callable[[int], None] = lambda _: None) -> FloatRows:
        """The index; read if it is there and whole.

        Args:
            progress: Called with the examples done.

        Raises:
            UserError: If rows or base have changed, or the disk has no room for it.
        """
        self._progress = progress
        checkpoint = self.subject.restore(self.step)
        run, examples = self.subject.run, self.subject.examples
        facts = index_facts(checkpoint, examples)
        if (there := read_index(run, facts)) is not None:
            self._progress(len(examples))
            return there
        try:
            with directory_beneath(run.path, TRACE, make=True) as trace:
                return self._make(trace / checkpoint_name(self.step), facts)
        except OSError as error:
            raise disk_error(trace_path(run, self.step), error) from error

    def _make(self, target: Path, facts: Mapping[str, Any]) -> FloatRows:
        examples = self.subject.examples
        # Chunks and the finished index exist at once.
        require_space(self.subject.run.path, 2 * len(examples) * 2 * SIZE, "the index")
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        own = f".{target.name}-{digest}"
        for other in target.parent.glob(f".{target.name}-*"):
            # Chunks made from other facts.
            if other.name != own:
                remove_tree(other)
        # Examples of similar length need little padding.
        order = sorted(range(len(examples)), key=lambda at: (-examples[at].length, at))
        units = np.zeros((len(examples), SIZE), dtype=np.float32)
        with directory_beneath(target.parent, own, make=True) as chunks:
            for number in range(math.ceil(len(order) / CHUNK)):
                places = order[number * CHUNK : (number + 1) * CHUNK]
                path = chunks / f"{number:06d}.f16"
                units[places] = self._chunk(path, [examples[at] for at in places], number * CHUNK)
        with whole_directory(target) as directory:
            units.astype("<f2").tofile(directory / SKETCHES)
            manifest = {"facts": facts, "sha256": hash_file(directory / SKETCHES)}
            (directory / MANIFEST).write_text(json.dumps(manifest) + "\n", encoding="utf-8")
        remove_tree(target.parent / own)
        return units

    def _chunk(self, path: Path, examples: Sequence[TrainedExample], done: int) -> FloatRows:
        try:
            there = np.frombuffer(read_small(path, _LIMIT), dtype="<f2").reshape(len(examples), SIZE)
        except (OSError, ValueError):  # missing, or not one of ours
            pass
        else:
            self._progress(done + len(examples))
            return there.astype(np.float32)
        found = self.subject.sketch(examples, lambda rows: self._progress(done + min(rows, len(examples) - 1)))
        self.made += len(examples)
        write_atomic(path, found.astype("<f2").tobytes())
        return found
