"""Code that runs once torch is imported, each time in an environment of its own.

All times are forks of one process, as the import takes seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[4]
_PROCESS = """
import json, os, sys, traceback
import torch
code, cases = json.load(sys.stdin)
for variables, names in cases:
    if (child := os.fork()) == 0:
        try:
            os.environ.clear()
            os.environ.update(variables)
            exec(code, names)
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
"""


def told_after_torch(code: str, cases: Sequence[tuple[Mapping[str, str], Mapping[str, Any]]]) -> list[Any]:
    """Output of the code, a line of JSON per case.

    Args:
        code: The code.
        cases: The environment and the names of each time.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PROCESS],
        input=json.dumps([code, [[dict(variables), dict(names)] for variables, names in cases]]),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
