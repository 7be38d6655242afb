"""All that has to be measured on a card, in ten minutes: 21 checks of training, each with a deadline of its own.

``python bench/gpu.py`` takes all memory of the card but 24 GiB away, in a process of its own, makes models in
real shapes with random weights, and writes ``bench/results/gpu-DEVICE-DATE.json``. Each check is made in a process that
it may crash, and fails by itself. ``--only 6,7`` makes some of them, ``--tiny`` all that a CPU can do, with tiny
shapes, to try the script itself. The last lines are for the table in ``docs/performance.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import queue
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.gpu_checks.report import file_name, report, settled, summary
from bench.gpu_checks.subjects import GIVEN, Found, Subject, allowed_seconds, chosen, not_run, numbers
from bench.train import versions
from core.helper import Helper, describe_end
from core.text import one_line
from core.units import format_bytes, parse_bytes

ROOT = Path(__file__).resolve().parents[1]
#: Seconds allowed for finding the device, and for the ballast.
DEVICE_SECONDS, BALLAST_SECONDS = 90.0, 60.0


class Silence(Exception):  # noqa: N818 - told as the reason of a check that has failed
    """A process that has not answered; the text says why, as a sentence."""


class Process:
    """A process of checks.

    Args:
        module: What it runs.
        arguments: The rest of its command line.
        scratch: A directory for its log.
    """

    def __init__(self, module: str, *arguments: str, scratch: Path) -> None:
        handle, name = tempfile.mkstemp(suffix=".log", dir=scratch)
        self._log = Path(name)
        try:
            self._helper = Helper(module, *arguments, environment=environment(scratch), cwd=ROOT, log=handle)
        finally:
            os.close(handle)
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, request: Mapping[str, Any] | None, deadline: float) -> Any:
        """The answer to a request; to none, the first that it gives.

        Raises:
            Silence: If it ends before, or is ended at the deadline.
        """
        try:
            if request is not None:
                self._helper.send(json.dumps(request).encode() + b"\n")
            found = self._answers.get(timeout=deadline)
        except queue.Empty:
            self.end()
            raise Silence(f"It was not done after {deadline:.0f} s, and was ended.") from None
        except OSError:
            found = None
        if found is None:
            raise Silence(f"Its process {describe_end(self.end())}; the last it said: {self._last_words()}")
        return found

    def end(self) -> int:
        """End it, and what it has started; returns its exit status."""
        return self._helper.end()

    def _read(self) -> None:
        with contextlib.suppress(ValueError, OSError):
            for found in self._helper.answers():
                self._answers.put(found)
        # By itself it may end a moment later, and by a signal that the exit status tells.
        with contextlib.suppress(Exception):
            self._helper.process.wait(timeout=2)
        self._answers.put(None)

    def _last_words(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        fatal = [line for line in lines if line.startswith("Fatal Python error")]
        return one_line((fatal or lines or ["nothing"])[-1], 300)


def environment(scratch: Path) -> dict[str, str]:
    """The environment of all processes: a home of their own, and nothing of the user's."""
    return {**os.environ, "LOCALTUNE_HOME": str(scratch / "home"), "HF_HUB_OFFLINE": "1"}


class Checks:
    """Makes checks one after another; those that share a process have it while nothing goes wrong in it.

    Args:
        scratch: A directory for models and runs.
        device: Facts about the device.
        tiny: Whether shapes are tiny.
        module: What a process of checks runs.
    """

    def __init__(
        self, scratch: Path, device: Mapping[str, Any], *, tiny: bool, module: str = "bench.gpu_checks.child"
    ) -> None:
        self._scratch, self._device, self._tiny, self._module = scratch, dict(device), tiny, module
        self._process: Process | None = None
        self._shared: str | None = None

    def make(self, subjects: Sequence[Subject], end: float) -> Iterator[tuple[Subject, Found]]:
        """Make checks until a moment.

        Args:
            subjects: The checks, in their order.
            end: By :func:`time.monotonic`; what is not begun before is not run.
        """
        try:
            for subject in subjects:
                if subject.cuda and self._device.get("kind") != "cuda":
                    yield subject, Found("not applicable", subject.cuda, {})
                    continue
                seconds = allowed_seconds(subject, end - time.monotonic(), patience=4.0 if self._tiny else 1.0)
                if seconds is None:
                    yield subject, not_run([subject], "The time was over.")[subject.number]
                    continue
                began = time.monotonic()
                found = self._one(subject, seconds)
                yield subject, Found(found.result, found.detail, found.figures, time.monotonic() - began)
        finally:
            self._end()

    def _one(self, subject: Subject, seconds: float) -> Found:
        # Tiny models have room beside one another.
        shared = "all" if self._tiny and subject.shares is not None else subject.shares
        if shared is None or shared != self._shared:
            self._end()
        work = Path(tempfile.mkdtemp(dir=self._scratch))
        request = {
            "check": subject.number,
            "work": str(work),
            "models": str(self._scratch / "models"),
            "tiny": self._tiny,
            "device": self._device,
        }
        try:
            if self._process is None:
                self._process, self._shared = Process(self._module, scratch=self._scratch), shared
            told = self._process.ask(request, seconds)
        except Silence as error:
            self._end()
            return Found("fail", str(error), {})
        finally:
            if subject.shares is None:  # a shared process may go on with what it has there
                shutil.rmtree(work, ignore_errors=True)
        if told.get("result") not in GIVEN:
            self._end()
            return Found("fail", "Its answer was none.", {})
        if told.get("poisoned") or subject.shares is None:
            self._end()
        return Found(told["result"], str(told["detail"]), dict(told["figures"]))

    def _end(self) -> None:
        if self._process is not None:
            self._process.end()
        self._process = self._shared = None


def find_device(scratch: Path) -> dict[str, Any]:
    """Facts about the device that runs would take."""
    process = Process("bench.gpu_checks.child", scratch=scratch)
    try:
        request = {"check": "device", "work": str(scratch), "models": "", "tiny": True, "device": {}}
        told = process.ask(request, DEVICE_SECONDS)
    finally:
        process.end()
    return dict(told["device"])


@contextlib.contextmanager
def ballast(device: Mapping[str, Any], leave: int, scratch: Path) -> Iterator[dict[str, Any]]:
    """Inside, only so many bytes of the card are free for others; without a card, or where it has no more, nothing is
    taken."""
    if device.get("kind") != "cuda" or int(device.get("memory_bytes") or 0) <= leave:
        yield {}
        return
    process = Process("bench.gpu_checks.ballast", str(leave), scratch=scratch)
    try:
        yield dict(process.ask(None, BALLAST_SECONDS))
    finally:
        process.end()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="NUMBERS", help="make these checks only: 6,7")
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no check after so many minutes")
    parser.add_argument("--memory", default="24GiB", metavar="SIZE", help="leave so much of the card: 24GB, 8GiB")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on the CPU where there is no card")
    parser.add_argument("--scratch", type=Path, help="where models of 20 GB are made (default: /tmp)")
    parser.add_argument("--out", type=Path, help="the report's file (default: bench/results/gpu-DEVICE-DATE.json)")
    found = parser.parse_args(arguments)
    try:
        found.subjects = chosen(numbers(found.only))
    except ValueError as error:
        parser.error(f"--only {found.only}: {error}")
    found.leave = parse_bytes(found.memory)
    if not found.leave:
        parser.error(f"--memory {found.memory} is no size; write it as 24GB or 24GiB.")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the checks; returns 1 where one has failed."""
    asked = parse(arguments)
    began = time.monotonic()
    end = began + 60 * asked.minutes
    today = datetime.date.today().isoformat()
    with tempfile.TemporaryDirectory(dir=asked.scratch, prefix="localtune-gpu-") as directory:
        scratch = Path(directory)
        try:
            device = find_device(scratch)
        except Silence as error:
            print(f"not run: the device could not be found. {error}")
            return 1
        if device.get("kind") != "cuda" and not asked.tiny:
            print(f"not run: no GPU. {device.get('told', '')}")
            return 0
        found: dict[int, Found] = {}
        taken: dict[str, Any] = {}
        try:
            with ballast(device, asked.leave, scratch) as taken:
                for subject, outcome in Checks(scratch, device, tiny=asked.tiny).make(asked.subjects, end):
                    found[subject.number] = outcome
                    print(*summary({subject.number: outcome}), file=sys.stderr, flush=True)
        except Silence as error:
            rest = [subject for subject in asked.subjects if subject.number not in found]
            found |= not_run(rest, f"The card's other memory could not be taken. {error}")
        except KeyboardInterrupt:
            found |= not_run([each for each in asked.subjects if each.number not in found], "It was interrupted.")
    written = report(
        device,
        versions(),
        today,
        found,
        tiny=asked.tiny,
        memory_bytes=asked.leave,
        ballast=taken,
        minutes=asked.minutes,
        seconds=round(time.monotonic() - began, 1),
    )
    name = str(device.get("name") or "device")
    out = asked.out or (None if asked.tiny else ROOT / "bench" / "results" / file_name(name, today))
    if out is not None:
        out.write_text(json.dumps(written, indent=1) + "\n")
        print(f"\nWritten to {out}")
    counts = {result: sum(outcome.result == result for outcome in found.values()) for result in (*GIVEN, "not run")}
    print(", ".join(f"{count} {result}" for result, count in counts.items() if count))
    if taken:
        print(
            f"{format_bytes(taken.get('taken'))} of the card were taken; {format_bytes(taken.get('free'))} were free."
        )
    if not asked.tiny and (lines := settled(found, name, today)):
        print("\n| | estimated | measured | on | by what command |\n|---|---:|---:|---|---|\n" + "\n".join(lines))
    return 1 if any(outcome.result == "fail" for outcome in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
