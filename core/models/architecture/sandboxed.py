"""Architecture loading in the sandbox, for the app and the commands: configurations and headers are untrusted."""

from __future__ import annotations

from pathlib import Path

from core.models.architecture.architecture import Architecture
from core.sandbox.pool import sandboxed
from core.text import one_line


def load_architecture(path: Path) -> Architecture:
    """Load an architecture; see :func:`core.models.architecture.load.load_architecture`; blocks.

    Raises:
        UserError: As that function, or if reading takes more memory or time than any model's should.
    """
    return sandboxed(_load, f"The model in {one_line(str(path))}")(path)


def _load(path: Path) -> Architecture:
    from core.models.architecture.load import load_architecture as load

    return load(path)
