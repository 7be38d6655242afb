from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core import paths
from core.errors import UserError
from core.export.job import ExportProgress, export_job
from core.export.plan import LOADING_TRAINED, plan_export, stages_of
from core.export.request import ExportRequest
from core.export.result import list_exports
from core.jobs.job import JobCancelledError, JobProgress
from core.runs.record.store import Run
from tests.core.export.trained_run import make_trained_run, write_rows
from tests.forking import Forks
from tests.waiting import wait_for


@pytest.fixture
def run(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return make_trained_run(tiny_model_dir, write_rows(tmp_path / "rows.jsonl", 3))


def left() -> list[str]:
    return sorted(os.listdir(paths.exports_dir())) if paths.exports_dir().exists() else []


def at(activity: str, act: Callable[[], object]) -> Callable[[JobProgress], None]:
    """Progress that acts once, at an activity."""
    done = False

    def look(progress: JobProgress) -> None:
        nonlocal done
        if not done and progress.activity == activity:
            done = True
            act()

    return look


def test_a_merged_model_is_made_and_proven_in_processes_of_their_own(run: Run, tmp_path: Path) -> None:
    seen: list[JobProgress] = []
    plan = plan_export(ExportRequest(run.path, "merged", rows=2))
    result = export_job(plan_export(ExportRequest(run.path, "merged", rows=2))).run(seen.append)
    assert result.verified
    assert result.agreement is not None
    assert (result.agreement.rows, result.agreement.greedy_equal) == (2, 2)
    assert result.agreement.reader.startswith("transformers ")
    shares = [progress.done / progress.total for progress in seen if progress.done is not None and progress.total]
    assert shares == sorted(shares), "one bar, that only grows"
    assert shares[-1] == 1.0
    told = list(dict.fromkeys(progress.activity for progress in seen if progress.done is not None))
    weighted = [stage.activity for stage in stages_of(plan) if stage.work]
    assert [activity for activity in told if activity in weighted] == weighted
    assert list_exports(run.id) == [result]
    assert left() == [f"{run.id}-merged"]
    with pytest.raises(UserError, match="is there already"):
        export_job(plan_export(ExportRequest(run.path, "merged"))).run()
    with pytest.raises(UserError, match="There is no directory"):
        export_job(plan_export(ExportRequest(run.path, "card", out=tmp_path / "missing" / "card"))).run()


def test_a_process_that_is_killed_leaves_nothing(run: Run) -> None:
    job = export_job(plan_export(ExportRequest(run.path, "merged", rows=1)))

    def kill() -> None:
        assert job.pid is not None
        assert left()[0].startswith(f".{run.id}-merged.")
        os.kill(job.pid, signal.SIGKILL)

    with pytest.raises(UserError, match=r"^The export failed: its process was ended by SIGKILL") as caught:
        job.run(at("merging the weights", kill))
    assert "out of memory" in caught.value.hint
    assert left() == []


def test_closing_it_ends_it_and_leaves_nothing(run: Run) -> None:
    job = export_job(plan_export(ExportRequest(run.path, "merged", rows=1)))
    with pytest.raises(JobCancelledError):
        job.run(at("merging the weights", job.close))
    assert left() == []
    with pytest.raises(JobCancelledError):
        job.run()


def test_a_proof_that_is_killed_leaves_the_files_unproven(run: Run) -> None:
    job, seen = export_job(plan_export(ExportRequest(run.path, "merged", rows=1))), list[ExportProgress]()
    kill = at(LOADING_TRAINED, lambda: os.kill(job.pid or 0, signal.SIGKILL))

    def follow(progress: ExportProgress) -> None:
        seen.append(progress)
        kill(progress)

    with pytest.raises(UserError, match="ended by SIGKILL"):
        job.run(follow)
    (found,) = list_exports(run.id)
    assert found.proof == "unproven"
    assert left() == [found.path.name]
    assert (seen[0].written, seen[-1].written) == (None, found.path)


def test_what_is_left_by_a_killed_program_is_removed_by_the_next_export(run: Run, forks: Forks) -> None:
    ended = forks.run([sys.executable, "-m", __name__, str(run.path)])
    assert ended.returncode == -signal.SIGKILL
    # The export's own process ends with it.
    (leftover,) = left()
    number = int(leftover.split(".")[-2])
    wait_for(lambda: not Path(f"/proc/{number}").exists(), 30, f"the end of process {number}")
    export_job(plan_export(ExportRequest(run.path, "card"))).run()
    assert left() == [f"{run.id}-card"]


if __name__ == "__main__":
    # An export whose program is killed: ``python -m tests.core.export.test_job RUN``.
    killed = export_job(plan_export(ExportRequest(Path(sys.argv[1]), "merged", rows=1)))
    killed.run(at("merging the weights", lambda: os.kill(os.getpid(), signal.SIGKILL)))
