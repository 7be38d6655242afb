"""Download process for tests: many downloads by one process, the real one, without a start for each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.hub.job import FetchPlan
from core.text import one_line

_PROGRAM = """
import json, os, sys
from core.hub import download
from core.jobs.process import Answers, answer_to

class Silent(Answers):
    def __init__(self): pass
    def progress(self, *_): pass
    def ask(self, _): pass

for line in sys.stdin:
    request = json.loads(line)
    os.environ.update(request["environment"])
    sys.stdout.write(json.dumps(answer_to(download.fetch, request, Silent())) + "\\n")
    sys.stdout.flush()
"""


class Fetcher:
    """Downloads from the hub and into the home that the environment names each time.

    Args:
        process: The process that downloads.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def fetch(self, entry: str) -> dict[str, Any]:
        """Download; the answer of the download process: ``done``, or ``error`` and ``hint``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        environment = {name: os.environ[name] for name in ("LOCALTUNE_HOME", "HF_ENDPOINT")}
        self._process.stdin.write(
            json.dumps({"title": "the download", "hint": "", "entry": entry, "environment": environment}) + "\n"
        )
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def plan(self, entry: str) -> FetchPlan:
        """Download; the result of :func:`~core.hub.job.fetch_job`.

        Raises:
            UserError: If it cannot be fetched.
        """
        answer = self.fetch(entry)
        if "error" in answer:
            raise UserError(one_line(answer["error"]), one_line(answer["hint"]))
        return FetchPlan.from_dict(answer["done"])


@contextmanager
def running_fetcher() -> Iterator[Fetcher]:
    """A fetcher, closed when it is no longer needed."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Fetcher(process)
        finally:
            process.kill()


def snapshot(root: Path, *apart: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a directory with its time and content, links by their targets; some directories left out."""
    found = {}
    for path in sorted(root.rglob("*")):
        if any(path == place or place in path.parents for place in apart) or path.name.endswith(".lock"):
            continue
        if path.is_symlink():
            found[str(path)] = (path.lstat().st_mtime_ns, str(path.readlink()).encode())
        elif path.is_file():
            found[str(path)] = (path.stat().st_mtime_ns, path.read_bytes())
        else:
            found[str(path)] = (0, b"directory")
    return found
