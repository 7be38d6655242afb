"""Merging: what a run has trained put into the weights of its base, a tensor at a time.

The base's files are read tensor by tensor, what was trained is added in fp32, and the sum goes into a file of the same
name: neither the model nor one of its files is ever in memory as a whole.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from core.directories import Progress
from core.errors import UserError
from core.export.kinds import Quant
from core.export.stages import MERGING
from core.models.files import WEIGHTS_INDEX
from core.runs.catalog.trained import TrainedFile, TrainedModel
from core.text import one_line
from core.worker.export.changes import Change, ExpertsChange, adapter_changes, embedding_changes, weight_changes
from core.worker.export.layout import Layout, read_layout
from core.worker.export.source import Source
from core.worker.model.completeness import tell
from core.worker.model.safetensors_io import TensorSpec, stream_tensors

MERGED_DTYPES: dict[Quant, torch.dtype] = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class BeyondRangeError(UserError):
    """A weight does not fit into the type that is to be written."""


@dataclass(frozen=True)
class _Entry:
    """A tensor to be written."""

    key: str
    """The one of the base that it is made from."""
    change: Change | None
    """What was trained of it; None where nothing was."""
    spec: TensorSpec


@torch.no_grad()
def merge_weights(
    base: Path, trained: TrainedModel, directory: Path, quant: Quant, *, rounded: bool, progress: Progress
) -> bool:
    """Write the weights of a trained model as safetensors, in files of the base's names.

    Args:
        base: The directory of the base, or of the result where all weights are in it.
        trained: What was trained.
        directory: Where the files go.
        quant: Their type: ``BF16``, ``F16`` or ``F32``. What the base keeps in more bits than most of its weights stays
            as it is, and so do towers of a composite model.
        rounded: Whether an adapter is merged into weights that are rounded to 4 bit first, as they were in training,
            instead of the base's own.
        progress: Told about every tensor, in bytes.

    Returns:
        Whether head and embeddings, one and the same in the base, are two tensors now.

    Raises:
        UserError: If the base's files hold a trained weight in another form than the program, or a weight does not fit
            into the type.
        OSError: If they cannot be written.
    """
    layout = read_layout(base)
    source = Source(layout, trained.config, rounded=rounded)
    arrangement = _Arrangement(layout, trained)
    usual = _usual_dtype(source)
    stored = None if trained.file is None else _trained_dtype(trained.file, source)
    size = done = 0
    total = sum(source.spec(key).bytes for path in layout.files for key in source.keys(path))
    places: dict[str, str] = {}
    last = next(reversed(layout.files))
    for path in layout.files:
        entries = arrangement.entries(source.keys(path), is_last=path == last, source=source, usual=usual, quant=quant)
        # Wide types first, so that each tensor begins at a multiple of its width.
        ordered = dict(sorted(entries.items(), key=lambda item: -item[1].spec.dtype.itemsize))

        def read(name: str, entries: Mapping[str, _Entry] = ordered) -> torch.Tensor:
            nonlocal done
            entry = entries[name]
            tensor = source.read(entry.key)
            done += source.spec(entry.key).bytes
            progress(MERGING, min(done, total), total)
            if entry.key in layout.others:
                return tensor
            if stored is not None and tensor.is_floating_point() and not source.is_packed(entry.key):
                tensor = tensor.to(stored)
            if entry.change is not None:
                tensor = entry.change(tensor.to(torch.float32))
            return _cast(name, tensor, entry.spec.dtype)

        stream_tensors(directory / path.name, {name: entry.spec for name, entry in ordered.items()}, read)
        places |= dict.fromkeys(ordered, path.name)
        size += sum(entry.spec.bytes for entry in ordered.values())
    if len(layout.files) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        (directory / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return arrangement.is_untied


class _Arrangement:
    """Which tensor of the base each one that is written is made from, and what was trained of it."""

    def __init__(self, layout: Layout, trained: TrainedModel) -> None:
        self._layout = layout
        has_adapter, file = trained.adapter is not None, trained.file
        if trained.adapter is not None:
            changes = adapter_changes(layout, trained.adapter, None if file is None else file.type)
        else:
            changes = {} if trained.weights is None else weight_changes(trained.weights)
        self._check(changes)
        tied = {name: other for name, other in layout.tied.items() if other in layout.keys}
        # Trained weights are one where they were one; an adapter of the head leaves the embeddings alone.
        self.is_untied = has_adapter and any(name in changes or other in changes for name, other in tied.items())
        if file is not None:
            changes = embedding_changes(layout) | changes
        self._made: dict[str, tuple[str, Change | None]] = {
            key: (key, changes.get(name)) for name, key in layout.keys.items()
        }
        tensors = layout.tensors
        for key, part in layout.expert_parts.items():
            whole = changes.get(part.parameter)
            sizes = [tensors[name].shape[0] for name in part.parts]
            self._made[key] = (key, whole.part(part, sizes) if isinstance(whole, ExpertsChange) else None)
        self._added: dict[str, tuple[str, Change | None]] = {}
        for name, other in tied.items():
            of_other = layout.keys[other]
            made = (of_other, changes.get(name if self.is_untied else other))
            if name in layout.keys:
                self._made[layout.keys[name]] = made
            elif self.is_untied:
                self._added[name] = made

    def _check(self, changes: Mapping[str, Change]) -> None:
        """Refuse what was trained of weights that the files hold in another form.

        Raises:
            UserError: If there is some.
        """
        known = {*self._layout.keys, *self._layout.tied}
        stacked = {part.parameter for part in self._layout.expert_parts.values()}
        known |= {name for name in stacked if isinstance(changes.get(name), ExpertsChange)}
        if missing := [name for name in changes if name not in known]:
            raise UserError(
                f"The weight files in {self._layout.directory} hold {tell(missing)} in another form than the program, "
                "which cannot be merged.",
                "Export the adapter.",
            )

    def entries(
        self, keys: Sequence[str], *, is_last: bool, source: Source, usual: torch.dtype, quant: Quant
    ) -> dict[str, _Entry]:
        """The tensors that are written into a file, by their names there."""
        made = {key: self._made.get(key, (key, None)) for key in keys} | (self._added if is_last else {})
        found = {}
        for name, (key, change) in made.items():
            spec = source.spec(key)
            if key not in self._layout.others:
                spec = TensorSpec(_target(spec.dtype, usual, MERGED_DTYPES[quant]), spec.shape)
            found[name] = _Entry(key, change, spec)
        return found


def _trained_dtype(file: TrainedFile, source: Source) -> torch.dtype:
    """The dtype that weights had in training, from which what was trained for a file is merged."""
    names = {str(dtype).removeprefix("torch."): dtype for dtype in MERGED_DTYPES.values()}
    return names.get(file.dtype or "", source.dtype)


def _usual_dtype(source: Source) -> torch.dtype:
    """The floating type of most weights."""
    counts: Counter[torch.dtype] = Counter()
    for path in source.files:
        for key in source.keys(path):
            spec = source.spec(key)
            if spec.dtype.is_floating_point:
                counts[spec.dtype] += spec.bytes // spec.dtype.itemsize
    return counts.most_common(1)[0][0] if counts else torch.bfloat16


def _target(stored: torch.dtype, usual: torch.dtype, wanted: torch.dtype) -> torch.dtype:
    if not stored.is_floating_point:
        return stored
    is_kept = stored.itemsize > usual.itemsize and stored.itemsize > wanted.itemsize
    return stored if is_kept else wanted


def _cast(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    cast = tensor.to(dtype)
    if dtype == torch.float16 and tensor.dtype != dtype and not bool(cast.isfinite().all()):
        raise BeyondRangeError(f"{one_line(name, 120)} has weights beyond the range of F16.", "Take BF16 or F32.")
    return cast
