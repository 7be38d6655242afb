"""Analysis jobs: their processes when a job is closed, killed, or its file changes meanwhile."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.analysis import job
from core.analysis.job import analysis_job, analyze
from core.analysis.result import AnalysisRequest
from core.analysis.survey import ForkedProcessError, forked_map
from core.errors import UserError
from core.jobs.job import JobCancelledError, JobProgress
from core.template.settings import MaskSettings
from tests.cases import cases
from tests.core.data.sample_files import json_lines, pairs, write
from tests.hostile_templates import SLOW
from tests.tiny_model import CHATML
from tests.waiting import wait_for

#: Enough rows that several processes look at them for seconds.
MANY = 60_000


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("many") / "rows.jsonl", json_lines(pairs(MANY)))


def is_over(process: psutil.Process) -> bool:
    """True if it has ended, zombies included."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def family_of(pid: int | None) -> list[psutil.Process]:
    """A process and those that it has started."""
    leader = psutil.Process(pid)
    return [leader, *leader.children(recursive=True)]


class Watched:
    """A job with something to be done to it once its processes are at work."""

    def __init__(self, path: Path, act: Callable[[Watched], object]) -> None:
        self.job = analysis_job(AnalysisRequest((str(path),)))
        self.family: list[psutil.Process] = []
        self._act = act

    def progress(self, told: JobProgress) -> None:
        if self.family or told.activity != "reading" or not told.done:
            return
        self.family = family_of(self.job.pid)
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
@cases(("member", "words"), [(0, "was ended by SIGKILL"), (1, "out of memory")])
def test_one_of_its_processes_that_is_killed_is_a_sentence(many: Path, member: int, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        Watched(many, lambda found: found.family[member].kill()).end()
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
        family = family_of(int(asker.stdout.readline()))
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
            family.extend(family_of(job.pid))
            job.close()

    with pytest.raises(JobCancelledError):
        job.run(told)
    # The unpacking helper is among them.
    assert len(family) >= 2
    wait_for(lambda: all(map(is_over, family)), 30, "the helper to end")
    assert [entry for entry in (private_home / "cache").rglob("*") if entry.is_file()] == []


LARGE = 8 << 20


def send(item: int) -> bytes:
    """Half of a large result is in the pipe when the alarm goes off."""
    if item == 5:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, 0.001)
    return bytes(LARGE)


def test_a_process_that_is_killed_while_it_sends_is_noticed() -> None:
    with pytest.raises(ForkedProcessError) as caught:
        list(forked_map(send, range(20), 2, lambda: None))
    assert caught.value.status == -signal.SIGKILL


#: The process with a second for a batch of rows, and less memory.
SCRIPT = (
    "import core.analysis.row_facts as facts; facts.BATCH_SECONDS = 1\n"
    "import core.analysis.process as process; process._MEMORY = 600 << 20\n"
    "process.run_job(process.analyze)\n"
)


def run(request: AnalysisRequest, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the process for a request.

    Args:
        request: The request.
        before: Lines of Python that it runs first.
    """
    return subprocess.run(
        [sys.executable, "-c", f"import core.sandbox.limits\n{before}{SCRIPT}"],
        input=json.dumps({"title": "it", "hint": "", "analysis": request.to_dict()}) + "\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def answer_of(rows: Path, model: Path, template: str) -> dict[str, Any]:
    """The last line of the process that looks at rows."""
    ended = run(AnalysisRequest((str(rows),), masks=MaskSettings(str(model), template)))
    answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return answer


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", json_lines(pairs(20)))


def test_a_template_that_takes_for_ever_is_a_sentence(rows: Path, tiny_model_dir: Path) -> None:
    bomb = CHATML + "{% if messages[0].content == 'q5' %}" + SLOW + "{% endif %}"
    answer = answer_of(rows, tiny_model_dir, bomb)
    assert answer["error"] == "The chat template or the tokenizer takes more than 1 s for a few rows."
    assert answer["hint"]


@pytest.mark.long
def test_so_is_one_that_takes_for_ever_before_the_first_row(rows: Path, tiny_model_dir: Path) -> None:
    answer = answer_of(rows, tiny_model_dir, SLOW)
    assert answer["error"] == "The chat template or the tokenizer takes more than 1 s for a few rows."
    endless = "from core.template.settings import MaskSettings\nMaskSettings.masker = lambda self: sum(range(10**14))\n"
    masks = MaskSettings(str(tiny_model_dir), SLOW)
    ended = run(AnalysisRequest((str(rows),), masks=masks), "core.sandbox.limits._GRACE = 0\n" + endless)
    assert ended.returncode == -signal.SIGXCPU, "only the kernel ends what does not return to Python"


def test_rows_on_which_a_template_fills_the_memory_are_dropped(rows: Path, tiny_model_dir: Path) -> None:
    bomb = (
        CHATML + "{% if messages[0].content == 'q5' %}"
        "{% set l = (['a' * 1048576] * 3000) | map('reverse') | list %}{{ l | length }}{% endif %}"
    )
    answer = answer_of(rows, tiny_model_dir, bomb)
    if "error" in answer:
        # On a busy machine it takes its time before it takes the memory.
        assert "takes more than 1 s" in answer["error"]
    else:
        assert answer["done"]["dropped"] == {"template_error": 1}
        assert answer["done"]["used"] == 19
