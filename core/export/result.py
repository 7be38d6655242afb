"""Results of exports: the files, and what of them was proven; kept beside them as ``export.json``."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

from core import paths
from core.export.agreement import Agreement
from core.export.request import KINDS, QUANTS, Kind, Quant
from core.small_files import read_json

#: The record of an export, in its directory.
RECORD = "export.json"
_VERSION = 1
_RECORD_LIMIT = 4 << 20


@dataclass(frozen=True)
class ExportedFile:
    """A file of an export."""

    name: str
    """Its path in the directory."""
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ExportResult:
    """An export that has been made."""

    path: Path
    kind: Kind
    quant: Quant | None
    """The type of the weights; None where it has none of the whole model."""
    run: str
    """The id of the run."""
    step: int | None
    """The step of the checkpoint; None for the result of the run."""
    base: str
    """The base model, as a person would name it."""
    base_sha256: str | None
    """Its fingerprint."""
    merged_from: str | None
    """``base`` or ``quantized``: the weights that the adapter was merged into; None where it was not merged."""
    files: tuple[ExportedFile, ...]
    agreement: Agreement | None
    """What was compared with the trained model; None where nothing could be."""
    notes: tuple[str, ...]
    """What there is to know about it, a sentence each."""
    seconds: float
    created: float
    """Unix seconds."""

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def verified(self) -> bool:
        """Whether it was compared with the trained model, and reaches the bars."""
        return self.agreement is not None and not self.agreement.failures(self.quant)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "version": _VERSION,
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "path": str(self.path),
            "files": [asdict(file) for file in self.files],
            "agreement": None if self.agreement is None else self.agreement.to_dict(),
            "notes": list(self.notes),
            "bytes": self.bytes,
            "verified": self.verified,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], path: Path | None = None) -> ExportResult:
        """From :meth:`to_dict`.

        Args:
            data: The values.
            path: Where it is now; by default where it was written.

        Raises:
            ValueError, KeyError, TypeError: If it is something else.
        """
        kind, quant, agreement = data["kind"], data["quant"], data["agreement"]
        if data["version"] != _VERSION or kind not in KINDS or (quant is not None and quant not in QUANTS):
            raise ValueError("no export of this version")
        return cls(
            path=path or Path(data["path"]),
            kind=cast(Kind, kind),
            quant=cast("Quant | None", quant),
            run=str(data["run"]),
            step=None if data["step"] is None else int(data["step"]),
            base=str(data["base"]),
            base_sha256=_text(data["base_sha256"]),
            merged_from=_text(data["merged_from"]),
            files=tuple(ExportedFile(str(f["name"]), int(f["bytes"]), str(f["sha256"])) for f in data["files"]),
            agreement=None if agreement is None else Agreement.from_dict(agreement),
            notes=tuple(map(str, data["notes"])),
            seconds=float(data["seconds"]),
            created=float(data["created"]),
        )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def read_result(directory: Path) -> ExportResult | None:
    """The record of the export in a directory; None if there is none, or it makes no sense."""
    try:
        data = read_json(directory / RECORD, _RECORD_LIMIT, finite=False)
        return ExportResult.from_dict(data, directory)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def list_exports(run: str | None = None) -> list[ExportResult]:
    """The exports in the home, newest first.

    Args:
        run: The id of a run, for its exports alone.
    """
    found = []
    with contextlib.suppress(OSError):
        for directory in paths.exports_dir().iterdir():
            if not directory.name.startswith(".") and (result := read_result(directory)) is not None:
                found.append(result)
    return sorted((e for e in found if run in (None, e.run)), key=lambda export: export.created, reverse=True)
