"""Modules of tests in the order of their recorded durations, the longest first.

``--record-durations`` writes the seconds of each module to ``tests/durations.json``; a module that is not in it comes
last. With ``--dist loadfile`` a module runs in one process, so its fixtures are made once.
"""

from __future__ import annotations

import collections
import json
from pathlib import Path

import pytest

_RECORDED = Path(__file__).with_name("durations.json")
#: Shorter modules are not recorded, in seconds.
_LEAST = 1.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-durations", action="store_true", help=f"write the durations to {_RECORDED.name}")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--record-durations") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(), "record-durations")


def sort_longest_first(items: list[pytest.Item]) -> None:
    """Sort tests by the recorded duration of their module; within a module the order stays."""
    seconds: dict[str, float] = json.loads(_RECORDED.read_text())
    items.sort(key=lambda item: -seconds.get(item.nodeid.partition("::")[0], 0.0))


class Recorder:
    """Sums the durations of each module."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid.partition("::")[0]] += report.duration

    def pytest_sessionfinish(self) -> None:
        before: dict[str, float] = json.loads(_RECORDED.read_text())
        known = {module: round(seconds) for module, seconds in (before | self.seconds).items() if seconds >= _LEAST}
        _RECORDED.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
