"""Analysis jobs: their processes when a job is closed, killed, or its file changes meanwhile."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from core.analysis import job
from core.analysis.job import analysis_job, analyze
from core.analysis.result import AnalysisRequest
from core.errors import UserError
from core.jobs.job import JobCancelledError, JobProgress
from tests.cases import cases
from tests.core.data.sample_files import json_lines, pairs, write
from tests.waiting import wait_for

#: Enough rows that several processes look at them for seconds.
MANY = 60_000


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("many") / "rows.jsonl", json_lines(pairs(MANY)))


def is_over(process: psutil.Process) -> bool:
    """Whether it has ended; one that nobody has waited for yet has."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Watched:
    """A job with something to be done to it once its processes are at work."""

    def __init__(self, path: Path, act: Callable[[Watched], object]) -> None:
        self.job = analysis_job(AnalysisRequest((str(path),)))
        self.family: list[psutil.Process] = []
        self._act = act

    @property
    def leader(self) -> psutil.Process:
        return self.family[0]

    def progress(self, told: JobProgress) -> None:
        if self.family or told.activity != "reading" or not told.done:
            return
        leader = psutil.Process(self.job.pid)
        self.family = [leader, *leader.children(recursive=True)]
        self._act(self)

    def end(self) -> None:
        """Run it, and see that nothing of it is left."""
        try:
            self.job.run(self.progress)
        finally:
            assert len(self.family) >= 2
            wait_for(lambda: all(map(is_over, self.family)), 30, "the processes of the analysis to end")


needs_two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core: one process does it all")


@needs_two_cores
def test_closing_in_the_middle_leaves_no_process(many: Path) -> None:
    watched = Watched(many, lambda found: found.job.close())
    with pytest.raises(JobCancelledError):
        watched.end()
    watched.job.close()
    with pytest.raises(JobCancelledError):
        watched.job.run()


@needs_two_cores
def test_an_analysis_that_is_killed_is_a_sentence(many: Path) -> None:
    with pytest.raises(UserError, match="was ended by SIGKILL") as caught:
        Watched(many, lambda found: found.leader.kill()).end()
    assert caught.value.hint


def test_one_that_the_kernel_ends_for_its_time_is_about_the_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = "import os, signal; os.kill(os.getpid(), signal.SIGXCPU)"
    monkeypatch.setattr(job, "PROGRAM", [sys.executable, "-c", late])
    with pytest.raises(UserError, match="takes more time than any should") as caught:
        analyze(AnalysisRequest((str(tmp_path),)))
    assert "template.file" in caught.value.hint


@needs_two_cores
def test_one_of_its_processes_that_is_killed_is_a_sentence(many: Path) -> None:
    with pytest.raises(UserError, match="out of memory") as caught:
        Watched(many, lambda found: found.family[1].kill()).end()
    assert caught.value.hint


@needs_two_cores
def test_the_end_of_the_one_who_asked_ends_it(many: Path) -> None:
    script = (
        "import sys; from core.analysis.result import AnalysisRequest; from core.analysis.job import analysis_job\n"
        "job = analysis_job(AnalysisRequest((sys.argv[1],)))\n"
        "def told(progress):\n"
        "    if progress.activity == 'reading' and progress.done: print(job.pid, flush=True)\n"
        "job.run(told)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(many)], stdout=subprocess.PIPE, text=True) as asker:
        assert asker.stdout is not None
        leader = psutil.Process(int(asker.stdout.readline()))
        family = [leader, *leader.children(recursive=True)]
        asker.send_signal(signal.SIGKILL)
    assert len(family) >= 2
    wait_for(lambda: all(map(is_over, family)), 60, "the analysis to notice that nobody listens")


@needs_two_cores
@cases(
    ("change", "part"),
    [
        (lambda path: os.truncate(path, path.stat().st_size // 2), "has become shorter"),
        (lambda path: path.open("a").write('{"prompt": "q", "completion": "a"}\n'), "has changed"),
        (lambda path: os.replace(write(path.with_name("new"), "{}\n"), path), "has been replaced"),
        (lambda path: path.unlink(), "is gone"),
    ],
)
def test_a_file_that_changes_meanwhile_is_a_sentence(
    many: Path, tmp_path: Path, change: Callable[[Path], object], part: str
) -> None:
    path = Path(shutil.copyfile(many, tmp_path / "a.jsonl"))
    with pytest.raises(UserError, match=part) as caught:
        Watched(path, lambda _: change(path)).end()
    assert caught.value.hint == "Open it again."


@needs_two_cores
def test_closing_while_a_packed_file_is_unpacked_leaves_nothing(tmp_path: Path, private_home: Path) -> None:
    text = json_lines({"prompt": os.urandom(40).hex(), "completion": "a"} for _ in range(200_000)).encode()
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(text, 1))
    job = analysis_job(AnalysisRequest((str(path),)))
    family: list[psutil.Process] = []

    def told(progress: JobProgress) -> None:
        if progress.activity == "indexing" and not family:
            leader = psutil.Process(job.pid)
            family.extend([leader, *leader.children(recursive=True)])
            job.close()

    with pytest.raises(JobCancelledError):
        job.run(told)
    # The helper that unpacks is one of them.
    assert len(family) >= 2
    wait_for(lambda: all(map(is_over, family)), 30, "the helper to end")
    assert [entry for entry in (private_home / "cache").rglob("*") if entry.is_file()] == []


def test_several_at_once_do_not_meet(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{count}.jsonl", json_lines(pairs(count))) for count in (3, 5)]
    found: dict[Path, int] = {}
    threads = [
        threading.Thread(target=lambda path=path: found.update({path: analyze(AnalysisRequest((str(path),))).rows}))
        for path in paths
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[path] for path in paths] == [3, 5]
