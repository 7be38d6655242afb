"""Rows that ``make test`` runs of a table; ``make test-long`` runs all."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def long_but(kept: Collection[Any], rows: Iterable[Any]) -> list[Any]:
    """Rows for :func:`pytest.mark.parametrize`, all but a few of them marked as long.

    Args:
        kept: Those that are not marked.
        rows: All of them, with these among them; a tuple has a value for each of several names.

    Raises:
        ValueError: If a row to keep is not among them.
    """
    table = list(rows)
    if unknown := [row for row in kept if row not in table]:
        raise ValueError(f"not in the table: {unknown}")
    return [row if row in kept else _long(row) for row in table]


def _long(row: Any) -> Any:
    return pytest.param(*(row if isinstance(row, tuple) else (row,)), marks=pytest.mark.long)
