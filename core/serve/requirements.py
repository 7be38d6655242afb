"""Packages that the server needs beside the app itself: the extra ``serve``."""

from __future__ import annotations

from importlib.util import find_spec

from core.errors import UserError

_PACKAGES = ("starlette", "uvicorn", "llguidance")


def check_installed() -> None:
    """Refuse to serve without the packages of the extra.

    Raises:
        UserError: If one is missing.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"The server needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed.",
            "Install it with the app: pip install 'localtune-tui[serve]'",
        )
