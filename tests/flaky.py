"""Failed tests run once more, alone, after all others: ``--rerun-failed``.

A test that fails again fails the run. One that passes is printed under ``flaky:`` with its first failure, and more than
:data:`MOST` of these fail the run as well.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Most flaky tests of a run that passes.
MOST = 3
#: Lines of a first failure that are printed.
_LINES = 40


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rerun-failed", action="store_true", help="run failed tests once more, alone, after all others")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput") and config.getoption("--rerun-failed"):
        config.pluginmanager.register(Rerun(), "rerun-failed")


class Rerun:
    """Collects failures, and runs those tests again when the session is over."""

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}
        self.flaky: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.setdefault(report.nodeid, f"{report.when}: {report.longreprtext}")

    # After pytest-xdist has ended its processes, and pytest has written down what failed.
    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self.failed or session.exitstatus != pytest.ExitCode.TESTS_FAILED:
            return
        config = session.config
        sys.stdout.write(f"\n\nRunning {len(self.failed)} failed tests again, alone\n")
        sys.stdout.flush()
        profile = config.getoption("hypothesis_profile", None)
        options = [f"--hypothesis-profile={profile}"] if profile else []
        # '-m ""': the test is asked for by its name, whatever its marks.
        command = [sys.executable, "-m", "pytest", "-n0", "-q", "-m", "", *options, *self.failed]
        subprocess.run(command, cwd=config.rootpath, check=False)
        # That run has taken out what passed, and nothing if it broke off.
        again = config.cache.get("cache/lastfailed", {}) if config.cache is not None else self.failed
        self.flaky = [test for test in self.failed if test not in again]
        if len(self.flaky) == len(self.failed) <= MOST:
            session.exitstatus = pytest.ExitCode.OK

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.flaky:
            return
        terminalreporter.section("flaky:", sep="=")
        for test in self.flaky:
            terminalreporter.write_line(f"{test}: failed, then passed alone")
            for line in self.failed[test].splitlines()[-_LINES:]:
                terminalreporter.write_line(f"    {line}")
        if len(self.flaky) > MOST:
            terminalreporter.write_line(f"{len(self.flaky)} flaky tests; more than {MOST} fail the run")
