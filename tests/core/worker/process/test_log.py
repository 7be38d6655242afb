from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from core.config.schema import Config, DataSection
from core.errors import UserError
from core.runs.record.events import FailedEvent, NoticeEvent
from core.runs.record.store import Run, create_run
from core.worker.process.log import RedactedStream
from tests.e2e.workers import only

ROOT = Path(__file__).parents[4]
TOKEN = "hf_" + "aB3dE" * 7

#: The worker itself, with a recipe that leaks a token in every way it can.
PROGRAM = f"""
import logging, sys, threading, types, warnings
from core.worker import __main__ as worker
TOKEN = "{TOKEN}"

def leak(config, recorder, controls, **_):
    print("printed", TOKEN)
    sys.stderr.write("in two pieces " + TOKEN[:9])
    sys.stderr.write(TOKEN[9:] + "\\n")
    warnings.warn(TOKEN)
    logging.getLogger("library").error("logged %s", TOKEN)
    recorder.notice("warning", "code", f"noticed {{TOKEN}}", f"hinted {{TOKEN}}")
    recorder.phase("training", f"phase {{TOKEN}}")
    thread = threading.Thread(target=lambda: 1 / len(TOKEN[99:]), name=TOKEN)
    thread.start()
    thread.join()
    raise RuntimeError(f"401 for {{TOKEN}}")

recipe = types.ModuleType("core.worker.train")
recipe.train = leak
sys.modules["core.worker.train"] = recipe
sys.exit(worker.main(sys.argv[1:]))
"""


def test_a_token_in_a_librarys_text_reaches_neither_log_nor_events(private_home: Path) -> None:
    run: Run = create_run(Config(data=DataSection(train="rows.jsonl")), "leak")
    with run.log_path.open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(run.path)],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
    text = run.log_path.read_text(encoding="utf-8")
    assert done.returncode == 4, text
    for words in ("printed ***", "in two pieces ***", "logged ***", "noticed ***", "RuntimeError: 401 for ***"):
        assert words in text
    (notice,) = only(NoticeEvent, run)
    assert (notice.message, notice.hint) == ("noticed ***", "hinted ***")
    (failed,) = only(FailedEvent, run)
    assert "401 for ***" in failed.reason
    assert "401 for ***" in run.state().reason
    for path in run.path.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path


def test_a_stream_passes_complete_lines_on_at_once() -> None:
    inner = io.StringIO()
    stream = RedactedStream(inner)
    assert stream.write("a line\nand a half") == 17
    assert inner.getvalue() == "a line\n"
    stream.flush()
    assert inner.getvalue() == "a line\nand a half"
    stream.writelines([" more\n", "end\n"])
    assert inner.getvalue() == "a line\nand a half more\nend\n"
    assert stream.getvalue() == inner.getvalue()


def test_an_error_for_people_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "correct horse")
    error = UserError(f"The hub said 401 to {TOKEN}.", "Renew correct horse.")
    assert (error.message, error.hint) == ("The hub said 401 to ***.", "Renew ***.")
    assert str(error) == "The hub said 401 to ***. Renew ***."
    assert error.args == ("The hub said 401 to ***.",)
