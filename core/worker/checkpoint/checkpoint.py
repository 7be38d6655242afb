"""Checkpoints that are whole or do not exist.

A checkpoint is written into a hidden directory, with every file fsynced, and ``manifest.json`` with sizes and SHA-256
last. Then the directory is renamed and its parent fsynced. A directory without a valid manifest is not a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from core.directories import remove_tree, whole_directory
from core.errors import UserError
from core.memory.sizes import optimizer_bytes
from core.models.description import split_names
from core.paths import DIRECTORY_MODE
from core.runs.catalog.trained import is_held
from core.small_files import hash_file, read_json
from core.text import one_line
from core.worker.model.adapters import adapter_state, initial_parameters, load_state
from core.worker.model.full_weights import trained_tensors
from core.worker.model.safetensors_io import read_tensors, write_tensors
from core.worker.process.determinism import restore_rng, rng_state

MANIFEST = "manifest.json"
#: Maximum size of a manifest in bytes; real ones have some kilobytes.
MANIFEST_LIMIT = 16 << 20
#: File with the weights of a run that trains the model's own.
WEIGHTS = "weights/trained.safetensors"
FORMAT_VERSION = 1
#: Files of every checkpoint besides its manifest and weights.
STATE_FILES = ("optimizer.pt", "rng.pt")
_EARLIER = "An earlier checkpoint is used instead."
#: Free bytes that must remain after a checkpoint.
DISK_RESERVE_BYTES = 64 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory that has a manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.manifest["step"])

    @property
    def adapter_path(self) -> Path:
        """The adapter in PEFT's format."""
        return self.path / "adapter"

    @property
    def weights_path(self) -> Path:
        """The trained weights of a run without an adapter."""
        return self.path / WEIGHTS


def checkpoint_name(step: int) -> str:
    """``step-00000120``."""
    return f"step-{step:08d}"


def hash_manifest(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its own hash, in hexadecimal."""
    said = {name: value for name, value in manifest.items() if name != "manifest_sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode("utf-8")).hexdigest()


def save_adapter(model: Any, directory: Path) -> None:
    """Write a ``PeftModel``'s adapter in PEFT's format: ``adapter_model.safetensors`` and ``adapter_config.json``.

    Raises:
        OSError: If it cannot be written.
    """
    directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    state, config = adapter_state(model)
    write_tensors(directory / "adapter_model.safetensors", state)
    config.inference_mode = True
    for name, value in list(vars(config).items()):
        if isinstance(value, set):
            # Set order differs between processes; equal adapters should be equal files.
            setattr(config, name, sorted(value))
    config.save_pretrained(str(directory))


def save_model(model: Any, directory: Path, state: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write a whole model in the transformers format, as safetensors.

    Args:
        model: The model.
        directory: Target directory.
        state: Weights by name; None for the model's own.

    Raises:
        OSError: If it cannot be written.
    """
    try:
        model.save_pretrained(str(directory), state_dict=None if state is None else dict(state))
    except SafetensorError as error:  # the writer's error for a full disk
        raise OSError(str(error)) from error


def save_checkpoint(
    checkpoints: Path,
    *,
    model: Any,
    optimizer: Any,
    step: int,
    facts: dict[str, Any],
    weights: Mapping[str, torch.Tensor] | None = None,
) -> Checkpoint:
    """Write a checkpoint; on failure nothing of it remains.

    Args:
        checkpoints: The run's directory of checkpoints.
        model: A ``PeftModel``, whose adapter is saved, or a model whose trained weights are.
        optimizer: Object with ``state_dict``, which is saved in torch's safe format.
        step: Optimizer steps done.
        facts: JSON: values that must be equal at resume (configuration and data hashes), and values to restore
            (schedule, token counts).
        weights: The trained weights, if the model is not a ``PeftModel``; None for the model's own.

    Raises:
        OSError: If it cannot be written, usually because the disk is full.
    """
    checkpoints.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    final = checkpoints / checkpoint_name(step)

    manifest: dict[str, Any] = {}
    with whole_directory(final) as directory:
        if isinstance(model, PeftModel):
            save_adapter(model, directory / "adapter")
        else:
            (directory / WEIGHTS).parent.mkdir(mode=DIRECTORY_MODE)
            write_tensors(directory / WEIGHTS, trained_tensors(model) if weights is None else weights)
        save_tensors(optimizer.state_dict(), directory / "optimizer.pt")
        save_tensors(rng_state(), directory / "rng.pt")
        files = {
            str(path.relative_to(directory)): {"bytes": path.stat().st_size, "sha256": hash_file(path)}
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }
        manifest.update({"version": FORMAT_VERSION, "step": step, **facts, "files": files})
        manifest["manifest_sha256"] = hash_manifest(manifest)
        write_manifest(manifest, directory)
    return Checkpoint(final, manifest)


def write_manifest(manifest: Mapping[str, Any], directory: Path) -> None:
    """Write the manifest of a checkpoint, after its files."""
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def save_tensors(state: Any, path: Path) -> None:
    """``torch.save`` through a Python file, tensor by tensor: without a second copy of the states, and with an OSError
    if the disk is full.

    Raises:
        OSError: If it cannot be written.
    """
    with path.open("wb") as file:
        writer = _Writer(file)
        torch.save(state, writer)  # type: ignore[arg-type]
        if writer.error is not None:
            raise writer.error


class _Writer:
    """Passes writes of ``torch.save`` to a file, and keeps the first error, which the calling C++ code would convert or
    ignore."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write; ignored after an error."""
        if self.error is None:
            try:
                return self._file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """No flush: closing the file does it."""


def load_tensors(path: Path, *, mapped: bool = False) -> Any:
    """Read a file of :func:`save_tensors`: tensors on the CPU, and plain values.

    Args:
        path: The file.
        mapped: Memory-map the tensors, for a caller that copies them elsewhere one by one.
    """
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def size_estimate(model: Any, optimizer: str = "adamw") -> int:
    """Estimated size of a checkpoint of this model in bytes: trained weights, optimizer states, and initial adapter
    weights.

    Args:
        model: The model.
        optimizer: Value of ``train.optimizer``.
    """
    trained = list(trained_tensors(model).values())
    # DeepSpeed records the full shape of a sharded weight.
    shapes = [torch.Size(getattr(tensor, "ds_shape", tensor.shape)) for tensor in trained]
    states = sum(optimizer_bytes(optimizer, shape.numel(), shape[-1] if len(shape) > 1 else 1) for shape in shapes)
    weights = sum(shape.numel() * tensor.element_size() for shape, tensor in zip(shapes, trained, strict=True))
    return weights + states + initial_parameters(model) * 4


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Directories that claim to be checkpoints, newest first."""
    if not checkpoints.is_dir():
        return []
    return sorted((path for path in checkpoints.iterdir() if path.name.startswith("step-")), reverse=True)


def steps_of(checkpoints: Path) -> list[int]:
    """Steps of :func:`list_checkpoints`, ascending."""
    found = [_step_of(path) for path in list_checkpoints(checkpoints)]
    return sorted(step for step in found if step is not None)


def verify_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's manifest and check that the directory holds exactly its files.

    Raises:
        UserError: If the manifest is missing, unreadable or of another checkpoint; if a file is missing, damaged,
            unreadable, a link, or not in the manifest.
    """
    try:
        return _verified(path)
    except OSError as error:
        where = Path(error.filename).name if isinstance(error.filename, (str, os.PathLike)) else "a file"
        raise UserError(f"{path.name}: {where} cannot be read: {error.strerror}.", _EARLIER) from error


def _verified(path: Path) -> Checkpoint:
    if path.is_symlink():
        raise UserError(f"{path.name} is a link, not a checkpoint.", _EARLIER)
    try:
        manifest = read_json(path / MANIFEST, MANIFEST_LIMIT, finite=False)
        sound = manifest["manifest_sha256"] == hash_manifest(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path.name} has no valid manifest.", _EARLIER) from error
    if not sound:
        raise UserError(f"{path.name}: {MANIFEST} is damaged.", _EARLIER)
    if manifest.get("version") != FORMAT_VERSION:
        raise UserError(f"{path.name} was written by another version.", "Use the version that wrote it.")
    files = manifest.get("files")
    if manifest.get("step") != _step_of(path) or not _are_whole(files):
        raise UserError(f"{path.name}: {MANIFEST} is that of another checkpoint.", _EARLIER)
    found = _files_below(path)
    for name, facts in files.items():
        if name not in found:
            raise UserError(f"{path.name} lacks {one_line(name, 120)}.", _EARLIER)
        file = path / name
        if file.stat().st_size != facts["bytes"] or hash_file(file) != facts["sha256"]:
            raise UserError(f"{path.name}: {one_line(name, 120)} is damaged.", _EARLIER)
    extra = sorted(found - set(files) - {MANIFEST})
    if extra:
        raise UserError(f"{path.name}: {one_line(extra[0], 120)} is not part of the checkpoint.", _EARLIER)
    return Checkpoint(path, manifest)


def _are_whole(files: Any) -> bool:
    """True if a manifest lists the files of a checkpoint, each with size and hash."""
    return (
        isinstance(files, dict)
        and set(STATE_FILES) <= set(files)
        and any(name.endswith(".safetensors") for name in files)
        and all(isinstance(facts, dict) and {"bytes", "sha256"} <= set(facts) for facts in files.values())
    )


def _step_of(path: Path) -> int | None:
    number = path.name.removeprefix("step-")
    return int(number) if number.isascii() and number.isdigit() else None


def _files_below(directory: Path) -> set[str]:
    """Files in a checkpoint, relative to it.

    Raises:
        UserError: If one is a link, which could lead anywhere, or not a regular file.
        OSError: If a directory cannot be read.
    """
    found = set()
    waiting = [directory]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                name = str(Path(entry.path).relative_to(directory))
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    found.add(name)
                else:
                    what = "a link" if entry.is_symlink() else "not a file"
                    raise UserError(f"{directory.name}: {one_line(name, 120)} is {what}.", _EARLIER)
    return found


def newest_valid(checkpoints: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and an error message for each newer one that is damaged."""
    damaged: list[str] = []
    for path in list_checkpoints(checkpoints):
        try:
            return verify_checkpoint(path), damaged
        except UserError as error:
            damaged.append(error.message)
    return None, damaged


def restore(
    checkpoint: Checkpoint,
    *,
    model: Any,
    optimizer: Any,
    read: Callable[[Path, Mapping[str, torch.Tensor]], None] = read_tensors,
) -> None:
    """Restore trained weights, optimizer and random state, bit for bit. See :mod:`core.worker.process.determinism` for
    the steps that follow.

    Args:
        checkpoint: The checkpoint.
        model: The model in training.
        optimizer: Object with ``load_state_dict``.
        read: Reads trained weights, like :func:`~core.worker.model.safetensors_io.read_tensors`.

    Raises:
        UserError: If it does not fit the model.
    """
    if isinstance(model, PeftModel):
        _restore_adapter(checkpoint, model)
    else:
        read(checkpoint.weights_path, trained_tensors(model))
    # On a CPU the loaded tensors become the states, and would keep a mapped file alive after its deletion.
    elsewhere = next(model.parameters()).device.type != "cpu"
    saved = load_tensors(checkpoint.path / "optimizer.pt", mapped=elsewhere)
    optimizer.load_state_dict(without_towers(saved, len(trained_tensors(model))))
    restore_rng(load_tensors(checkpoint.path / "rng.pt"))


def without_towers(saved: dict[str, Any], trained: int) -> dict[str, Any]:
    """Optimizer states for the trained parameters only.

    Earlier versions trained composite models as a whole. Parameters of vision and audio towers never had a gradient,
    since rows are text, and so have no state if the optimizer numbers its parameters; states by name have the names of
    the whole model.

    Args:
        saved: ``state_dict`` of one optimizer, or one per parameter by name.
        trained: Number of trained parameters.
    """
    if "param_groups" not in saved:
        return {own: saved[name] for name, own in split_names(saved).text.items()}
    groups, states = saved["param_groups"], saved["state"]
    if sum(len(group["params"]) for group in groups) == trained:
        return saved
    kept = [number for group in groups for number in group["params"] if number in states]
    moved = {number: place for place, number in enumerate(kept)}
    return {
        **saved,
        "state": {moved[number]: state for number, state in states.items()},
        "param_groups": [
            {**group, "params": [moved[number] for number in group["params"] if number in moved]} for group in groups
        ],
    }


def _restore_adapter(checkpoint: Checkpoint, model: Any) -> None:
    state = load_file(checkpoint.adapter_path / "adapter_model.safetensors")
    try:
        wrong = load_state(model, state)
    except RuntimeError as error:  # a weight of another shape
        raise UserError(
            f"{checkpoint.path.name} does not fit this model.",
            "The base model has changed since; put the former one back.",
        ) from error
    if wrong:
        # The base was compared before; earlier versions adapted other layers of mixtures, with experts in 16 bit.
        raise UserError(
            f"{checkpoint.path.name} does not fit this model: its adapters are on other layers; "
            f"{'it has' if wrong[0] in state else 'it lacks'} {one_line(wrong[0])}.",
            "Go on with the version that began the run, or begin a new one; what it has learned can be exported and "
            "talked to as it is.",
        )


def rotate(checkpoints: Path, keep: int, *, newest: Path, protected: Collection[int] = ()) -> list[Path]:
    """Delete old checkpoints and remains of interrupted writes.

    Args:
        checkpoints: The run's directory of checkpoints.
        keep: Number of checkpoints to keep.
        newest: The one just written. Checkpoints with higher numbers were damaged when the run resumed before them, and
            do not count.
        protected: Steps whose checkpoints are kept as well.

    Returns:
        Deleted paths. A checkpoint that an export reads stays until a later rotation.
    """
    found = list_checkpoints(checkpoints)
    past = [path for path in found if path.name <= newest.name]
    spared = {checkpoint_name(step) for step in protected}
    gone = [path for path in found if path not in past]
    gone += [path for path in past[keep:] if path.name not in spared and not is_held(path)]
    gone += [path for path in checkpoints.iterdir() if path.name.startswith(".step-")]
    for path in gone:
        # Renamed first, so an interrupted deletion leaves nothing that looks like a checkpoint.
        hidden = path if path.name.startswith(".") else path.with_name(f".{path.name}.tmp")
        if hidden != path:
            os.replace(path, hidden)
        remove_tree(hidden)
    return gone
