"""Architecture loading in the sandbox, for the app and the commands: configurations and headers are untrusted."""

from __future__ import annotations

from pathlib import Path

from core.models.architecture.architecture import Architecture
from core.models.architecture.measuring import Unmeasured, measure_architecture
from core.sandbox.pool import sandboxed
from core.sandbox.rights import reading
from core.text import one_line


def load_architecture(path: Path) -> Architecture:
    """Load an architecture; see :func:`core.models.architecture.load.load_architecture`; blocks, for seconds where a
    family has to be measured.

    Raises:
        UserError: As that function, or if reading takes more memory or time than any model's should.
    """
    found = read_model(path)
    if not isinstance(found, Unmeasured):
        return found
    call = sandboxed(_complete, f"The model in {one_line(str(path))}", rights=reading(path))
    return call(measure_architecture(found), path)


def read_model(path: Path) -> Architecture | Unmeasured:
    """Read an architecture without measuring anything; see :func:`core.models.architecture.load.read_model`; blocks.

    Raises:
        UserError: As :func:`load_architecture`.
    """
    return sandboxed(_read, f"The model in {one_line(str(path))}", rights=reading(path))(path)


def _read(path: Path) -> Architecture | Unmeasured:
    from core.models.architecture.load import read_model as read

    return read(path)


def _complete(architecture: Architecture, path: Path) -> Architecture:
    from core.models.architecture.load import complete

    return complete(architecture, path)
