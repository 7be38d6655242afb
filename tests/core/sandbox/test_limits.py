"""Operating system limits: each applies, and each is restored."""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import pytest

from core.sandbox.limits import TimeLimitError, cpu_limit


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"from core.sandbox.limits import *\n{program}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def spin() -> None:
    while True:
        try:
            sum(range(1000))
        except Exception:  # noqa: S112 - a broad handler must not keep it alive
            continue


def wait_and_spin() -> None:
    time.sleep(0.4)
    spin()


def spin_after_a_limit() -> None:
    with cpu_limit(30):
        pass
    spin()


def test_a_bounded_process_gets_no_more_memory() -> None:
    ended = run(
        "import resource\n"
        "confine(256 << 20)\n"
        "assert is_confined()\n"
        "try: bytearray(300 << 20)\n"
        "except MemoryError: print('no room', resource.getrlimit(resource.RLIMIT_CORE)[0])\n"
        "print(open('/proc/self/oom_score_adj').read().strip())"
    )
    assert ended.stdout.split("\n")[:2] == ["no room 0", "1000"], ended.stderr


def test_bounds_only_ever_become_lower() -> None:
    ended = run(
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (100 << 20, 100 << 20))\n"
        "confine(1 << 30)\n"
        "print(resource.getrlimit(resource.RLIMIT_DATA)[0] >> 20)"
    )
    assert ended.stdout.strip() == "100", ended.stderr


def test_work_that_takes_too_long_is_interrupted_and_what_guards_against_mistakes_does_not_catch_it() -> None:
    before = resource.getrlimit(resource.RLIMIT_CPU)
    with pytest.raises(TimeLimitError), cpu_limit(0.05):
        spin()
    assert resource.getrlimit(resource.RLIMIT_CPU) == before


def test_a_limit_within_a_limit_leaves_the_rest_of_the_other() -> None:
    with pytest.raises(TimeLimitError), cpu_limit(0.2):
        spin_after_a_limit()


def test_waiting_costs_no_processor_time() -> None:
    with pytest.raises(TimeLimitError) as caught, cpu_limit(0.2, kills=False):
        wait_and_spin()
    assert "spin" in [entry.name for entry in caught.traceback], "only work came to its end"


def test_the_kernel_ends_what_never_comes_back_to_python() -> None:
    ended = run("from core.sandbox import limits\nlimits._GRACE = 0\nwith cpu_limit(0.1): sum(range(10**14))")
    assert ended.returncode == -24, ended.stderr


def test_growth_is_bounded_and_put_back() -> None:
    # In a process of its own: a process that has trained on the CPU keeps freed memory, which an array may reuse.
    ended = run(
        "import resource\n"
        "before = resource.getrlimit(resource.RLIMIT_DATA)\n"
        "try:\n"
        "    with growth_limit(64 << 20):\n"
        "        bytearray(40 << 20)\n"
        "        print('grown')\n"
        "        bytearray(128 << 20)\n"
        "except MemoryError: print('no room')\n"
        "assert resource.getrlimit(resource.RLIMIT_DATA) == before\n"
        "assert len(bytearray(128 << 20)) == 128 << 20"
    )
    assert (ended.returncode, ended.stdout) == (0, "grown\nno room\n"), ended.stderr


def test_work_is_left_where_the_check_says_so() -> None:
    checks: list[int] = []

    def check() -> None:
        checks.append(1)
        if len(checks) == 2:
            raise InterruptedError

    began = time.process_time()
    with pytest.raises(InterruptedError), cpu_limit(30, check=check):
        spin()
    assert time.process_time() - began < 5


def test_a_signal_that_comes_after_the_limit_does_not_end_the_process() -> None:
    ended = run(
        "with cpu_limit(0.05, kills=False):\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF])\n"
        "    while signal.SIGPROF not in signal.sigpending(): pass\n"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])\n"
        "print('alive')"
    )
    assert ended.stdout == "alive\n", ended.returncode


def test_a_check_that_has_nothing_against_it_leaves_the_limit() -> None:
    checks: list[int] = []
    with pytest.raises(TimeLimitError), cpu_limit(0.7, check=lambda: checks.append(1)):
        spin()
    assert checks
