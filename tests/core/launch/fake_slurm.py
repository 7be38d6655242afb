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

_SBATCH = """#!/bin/bash
[ "$1" = --wait ] && shift
file=$1
asked() { sed -n "s/^#SBATCH --$1=//p" "$file"; }
each=$(asked ntasks-per-node)
export SLURM_JOB_ID=4711 SLURM_JOB_NODELIST='node[1-2]' SLURM_SUBMIT_DIR=$PWD
export SLURM_NTASKS=$(($(asked nodes) * each)) SLURM_NTASKS_PER_NODE=$each
log=$(asked output)
while :; do
  rm -f "$FAKE_SLURM/again" "$FAKE_SLURM/tasks.pid"
  echo 'JobState=RUNNING Reason=None' > "$FAKE_SLURM/job"
  bash "$file" >> "${log//%j/$SLURM_JOB_ID}" 2>&1 &
  echo $! > "$FAKE_SLURM/shell.pid"
  wait $!; status=$?
  [ -e "$FAKE_SLURM/again" ] || exit "$status"
done
"""
_SRUN = """#!/bin/bash
while [ "${1#--}" != "$1" ]; do shift; done
trap 'kill -KILL "${tasks[@]}"' TERM HUP
trap 'again=1; kill -USR1 "${tasks[@]}" 2> /dev/null' USR1
for rank in $(seq 0 $((SLURM_NTASKS - 1))); do
  SLURM_PROCID=$rank SLURM_LOCALID=$((rank % SLURM_NTASKS_PER_NODE)) "$@" &
  tasks[$rank]=$!
done
echo "${tasks[@]}" > "$FAKE_SLURM/tasks.pid"
highest=0
for task in "${tasks[@]}"; do
  again=; wait "$task"; status=$?
  while [ -n "$again" ] || kill -0 "$task" 2> /dev/null; do again=; wait "$task"; status=$?; done
  [ "$status" -gt "$highest" ] && highest=$status
done
exit "$highest"
"""
_SCONTROL = """#!/bin/bash
case "$1 $2" in
  'show hostnames') echo 127.0.0.1; echo node2 ;;
  'show job') echo "JobId=$3"; cat "$FAKE_SLURM/job" ;;
  'requeue incomplete') grep -q JobState=RUNNING "$FAKE_SLURM/job" && exec "$0" requeue "$3"; exit 0 ;;
  requeue*)
    touch "$FAKE_SLURM/again"
    echo "$2" >> "$FAKE_SLURM/requeued"
    echo 'JobState=COMPLETING Reason=None' > "$FAKE_SLURM/job"
    kill -TERM "$(cat "$FAKE_SLURM/shell.pid")" ;;
esac
"""


class FakeSlurm:
    """A cluster of this machine, with one job.

    Args:
        directory: Its own directory, in which jobs are handed in.
    """

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        programs = directory / "bin"
        programs.mkdir(parents=True)
        for name, text in (("sbatch", _SBATCH), ("srun", _SRUN), ("scontrol", _SCONTROL)):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("FAKE_SLURM", str(directory))
        self._file = directory / "job.sbatch"

    def sbatch(self, text: str) -> subprocess.Popen[str]:
        """Submit a job by ``sbatch --wait``, which ends with the job's status; a requeued job starts again at once."""
        self._file.write_text(text)
        return subprocess.Popen(["sbatch", "--wait", str(self._file)], cwd=self.directory, text=True)

    def notice(self) -> None:
        """Send the signal that the job has asked for before the end of its time."""
        found = re.search(r"^#SBATCH --signal=B:(\w+)@\d+$", self._file.read_text(), re.MULTILINE)
        assert found is not None
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
