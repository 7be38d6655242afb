"""Turns a run into a recorded one for :mod:`tests.core.runs.test_eta`: ``python -m tests.core.runs.record RUN NAME``.

The configuration and the events that matter for the time are kept, without paths of the machine.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from pathlib import Path

from core.runs.record.store import Run

RECORDED = Path(__file__).with_name("recorded")
#: Events that do not matter for the time left, and texts that are dropped.
_LEFT_OUT, _TEXTS = ("hardware", "memory", "notice"), ("prompt", "text", "path", "hint")


def main() -> None:
    """Write the record."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    arguments = parser.parse_args()
    run, directory = Run(arguments.run), RECORDED / arguments.name
    directory.mkdir(parents=True, exist_ok=True)
    config = re.sub(r'"/[^"]*/([^"/]+)"', r'"/\1"', run.config_path.read_text(encoding="utf-8"))
    (directory / "run.toml").write_text(config, encoding="utf-8")
    lines = []
    for line in run.events_path.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["type"] not in _LEFT_OUT:
            event |= {key: "" for key in _TEXTS if key in event}
            if str(event.get("detail", "")).startswith("/"):
                event["detail"] = Path(event["detail"]).name
            lines.append(json.dumps(event))
    data = "\n".join(lines).encode() + b"\n"
    (directory / "events.jsonl.gz").write_bytes(gzip.compress(data, mtime=0))


if __name__ == "__main__":
    main()
