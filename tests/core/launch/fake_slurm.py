"""Stand-ins for ``sbatch``, ``srun`` and ``scontrol`` in ``PATH``: a job and its tasks as processes of this machine.

Signals go where Slurm sends them. The notice before the end of the time goes to the batch shell alone (``B:``). When a
job is cancelled, its record says so first; then the shell and the tasks get SIGTERM, and ``srun`` does not, as it is no
child of Slurm's own process (``proctrack/cgroup``). ``srun`` passes SIGUSR1 on, and turns SIGTERM into SIGKILL.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.core.runs.helpers import there


class FakeSlurm:
    """A cluster of this machine, with one job.

    Args:
        directory: Its own directory, in which jobs are handed in.
    """

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        directory.mkdir()
        monkeypatch.setenv("PATH", f"{Path(__file__).with_name('slurm')}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("FAKE_SLURM", str(directory))
        self._file = directory / "job.sbatch"

    def sbatch(self, text: str) -> subprocess.Popen[str]:
        """Submit a job by ``sbatch --wait``, which ends with the job's status; a requeued job starts again at once."""
        self._file.write_text(text)
        return subprocess.Popen(["sbatch", "--wait", str(self._file)], cwd=self.directory, text=True)

    def notice(self) -> None:
        """Send the signal that the job has asked for before the end of its time."""
        found = there(re.search(r"^#SBATCH --signal=B:(\w+)@\d+$", self._file.read_text(), re.MULTILINE))
        os.kill(self.shell, signal.Signals[f"SIG{found[1]}"])

    def end(self, reason: str = "None", *, tasks: bool = True) -> None:
        """End the job, as ``scancel`` and the end of its time do.

        Args:
            reason: Reason in the job's record: ``TimeLimit``, or ``None`` for ``scancel``.
            tasks: Whether its tasks get the signal too.
        """
        self.record(reason)
        told = [self.shell]
        if tasks:
            with suppress(FileNotFoundError):
                told += map(int, (self.directory / "tasks.pid").read_text().split())
        for number in (signal.SIGCONT, signal.SIGTERM):
            for pid in told:
                os.kill(pid, number)

    def record(self, reason: str = "None") -> None:
        """Write into the job's record that it ends."""
        (self.directory / "job").write_text(f"JobState=COMPLETING Reason={reason}\n")

    @property
    def shell(self) -> int:
        """Process id of the batch shell."""
        return int((self.directory / "shell.pid").read_text())

    @property
    def requeued(self) -> Sequence[str]:
        """The jobs that were queued again."""
        path = self.directory / "requeued"
        return path.read_text().split() if path.exists() else []

    @property
    def log(self) -> str:
        """Output of the job."""
        return "".join(path.read_text() for path in self.directory.glob("*-4711.log"))
