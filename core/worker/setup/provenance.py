"""Provenance of a run, the ``start`` link of its hash chain: data, rows, base, machine, software."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from core import __version__
from core.audit.chain_check import read_sealed
from core.config.schema import Config
from core.data.registries.resolve import DataHashes
from core.hardware.cpu import cpu_name
from core.models.check import ADAPTER_WEIGHTS
from core.runs.record.chain import short
from core.runs.record.store import Run
from core.small_files import hash_file
from core.worker.checkpoint.checkpoint import Checkpoint
from core.worker.checkpoint.checkpointer import Checkpointer
from core.worker.data.batches import row_bytes
from core.worker.data.dataset import Dataset

#: Number of rows with digits of their own; beyond it, neighbors share them.
_DISTINCT_ROWS = 100_000


def start_facts(
    config: Config, files: DataHashes, dataset: Dataset, checkpointer: Checkpointer, found: Checkpoint | None
) -> dict[str, Any]:
    """The body of a ``start`` link.

    Args:
        config: Of the run, as configured.
        files: Hashes of the data files.
        dataset: The rows trained on.
        checkpointer: Holds the fingerprints of rows and base, and the state.
        found: The checkpoint that the run goes on from; None at its beginning.
    """
    prints, state = checkpointer.fingerprints, checkpointer.state
    begun = None if found is not None or config.model.adapter is None else Path(config.model.adapter)
    return {
        "step": state.step,
        "manifest": None if found is None else found.manifest,
        "config": config.model_dump(mode="json", exclude_defaults=True),
        "base": {"sha256": prints.base.value, "files": prints.base.files},
        "rows": {
            "sha256": prints.data,
            "held_out_sha256": prints.held_out,
            "count": len(dataset.rows),
            "digits": row_digits(dataset),
        },
        "files": files.found,
        **({} if begun is None else {"adapter": hash_file(begun / ADAPTER_WEIGHTS)}),
        "machine": machine(checkpointer.loaded.device),
        "software": software(),
        "facts": {name: value for name, value in state.facts().items() if name != "limits"},
    }


def has_same_files(run: Run, found: Checkpoint, files: DataHashes | None) -> bool:
    """True if the data files are those that a checkpoint of a run was made with; false if that is not known."""
    before = read_sealed(run).start_of(int(found.manifest["step"])).get("files")
    return files is not None and files.found == before and bool(before) and all(before.values())


def row_digits(dataset: Dataset) -> str:
    """A few digits per training row, concatenated, by which a changed row is found."""
    rows = dataset.rows
    each = rows_together(len(rows))
    return "".join(short(b"".join(map(row_bytes, rows[first : first + each]))) for first in range(0, len(rows), each))


def rows_together(rows: int) -> int:
    """Number of neighboring rows that share their digits."""
    return -(-rows // _DISTINCT_ROWS) or 1


def changed_rows(dataset: Dataset, recorded: str) -> Sequence[int]:
    """Rows whose digits differ from the recorded ones."""
    now, each = row_digits(dataset), rows_together(len(dataset.rows))
    width = len(short(b""))
    return [
        row
        for row in range(len(dataset.rows))
        if now[(start := row // each * width) : start + width] != recorded[start : start + width]
    ]


#: Packages whose code affects the numbers.
PACKAGES = (
    *("torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors", "tokenizers", "numpy"),
    *("triton", "mamba-ssm", "causal-conv1d"),
)


def software() -> dict[str, str]:
    """Versions by package name, without packages that are not installed."""
    found = {"localtune-tui": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """Processor and its instructions, threads, and the card with its driver if there is one.

    Args:
        device: That of the training.
    """
    found: dict[str, Any] = {
        "device": device.type,
        "cpu": cpu_name(),
        "instructions": _instructions(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["card"] = properties.name
        found["cuda"] = str(torch.version.cuda or torch.version.hip)
        found["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return found


#: Environment variables that select code paths.
_VARIABLES = (
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS"),
    "CUBLAS_WORKSPACE_CONFIG",
)


def _instructions() -> str:
    """Digest of the processor's instruction set; empty if the kernel does not report it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            return hashlib.sha256(" ".join(sorted(value.split())).encode()).hexdigest()[:16]
    return ""
