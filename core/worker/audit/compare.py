"""Comparison of a recomputed checkpoint with the recorded one: every tensor, value and fact."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from core.audit.result import MOST, Difference
from core.config.live import TRAINING
from core.errors import UserError
from core.runs.record.chain import canonical
from core.small_files import hash_file
from core.text import one_line
from core.worker.checkpoint.checkpoint import Checkpoint, load_tensors

#: Facts of a manifest that do not depend on the training: names and hashes that are compared separately, and the time
#: and energy of a run.
_ELSEWHERE = frozenset({"files", "manifest_sha256", "version", "step", "limits", "base_sha256"})
RNG_FILE = "rng.pt"
#: Largest text file of a checkpoint whose values are compared, in bytes.
_TEXT_LIMIT = 1 << 20


@dataclass(frozen=True)
class Recorded:
    """A recorded checkpoint.

    Args:
        step: Its step.
        manifest: The manifest in the chain, else its own.
        path: Its directory, whose name starts the files' names in differences; the content may be gone.
    """

    step: int
    manifest: Mapping[str, Any]
    path: Path
    is_unseeded: bool = False
    """True if the operating system seeded the generators of Python and NumPy, as in runs of an earlier version;
    nothing draws from them."""


def compare_checkpoints(recorded: Recorded, again: Checkpoint) -> list[Difference]:
    """Differences between a recorded checkpoint and the recomputed one."""
    found = [*_facts(recorded, again), *_files(recorded, again)]
    return found[:MOST]


def _facts(recorded: Recorded, again: Checkpoint) -> Iterator[Difference]:
    before, now = recorded.manifest, again.manifest
    for name in sorted({*before, *now} - _ELSEWHERE):
        old, new = _training(name, before.get(name)), _training(name, now.get(name))
        # Facts that an earlier version did not write cannot be compared.
        if name in before and canonical(old) != canonical(new):
            yield Difference(
                what=f"The {name} of step {recorded.step} came out otherwise.",
                step=recorded.step,
                file=f"checkpoints/{recorded.path.name}/manifest.json",
                tensor=name,
                recorded=one_line(json.dumps(old), 200),
                found=one_line(json.dumps(new), 200),
            )


def _training(name: str, value: Any) -> Any:
    """A fact without its parts that do not depend on the training."""
    if name == "overrides" and isinstance(value, dict):
        return {option: setting for option, setting in value.items() if option in TRAINING}
    return value


def _files(recorded: Recorded, again: Checkpoint) -> Iterator[Difference]:
    files = recorded.manifest.get("files")
    known: dict[str, Any] = files if isinstance(files, dict) else {}
    for name in sorted({*known, *again.manifest["files"]}):
        shown = f"checkpoints/{recorded.path.name}/{one_line(name, 120)}"
        if name not in known or name not in again.manifest["files"]:
            where = "was not recorded" if name not in known else "is not written any more"
            yield Difference(what=f"{shown} {where}.", step=recorded.step, file=shown)
            continue
        sealed, digest = _sha(known[name]), _sha(again.manifest["files"][name])
        present = recorded.path / name
        if sealed == digest and (not present.is_file() or hash_file(present) == digest):
            continue
        told = list(_contents(present, again.path / name, recorded.step, shown))
        if recorded.is_unseeded and name == RNG_FILE:
            told = [difference for difference in told if str(difference.tensor).startswith("torch")]
            if not told:
                continue
        if told:
            yield from told
        elif not present.is_file():
            yield Difference(
                what=f"{shown} came out otherwise; the recorded one is gone, so only its SHA-256 can be compared.",
                step=recorded.step,
                file=shown,
                recorded=sealed,
                found=digest,
            )


def _sha(facts: Any) -> str:
    return str(facts.get("sha256")) if isinstance(facts, dict) else ""


def _contents(recorded: Path, again: Path, step: int, shown: str) -> Iterator[Difference]:
    """Differences of two files by tensors and values; none where the recorded one is gone, or where they hold the same
    in another layout."""
    if not recorded.is_file():
        return
    try:
        before, now = _values(recorded), _values(again)
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError, EOFError, UserError) as error:
        said = one_line(str(error).partition("\n")[0], 160).rstrip(".")
        yield Difference(what=f"{shown} cannot be read: {said}.", step=step, file=shown)
        return
    for name in [*before, *(name for name in now if name not in before)]:
        if (pair := _first_difference(before.get(name), now.get(name))) is not None:
            place, old, new = pair
            yield Difference(
                what=f"{shown}: {one_line(name, 160)}{place} came out otherwise.",
                step=step,
                file=shown,
                tensor=name,
                recorded=old,
                found=new,
            )


def _values(path: Path) -> dict[str, Any]:
    """The tensors and values of a file by name."""
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    if path.suffix == ".pt":
        return dict(_flat("", load_tensors(path)))
    if path.stat().st_size > _TEXT_LIMIT:
        return {"content": hash_file(path)}
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return {name: _ordered(value) for name, value in _flat("", json.loads(text))}
    return {f"line {number}": line for number, line in enumerate(text.splitlines(), 1)}


def _ordered(value: Any) -> Any:
    """A list of names in sorted order, since earlier versions wrote PEFT's sets in random order."""
    is_names = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return sorted(value) if is_names else value


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), inner)
    elif isinstance(value, (list, tuple)) and any(
        isinstance(item, (dict, list, tuple, torch.Tensor)) for item in value
    ):
        for place, inner in enumerate(value):
            yield from _flat(f"{name}.{place}" if name else str(place), inner)
    else:
        yield name, value


def _first_difference(before: Any, now: Any) -> tuple[str, str, str] | None:
    """Place and values of the first difference of two values; None where they are equal in every bit."""
    if isinstance(before, torch.Tensor) and isinstance(now, torch.Tensor):
        return _first_element(before, now)
    if type(before) is type(now) and repr(before) == repr(now):
        return None
    return "", _shown(before), _shown(now)


def _first_element(before: torch.Tensor, now: torch.Tensor) -> tuple[str, str, str] | None:
    if before.dtype != now.dtype or before.shape != now.shape:
        return "", f"{before.dtype} {tuple(before.shape)}", f"{now.dtype} {tuple(now.shape)}"
    if before.numel() == 0:
        return None
    old, new = before.contiguous().reshape(-1), now.contiguous().reshape(-1)
    # By bytes: NaN equals itself, and 0 differs from -0.
    unequal = (old.view(torch.uint8) != new.view(torch.uint8)).nonzero()
    if not len(unequal):
        return None
    place = int(unequal[0]) // old.element_size()
    index = tuple(int(part) for part in torch.unravel_index(torch.tensor(place), before.shape)) if before.dim() else ()
    return f"{list(index)}", repr(old[place].item()), repr(new[place].item())


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    return one_line(repr(value), 200)
