"""Jobs and their processes: results, progress, cancellation, deaths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from core.errors import UserError
from core.export.job import run_process
from core.export.llama_cpp import has_library
from core.jobs.job import Job, JobCancelledError, JobDiedError, JobProgress
from core.launch.launcher import worker_environment
from tests.cases import cases
from tests.core.sandbox.walls import require_landlock
from tests.progress import quiet
from tests.waiting import has_ended, wait_for

PROGRAM = "tests.core.jobs.scripted"
#: The activity of its process, as it may be shown.
AT_WORK = "at work\N{REPLACEMENT CHARACTER}[2J"
QUANTIZE = "core.worker.job quantize"
#: Starts a job that never ends, and prints its process id.
PARENT = """
from core.jobs.job import Job
request = {"steps": ["hang"]}
job = Job("it", lambda job: job.call("tests.core.jobs.scripted", request, lambda _: print(job.pid, flush=True)))
job.run()
"""


def scripted(*steps: str, **options: Any) -> Job[JobProgress, dict[str, Any]]:
    """A job whose process takes some steps."""
    return Job("the test", lambda job: job.call(PROGRAM, {"steps": steps}, job.report, **options), "Do so.")


def test_a_job_has_progress_and_a_result() -> None:
    seen: list[JobProgress] = []
    job = scripted(environment=os.environ | {"OF_THE_JOB": "set"})
    assert job.run(seen.append) == {"variable": "set", "umask": "0o77"}
    assert seen == [JobProgress(AT_WORK, 1, 4)]
    assert job.progress == seen[0]
    assert (seen[0].share, JobProgress("", None, 4).share) == (0.25, None)
    assert job.pid is not None
    assert has_ended(job.pid)


def test_a_question_is_answered() -> None:
    hear = Mock(return_value=True)
    assert scripted("ask", hear=hear).run()
    hear.assert_called_once_with({"question": "shall it?"})


@cases(
    ("step", "end", "words", "hint"),
    [
        ("error", "It is\ufffd[2J broken.", "", "Mend it."),
        ("kill", "was ended by SIGKILL", "a library says something", "The machine may be out of memory"),
        ("leave", "ended with code 3", "last word\ufffd[2J", "Do so."),
        ("fault", "was ended by SIGSEGV", "Fatal Python error: Segmentation fault", "Do so."),
    ],
)
def test_an_end_without_a_result_is_a_sentence(step: str, end: str, words: str, hint: str) -> None:
    with pytest.raises(UserError) as failed:
        scripted(step).run()
    told = f"The test failed: its process {end}; its log ends with: {words}." if words else end
    assert failed.value.message == told
    assert hint in failed.value.hint
    assert isinstance(failed.value, JobDiedError) is (step != "error")


def test_messages_that_make_no_sense_are_no_result() -> None:
    seen: list[JobProgress] = []
    with pytest.raises(JobDiedError, match="was ended by SIGKILL"):
        scripted("garbage", "kill").run(seen.append)
    assert seen[1:] == [JobProgress("['odd']")]


def test_closing_ends_it_from_any_thread() -> None:
    job = scripted("hang")
    closing = threading.Thread(target=job.close)
    with pytest.raises(JobCancelledError):
        job.run(lambda _: closing.start())
    closing.join()
    assert job.pid is not None
    assert has_ended(job.pid)
    job.close()
    with pytest.raises(JobCancelledError):
        job.run()


def test_a_follower_of_a_silent_process_may_give_up() -> None:
    seen: list[JobProgress] = []

    def give_up(progress: JobProgress) -> None:
        seen.append(progress)
        if seen.count(JobProgress(AT_WORK, 1, 4)) > 1:
            raise KeyboardInterrupt

    job = scripted("hang", beats=True)
    with pytest.raises(KeyboardInterrupt):
        job.run(give_up)
    assert job.pid is not None
    assert has_ended(job.pid)


def test_a_job_that_takes_too_long_is_ended() -> None:
    job = scripted("hang", seconds=1.0)
    with pytest.raises(UserError, match=r"^The test was not done after 1\.0s, and was ended\.$"):
        job.run()
    assert job.pid is not None
    assert has_ended(job.pid)


def test_a_foreign_program_is_watched() -> None:
    said: list[str] = []

    def watched(script: str) -> None:
        Job("sh", lambda job: job.watch(["sh", "-c", script], said.append)).run()

    watched("echo one; echo; printf '\\033[2Jtwo\\nthree'")
    assert said == ["one", "\N{REPLACEMENT CHARACTER}[2Jtwo"]
    with pytest.raises(JobDiedError, match=r"^sh failed: its process ended with code 2; its log ends with: no"):
        watched("echo no >&2; exit 2")


def test_a_job_ends_with_the_one_that_started_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], env=worker_environment(), stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
        wait_for(lambda: has_ended(pid), 60, "the job's end")


# Jobs of the worker.


@pytest.mark.skipif(not has_library(), reason="llama-cpp-py-sync is not installed")
def test_a_job_with_a_limit_of_memory_uses_only_the_files_that_it_names(tmp_path: Path) -> None:
    require_landlock()
    told: list[str] = []
    source = tmp_path / "none.gguf"
    source.write_bytes(b"no GGUF file")
    for reads, said in (([], "Permission denied"), ([str(source)], "failed to write Q4_0")):
        files = {"source": str(source), "target": str(tmp_path / "q.gguf"), "reads": reads, "writes": []}
        confined = {"quant": "Q4_0", "importance": None, "embeddings": None, "expected": 1, "memory": 4 << 30} | files
        with pytest.raises(UserError, match=r"^llama\.cpp's quantizer failed") as failed:
            run_process(QUANTIZE, confined, "llama.cpp's quantizer", lambda activity, *_: told.append(activity))
        assert {"importing the libraries", "loading the quantizer"} <= set(told)
        assert said in failed.value.message
        assert ("Permission denied" in failed.value.message) is not bool(reads)


@pytest.mark.anew
def test_a_job_that_there_is_not_is_reported_by_its_last_words() -> None:
    with pytest.raises(UserError, match=r"^The quantizer failed: its process ended with code 1; .*KeyError: 'no'"):
        run_process("core.worker.job no", {}, "the quantizer", quiet)
