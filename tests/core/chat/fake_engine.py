"""An engine without torch, for tests of the app's side of it: its one argument says how it behaves."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

cancelled = threading.Event()


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def generate(identity: str, mode: str) -> None:
    if mode == "die":
        sys.stderr.write("the last words\x1b[31m\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "refuse":
        send({"id": identity, "ok": False, "error": "Not today.", "hint": "Try tomorrow."})
        return
    if mode == "garbage":
        sys.stdout.write('{"half a li\n[1]\n')
    send({"id": "999", "token": "of another answer"})
    for piece in ("One", " two\x1b[2J"):
        send({"id": identity, "token": piece})
    if mode.startswith("hung "):
        # It hears nothing while a file is there, which is gone for the process after this one.
        Path(mode.removeprefix("hung ")).unlink(missing_ok=True)
        threading.Event().wait()
    if mode == "endless" and not cancelled.wait(30):
        sys.exit("nobody cancelled")
    finish = "cancelled" if mode == "endless" else "stop"
    answer = {"text": "One two\x1b[2J", "tokens": 2, "first_token_seconds": 0.5, "tokens_per_second": 4.0}
    send({"id": identity, "ok": True, **answer, "source": "adapter", "finish": finish})


def main() -> None:
    mode = sys.argv[1]
    if mode.startswith("hung ") and not Path(mode.removeprefix("hung ")).exists():
        mode = "answer"
    for line in sys.stdin:
        request = json.loads(line)
        identity, command = request["id"], request["command"]
        if command == "load":
            send({"id": identity, "progress": "loading\x07", "done": 1, "total": 2})
            send({"id": identity, "ok": True, "device": "cpu", "dtype": "float32", "seconds": 0.1, **request["args"]})
        elif command == "generate":
            threading.Thread(target=generate, args=(identity, mode), daemon=True).start()
        elif command == "cancel":
            cancelled.set()
            send({"id": identity, "ok": True, "found": True})
        elif command == "ping":
            send({"id": identity, "ok": True})
    if mode == "deaf":
        threading.Event().wait()


if __name__ == "__main__":
    main()
