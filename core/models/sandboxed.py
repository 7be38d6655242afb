"""Model directory checks in the sandbox, for the commands: descriptions and headers are untrusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.sandbox.pool import sandboxed
from core.text import one_line


def check_model_directory(directory: Path) -> None:
    """Check a model directory; see :func:`core.models.check.check_model_directory`; blocks.

    Raises:
        UserError: As that function, or if reading takes more memory or time than any model's should.
    """
    sandboxed(_check_directory, f"The model in {one_line(str(directory))}")(directory)


def check_model_config(directory: Path) -> dict[str, Any]:
    """Check a model's description; see :func:`core.models.check.check_model_config`; blocks.

    Raises:
        UserError: As :func:`check_model_directory`.
    """
    return sandboxed(_check_config, f"The model in {one_line(str(directory))}")(directory)


def _check_directory(directory: Path) -> None:
    from core.models.check import check_model_directory as check

    check(directory)


def _check_config(directory: Path) -> dict[str, Any]:
    from core.models.check import check_model_config as check

    return check(directory)
