"""Stand-ins for ``srun`` and ``scontrol`` in ``PATH``: the tasks of a job as processes of this machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

_SRUN = """#!/bin/bash
while [ "${1#--}" != "$1" ]; do shift; done
trap 'kill -TERM "${tasks[@]}" 2> /dev/null' TERM
for rank in $(seq 0 $((SLURM_NTASKS - 1))); do
  SLURM_PROCID=$rank SLURM_LOCALID=$((rank % SLURM_NTASKS_PER_NODE)) "$@" &
  tasks[$rank]=$!
done
highest=0
for task in "${tasks[@]}"; do
  wait "$task"; status=$?
  while kill -0 "$task" 2> /dev/null; do wait "$task"; status=$?; done
  [ "$status" -gt "$highest" ] && highest=$status
done
exit "$highest"
"""
_SCONTROL = """#!/bin/bash
case $1 in
  show) echo 127.0.0.1; echo node2 ;;
  requeue) echo "$2" >> "$FAKE_SLURM/requeued" ;;
esac
"""


class FakeSlurm:
    """A cluster of this machine.

    Args:
        directory: Its own directory, in which jobs are handed in.
    """

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        programs = directory / "bin"
        programs.mkdir(parents=True)
        for name, text in (("srun", _SRUN), ("scontrol", _SCONTROL)):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("FAKE_SLURM", str(directory))

    def start(self, file: Path, tasks: int, job: int = 4711) -> subprocess.Popen[str]:
        """Start a job as Slurm would on its first node."""
        variables = {
            "SLURM_JOB_ID": str(job),
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_NTASKS": str(tasks),
            "SLURM_NTASKS_PER_NODE": str(tasks),
            "SLURM_SUBMIT_DIR": str(self.directory),
        }
        return subprocess.Popen(
            ["bash", str(file)],
            env={**os.environ, **variables},
            cwd=self.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def requeued(self) -> list[str]:
        """The jobs that were queued again."""
        path = self.directory / "requeued"
        return path.read_text().split() if path.exists() else []
