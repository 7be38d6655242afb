"""Errors of a run of several processes; nothing here imports torch."""

from __future__ import annotations


class RankLostError(Exception):
    """Another process of the run does not answer any more."""
